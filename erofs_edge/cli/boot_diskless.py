# SPDX-License-Identifier: Apache-2.0
"""``erofs-edge boot --diskless``: boot with the system coming over the network, from a server started here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erofs_edge.cli.boot_files import check_log
from erofs_edge.cli.built import built
from erofs_edge.cli.options import together
from erofs_edge.cli.output import emit_json, size_text
from erofs_edge.cli.to_file import check_output
from erofs_edge.errors import UsageError

if TYPE_CHECKING:
    from erofs_edge.qemu.diskless import DisklessRecord, Wish
    from erofs_edge.qemu.smoke import Observer

FILE = click.Path(dir_okay=False, path_type=Path)
GIVEN = click.Path(exists=True, dir_okay=False, path_type=Path)
diskless_options = together(
    click.option(
        "--diskless", is_flag=True, help="With --smoke, boot without a disk: the system comes over the network."
    ),
    click.option(
        "--trace", type=FILE, metavar="FILE", help="With --diskless, write a trace of what was read, in order."
    ),
    click.option("--prefetch", type=GIVEN, metavar="TRACE", help="With --diskless, prefetch what TRACE lists."),
    click.option(
        "--data",
        type=FILE,
        metavar="FILE",
        help="With --diskless, the board's writable disk, served over the network; created if needed.",
    ),
    click.option(
        "--http", is_flag=True, help="With --diskless, U-Boot fetches the boot image over HTTP instead of TFTP."
    ),
    click.option("--tls", is_flag=True, help="With --diskless, encrypt, with certificates made for this boot."),
)
"""the options of a diskless boot, passed to the command as additional arguments"""


def refuse_without(options: dict[str, Any]) -> None:
    """Raises UsageError if an option of a diskless boot is given without --diskless."""
    for name in ("trace", "prefetch", "data", "http", "tls"):
        if options[name]:
            raise UsageError(f"--{name} needs --diskless")


def boot_diskless(
    board: Path, out: Path | None, options: dict[str, Any], observer: Observer, *, as_json: bool
) -> None:  # fmt: skip
    """Boot a board with these options and print the result."""
    from erofs_edge.qemu.diskless import diskless_smoke
    from erofs_edge.trace.record import write_trace
    from erofs_edge.trust.signer import open_signer

    loaded, folder = built(board, out)
    check_log(observer.log, folder, options["trace"], options["prefetch"], options["data"])
    if options["trace"] is not None:
        check_output(options["trace"])
    signer = open_signer(loaded.value.sign.key)
    record, trace = diskless_smoke(loaded, folder, signer, wish=_wish(folder, options), observer=observer)
    if trace is not None and options["trace"] is not None:
        write_trace(trace, options["trace"])
    if as_json:
        emit_json(record)
    else:
        click.echo(_summary(record))


def _wish(folder: Path, options: dict[str, Any]) -> Wish:
    from erofs_edge.cli.diskless import runs_of
    from erofs_edge.qemu.diskless import Wish

    prefetch = runs_of(options["prefetch"], folder) if options["prefetch"] is not None else ()
    return Wish(
        prefetch=prefetch,
        data=options["data"],
        trace=options["trace"] is not None,
        tls=options["tls"],
        http=options["http"],
    )


def _summary(record: DisklessRecord) -> str:
    return (
        f"{record.board}: up after {record.seconds:.2f} s, diskless; read {size_text(record.bytes_read)} in "
        f"{record.requests} requests of an image of {size_text(record.image_bytes)} "
        f"({record.bytes_read / record.image_bytes:.1%}), touched {size_text(record.bytes_touched)}"
    )
