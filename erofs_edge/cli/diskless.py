# SPDX-License-Identifier: Apache-2.0
"""``erofs-edge diskless``: the signed boot image of a board that gets its system over the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.built import built
from erofs_edge.cli.output import emit_json, json_option, size_text, step
from erofs_edge.cli.to_file import write_file
from erofs_edge.errors import SourceError, UsageError

if TYPE_CHECKING:
    from erofs_edge.diskless.place import Place

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
SCRIPT = "diskless.cmd"


@click.command()
@click.argument("board", metavar="BOARD", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="The folder in which BOARD was built.  [default: out/BOARD]")  # fmt: skip
@click.option(
    "--system",
    "system",
    required=True,
    metavar="URI",
    help="Where the system is: nbd://ADDRESS/EXPORT, nbds://… or http(s)://…",
)
@click.option(
    "--data", default="memory", show_default=True, metavar="memory|disk|URI",
    help="Where /data is: in memory (lost at power-off), on the board's own disk, or on an NBD export. The board"
    " appends its hardware address to a URI that ends with /.",
)  # fmt: skip
@click.option(
    "--keep", is_flag=True,
    help="Copy the system to the board's own system partition (of its first slot) while it runs, and boot from there"
    " once the copy is complete.",
)  # fmt: skip
@click.option(
    "--tls-ca", type=FILE, metavar="PEM", help="The CA certificate that the server's certificate must be issued by."
)
@click.option(
    "--tls-certificate", type=FILE, metavar="PEM", help="The board's own certificate, if the server requires one."
)
@click.option("--tls-key", type=FILE, metavar="PEM", help="The private key of the board's certificate.")
@click.option(
    "--boot-image", metavar="URI",
    help="http://ADDRESS[:PORT]/PATH of diskless.fit, if U-Boot is to fetch it by HTTP (wget) instead of TFTP.",
)  # fmt: skip
@click.option(
    "--prefetch", type=FILE, metavar="TRACE", help="Prefetch what TRACE lists; it must be a trace of this very system."
)
@click.option("--key", metavar="URI", help="Sign with this key instead of the board's sign.key.")
@json_option
def diskless(
    board: Path,
    out: Path | None,
    system: str,
    data: str,
    keep: bool,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    boot_image: str | None,
    prefetch: Path | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Make diskless.fit, a signed boot image (kernel, initramfs and root hash) with which BOARD boots a system that is
    on a server, and diskless.cmd, the U-Boot commands that fetch and start it. For a board with UEFI firmware the boot
    image is diskless.efi, which the firmware loads by network boot.

    The server can be anything that serves the build's system.img: `erofs-edge serve`, nbdkit, or a web server.

    \b
    Example:
      erofs-edge diskless rpi4 --system nbd://192.0.2.1/system
    """
    from erofs_edge.diskless.place import check_reachable, parse_boot_image, parse_place
    from erofs_edge.diskless.start import Diskless, board_lock, build_diskless
    from erofs_edge.sources.cache import Cache
    from erofs_edge.trust.signer import open_signer

    loaded, folder = built(board, out)
    wanted = Diskless(
        parse_place(system),
        _data(data),
        runs_of(prefetch, folder) if prefetch else (),
        keep,
        _certificates(tls_ca, tls_certificate, tls_key),
        boot_image=parse_boot_image(boot_image) if boot_image is not None else None,
    )
    for place in (wanted.system, wanted.data, wanted.boot_image):
        if place is not None and not isinstance(place, str):
            check_reachable(place)
    with step("diskless boot image"):
        signer = open_signer(key or loaded.value.sign.key)
        made = build_diskless(loaded.value, board_lock(loaded.path, folder), folder, wanted, signer, Cache())
    files = {made.name: made.image} | ({SCRIPT: made.script.encode()} if made.script else {})
    for name, content in files.items():
        write_file(folder / name, content, name)
    if as_json:
        sizes = {name: len(content) for name, content in files.items()}
        emit_json({"folder": folder, "files": sizes, "root_hash": made.root_hash})
        return
    click.echo("\n".join(f"{folder / name}  {size_text(len(content))}" for name, content in files.items()))


def runs_of(trace: Path, folder: Path) -> tuple[tuple[int, int], ...]:
    """Return what to prefetch: everything that a trace of the system in `folder` touched. Raises VerificationError for
    a trace of another system."""
    from erofs_edge.build.record import read_release
    from erofs_edge.trace.record import read_trace

    found = read_trace(trace)
    found.belongs_to(str(read_release(folder).get("system", {}).get("root_hash")))
    return found.runs()


def _data(text: str) -> Place | str:
    from erofs_edge.diskless.place import parse_place

    if text in ("memory", "disk"):
        return text
    if "://" not in text:
        raise UsageError(f"--data {text}: not a place for data", hint="memory, disk or nbd://ADDRESS/EXPORT")
    place = parse_place(text)
    if place.plugin != "nbd":
        raise UsageError(f"--data {text}: a web server does not accept writes", hint="use nbd:// or nbds://")
    return place


def _certificates(ca: Path | None, certificate: Path | None, key: Path | None) -> dict[str, bytes]:
    if (certificate is None) != (key is None):
        raise UsageError("--tls-certificate and --tls-key must be given together")
    _check_pem(ca, certificate, key)
    named = {"ca-cert.pem": ca, "client-cert.pem": certificate, "client-key.pem": key}
    return {name: path.read_bytes() for name, path in named.items() if path is not None}


def _check_pem(ca: Path | None, certificate: Path | None, key: Path | None) -> None:
    """Raises SourceError for a PEM file that the board could not load; nobody is there to enter a passphrase."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except OSError as error:  # includes SSLError
            raise SourceError("no certificate in PEM", where=str(ca)) from error
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password="")
        except OSError as error:
            hint = "both in PEM, the key without a passphrase"
            raise SourceError(f"not a certificate with the key {key}", where=str(certificate), hint=hint) from error
