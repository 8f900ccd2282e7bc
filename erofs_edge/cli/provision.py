# SPDX-License-Identifier: Apache-2.0
"""``erofs-edge provision``: make the system that a board starts in order to be flashed."""

from __future__ import annotations

from pathlib import Path

import click

from erofs_edge.cli.output import emit_json, json_option, note, size_text, step
from erofs_edge.cli.to_file import write_file
from erofs_edge.errors import ErofsEdgeError


@click.command()
@click.argument("board", metavar="BOARD", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="Output folder.  [default: out/BOARD/provision]")  # fmt: skip
@click.option("--key", metavar="URI", help="Sign with this key instead of the board's sign.key.")
@click.option(
    "--tls", "folder_of_tls", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
    help="Make the board require TLS with the certificates in FOLDER, which are created if needed.",
)  # fmt: skip
@json_option
def provision(board: Path, out: Path | None, key: str | None, folder_of_tls: Path | None, as_json: bool) -> None:
    """Make the provisioning system of BOARD: vmlinuz, initramfs, and both together as a signed FIT.

    A board that runs it can be flashed over the network.

    \b
    Example:
      erofs-edge provision rpi4
      (boot the board from out/rpi4/provision, by TFTP or from a card)
      erofs-edge flash rpi4 --to provision://192.0.2.7
    """
    from erofs_edge.manifest.load import load_board
    from erofs_edge.manifest.lockfile import load_lock, lock_path
    from erofs_edge.provision.initramfs import build_provisioning
    from erofs_edge.sources.cache import Cache
    from erofs_edge.trust.signer import open_signer

    loaded = load_board(board)
    value = loaded.value
    folder = out or Path("out") / value.board / "provision"
    credentials = _credentials(folder_of_tls) if folder_of_tls else None
    with step("provisioning system"):
        made = build_provisioning(value, load_lock(lock_path(loaded.path)), Cache(), credentials)
        fit = made.fit(open_signer(key or value.sign.key), value.boot.load_address)
    files = {"vmlinuz": made.kernel, "initramfs": made.initramfs, "provision.fit": fit}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ErofsEdgeError(f"cannot write: {error.strerror}", where=str(folder)) from error
    for name, data in files.items():
        write_file(folder / name, data, name)
    if as_json:
        emit_json({"folder": folder, "files": {name: len(data) for name, data in files.items()}})
        return
    click.echo("\n".join(f"{folder / name}  {size_text(len(data))}" for name, data in files.items()))


def _credentials(folder: Path) -> dict[str, bytes]:
    """Return the board's credentials: new ones for a new folder, otherwise the existing ones."""
    from erofs_edge.provision.credentials import AUTHORITY, board_credentials, make_credentials, write_credentials

    if not (folder / AUTHORITY).exists():
        try:
            write_credentials(folder, make_credentials())
        except OSError as error:
            raise ErofsEdgeError(f"cannot write: {error.strerror}", where=str(folder)) from error
        note(f"this board can be flashed with --to provisions://HOST?tls-certificates={folder}")
    return board_credentials(folder)
