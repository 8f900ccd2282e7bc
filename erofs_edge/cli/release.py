# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge release`: a build with bills of materials, provenance, checksums and inputs, all signed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erofs_edge.cli.output import emit_json, json_option, note, size_text, step, table
from erofs_edge.cli.release_check import release_check
from erofs_edge.errors import UsageError

if TYPE_CHECKING:
    from erofs_edge.bundle.sysupdate import Form


class _Release(click.Command):
    """The command `release BOARD`; with --check, a different command that takes a folder."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if "--check" not in args:
            return super().make_context(info_name, args, parent, **extra)
        rest = [word for word in args if word != "--check"]
        return release_check.make_context(f"{info_name} --check", rest, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(cls=_Release)
@click.argument("board", type=click.Path(path_type=Path))
@click.option("--key", metavar="URI", required=True, help="The signing key: file:PATH, pkcs11:…, command:…, offline:…")
@click.option("--system", type=click.Path(path_type=Path), metavar="MANIFEST",
              help="Build this system instead of the board's own.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FOLDER", required=True,
              help="Output folder.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), help="Number of threads; the output is the same for any number.")
@click.option(
    "--from",
    "earlier",
    type=click.Path(exists=True, path_type=Path, file_okay=False),
    multiple=True,
    metavar="FOLDER",
    help="An earlier release, to forecast the update from it. May be repeated.",
)
@click.option("--rauc", is_flag=True, help="Include an update for RAUC: update.raucb.")
@click.option("--sysupdate", metavar="URL",
              help="Include an update for systemd-sysupdate; devices find the newest release at URL.")  # fmt: skip
@click.option(
    "--sysupdate-form",
    "form",
    type=click.Choice(["image", "partitions"]),
    help="With --sysupdate, one discoverable disk image, or one file for each of its partitions.  [default: image]",
)
@click.option("--check", is_flag=True, expose_value=False,
              help="Check an existing release instead: see release --check --help.")  # fmt: skip
@click.option("--allow-dirty", is_flag=True, help="Allow inputs that differ from what is committed in Git.")
@json_option
def release(
    board: Path,
    key: str,
    system: Path | None,
    output: Path,
    jobs: int | None,
    earlier: tuple[Path, ...],
    rauc: bool,
    sysupdate: str | None,
    form: Form | None,
    allow_dirty: bool,
    as_json: bool,
) -> None:
    """Build BOARD into FOLDER, with everything that others need to verify and rebuild it.

    Development keys, inputs without a lock, and inputs that differ from what is committed in Git are refused.

    \b
    Examples:
      erofs-edge release gateway.yaml --key file:release.pem -o release/v1
      erofs-edge release --check release/v1 --key release.pub
    """
    from erofs_edge.build.pipeline import BuildOptions
    from erofs_edge.release.bundles import Wish
    from erofs_edge.release.make import make_release

    if form and sysupdate is None:
        raise UsageError("--sysupdate-form needs --sysupdate", hint="--sysupdate URL: where devices find the release")
    options = BuildOptions(out=output, jobs=jobs, key=key, system=system)
    wish = Wish(rauc, sysupdate, form or "image")
    result = make_release(board, options, step, allow_dirty=allow_dirty, earlier=earlier, bundles=wish)
    for text in result.notes:
        note(f"note: {text}")
    if as_json:
        emit_json({"out": str(output), "notes": result.notes, "release": result.record})
        return
    rows = [(name, size_text(one["size"]), one["sha256"][:16]) for name, one in result.record["files"].items()]
    table(rows, header=("file", "size", "sha256"))
    click.echo(f"root hash  {result.record['system']['root_hash']}")
    click.echo(f"check it   erofs-edge verify {output} --key {output}/sign.pub.pem")
    click.echo(f"remake it  erofs-edge rebuild {output}")
