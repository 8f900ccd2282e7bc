# SPDX-License-Identifier: Apache-2.0
"""``erofs-edge pull``: fetch images and builds from a registry."""

from __future__ import annotations

from pathlib import Path

import click

from erofs_edge.cli.output import emit_json, json_option, note, size_text, step, table


@click.command()
@click.argument("reference", metavar="REGISTRY/NAME[:TAG|@DIGEST]")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="The folder to write to.")  # fmt: skip
@click.option("--key", type=click.Path(path_type=Path, dir_okay=False), metavar="PUB",
              help="Accept only what this public key has signed (`push --key`).")  # fmt: skip
@click.option("--arch", default="arm64", show_default=True, help="Which architecture to fetch if there are several.")
@click.option("--plain-http", is_flag=True, help="Use HTTP without TLS for a registry on another machine.")
@json_option
def pull(reference: str, output: Path, key: Path | None, arch: str, plain_http: bool, as_json: bool) -> None:
    """Fetch an image or a build that `push` stored. If any blob's hash does not match its manifest, nothing is kept.

    Blobs are cached: of a newer version, only the new blobs are fetched.

    \b
    Example:
      erofs-edge pull registry.example/gateway:v1 -o gateway-v1 --key release.pub
    """
    from erofs_edge.registry.pull import fetch, find
    from erofs_edge.registry.remote import open_remote
    from erofs_edge.sources.cache import Cache
    from erofs_edge.sources.oci.reference import parse_reference
    from erofs_edge.trust.key import read_public_key

    target = parse_reference(reference)
    public = read_public_key(key) if key else None
    remote = open_remote(target, plain_http=plain_http)
    try:
        found = find(remote, arch, public)
        with step(f"pull {target}") as progress:
            done = fetch(found, remote, output, Cache(), progress)
    finally:
        remote.close()
    name = f"{target.registry}/{target.name}@sha256:{found.sha256}"
    devices = [file.name for file in found.value.files if file.device]
    if as_json:
        emit_json(
            {
                "reference": str(target),
                "digest": f"sha256:{found.sha256}",
                "signed_by": public.name if public else None,
                "bytes": done.bytes,
                "fetched_bytes": done.fetched_bytes,
                "files": [{"path": path, "size": path.stat().st_size} for path in done.files],
                "devices": devices,
            }
        )
        return
    table([(str(path), size_text(path.stat().st_size)) for path in done.files])
    click.echo(f"fetched  {size_text(done.fetched_bytes)} of {size_text(done.bytes)}")
    if devices:
        click.echo("mount    -o " + ",".join(f"device={output / name}" for name in devices))
    click.echo(f"digest   {name}")
    if public is None:
        note("note: no signature was checked: add --key PUB, or pull the digest")
