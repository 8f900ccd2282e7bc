# SPDX-License-Identifier: Apache-2.0
"""``erofs-edge installer``: make a medium that installs a build."""

from __future__ import annotations

from pathlib import Path

import click

from erofs_edge.cli.built import built, check_built
from erofs_edge.cli.output import emit_json, json_option, size_text, step, table


@click.command()
@click.argument("board", metavar="BOARD", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="The folder in which BOARD was built.  [default: out/BOARD]")  # fmt: skip
@click.option("--to", "path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Output file.  [default: installer.img in the build's folder]")  # fmt: skip
@click.option(
    "--disk", metavar="NAME", default="", help="Install on this disk (e.g. nvme0n1).  [default: the only disk there]"
)
@click.option("--overwrite", is_flag=True, help="Install even if the disk is not blank; all data on it is lost.")
@json_option
def installer(board: Path, out: Path | None, path: Path | None, disk: str, overwrite: bool, as_json: bool) -> None:
    """Make installer.img, the image of a USB stick that BOARD boots from and that installs its build to both slots.

    For boards with UEFI firmware. The medium is signed with the board's key, and what it writes is read back.

    \b
    Example:
      erofs-edge installer generic-uefi-arm64
      erofs-edge flash --image out/generic-uefi-arm64/installer.img --to /dev/sdX
    """
    import re

    from erofs_edge.diskless.start import board_lock
    from erofs_edge.errors import UsageError
    from erofs_edge.installer.medium import Wanted, make_medium
    from erofs_edge.sources.cache import Cache
    from erofs_edge.trust.signer import open_signer

    if not re.fullmatch(r"[a-z0-9]*", disk):
        raise UsageError(f"--disk {disk}: not a kernel name of a disk", hint="for example --disk nvme0n1")
    loaded, folder = built(board, out)
    if loaded.value.boot.uefi is not None:  # otherwise a build would not help
        check_built(board, out, folder)
    with step("installer medium"):
        made = make_medium(
            loaded.value, board_lock(loaded.path, folder), folder, path or folder / "installer.img",
            Wanted(disk, overwrite), open_signer(loaded.value.sign.key), Cache(),
        )  # fmt: skip
    if as_json:
        emit_json(made)
        return
    table(
        [
            ("medium", f"{made.path}, {size_text(made.size)}"),
            ("installs", f"{size_text(made.installed)} on a disk of {size_text(made.disk_size)} or more"),
            ("write it", f"erofs-edge flash --image {made.path} --to /dev/sdX"),
        ]
    )
