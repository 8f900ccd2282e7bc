# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge slots`: show which slot of a disk, image or device starts next, and the state of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.flash_show import note_table
from erofs_edge.cli.output import emit_json, json_option, note, table

if TYPE_CHECKING:
    from erofs_edge.flash.slot_state import Record
    from erofs_edge.flash.target import Target

IMAGE = click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="For a fastboot device: a disk image that has the device's partition layout.",
)


@click.group()
def slots() -> None:
    """Show the slots of a disk, disk image or device, choose the next to start, or mark them good or bad.

    \b
    Examples:
      erofs-edge slots show /dev/sdX
      erofs-edge slots activate nbd://192.0.2.7/disk b
    """


@slots.command()
@click.argument("target")
@IMAGE
@json_option
def show(target: str, image: Path | None, as_json: bool) -> None:
    """Show the state of each slot of TARGET.

    TARGET is a disk image, a block device, nbd://HOST/EXPORT, fastboot://HOST, or another address that `flash --to`
    accepts.
    """
    with _opened(target, image) as (there, record):
        _show(there, record, as_json=as_json)


@slots.command()
@click.argument("target")
@click.argument("slot")
@click.option("--force", is_flag=True, help="Activate the slot even if a write to it was interrupted.")
@IMAGE
@json_option
def activate(target: str, slot: str, force: bool, image: Path | None, as_json: bool) -> None:
    """Make SLOT of TARGET the next to start."""
    from erofs_edge.flash.slot_disk import activate as change

    with _opened(target, image, claimed=True) as (there, record):
        change(there, record, slot, force=force)
    with _opened(target, image) as (there, record):
        _show(there, record, as_json=as_json)


@slots.command()
@click.argument("target")
@click.argument("slot")
@click.argument("standing", type=click.Choice(["good", "pending", "bad"]))
@IMAGE
@json_option
def mark(target: str, slot: str, standing: str, image: Path | None, as_json: bool) -> None:
    """Mark SLOT of TARGET as good, bad, or pending (on trial)."""
    from erofs_edge.flash.slot_disk import mark as change

    with _opened(target, image, claimed=True) as (there, record):
        change(there, record, slot, standing)  # type: ignore[arg-type]
    with _opened(target, image) as (there, record):
        _show(there, record, as_json=as_json)


@contextmanager
def _opened(address: str, image: Path | None, *, claimed: bool = False) -> Iterator[tuple[Target, Record]]:
    from erofs_edge.errors import UsageError
    from erofs_edge.flash.slot_disk import read_slots
    from erofs_edge.flash.targets import find_target

    with find_target(address, image) as candidate:
        if not candidate.identity.size:
            there = Path(address).exists()
            raise UsageError("the file is empty" if there else "no such file or device", where=address)
        target = candidate.open(candidate.identity.size)
        try:
            if claimed:
                target.claim()
            yield target, read_slots(target)
        finally:
            target.close()


def _show(target: Target, record: Record, *, as_json: bool) -> None:
    from erofs_edge.flash.slot_disk import listed

    found, mend = listed(record), target.table_damage()
    note_table(mend)
    if as_json:
        going = record.under_way
        under_way = going and {"slot": going.slot.lower(), "image": going.image}
        damaged_table = mend and mend.damaged
        emit_json({"slots": found, "damaged": record.damaged, "under_way": under_way, "damaged_table": damaged_table})
        return
    if record.damaged:
        note("both copies of the slot state are damaged: the board starts from these defaults")
    rows = [
        (
            slot.name,
            "bad" if slot.standing == "bad" else f"{slot.standing} ({slot.left} starts left)",
            "next" if slot.next else "",
            "half written" if slot.incomplete else "",
        )
        for slot in found
    ]
    table(rows, header=("slot", "state", "", ""))
