# SPDX-License-Identifier: Apache-2.0
"""Decide what to do with a target: write a whole disk, update one slot, repair, or nothing."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from erofs_edge.disk import slots
from erofs_edge.errors import DeviceRefusedError, UsageError, VerificationError
from erofs_edge.flash.guarded import Guarded
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Plan, Region, plan_flash
from erofs_edge.flash.proof import hold
from erofs_edge.flash.resemblance import refuse_other_file, resembles
from erofs_edge.flash.slot_state import Record, SlotUpdate
from erofs_edge.flash.survey import Findings, Step, compare, everything
from erofs_edge.flash.target import Ability, Target
from erofs_edge.flash.update import Layout, plan_slot, plan_update, read_layout, read_record, refuse_misfit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from erofs_edge.disk.gpt_copies import Mend
    from erofs_edge.flash.delta import Reference

SECTOR = 512  # bytes of the MBR
REPAIRABLE = 0.5  # if more than this share of a slot's data is wrong, it does not count as a damaged copy of the image


class Wish(NamedTuple):
    """What the user asks for.

    slot      write this slot and no other
    whole     treat the target as a blank disk: table, all slots, empty data partition
    full      write everything, whatever the target holds
    resume    compare a whole disk first, even if it does not look as if it held any of the image
    baseline  an older image that another slot may hold: the target makes the new one from that, if it can
    """

    slot: str | None = None
    whole: bool = False
    full: bool = False
    resume: bool = False
    baseline: Path | None = None


class Prepared(NamedTuple):
    """What will be done. `found`: what the target lacks, by region; None if everything is written without looking.
    `state`: the target's slot state, None if it has none of the image's layout. `known`: what another slot is proved to
    hold, by the region that can be made from it."""

    plan: Plan
    found: dict[Region, Findings] | None
    state: Record | None = None
    known: Mapping[Region, Reference] = MappingProxyType({})

    @property
    def todo(self) -> dict[Region, Findings]:
        """What has to be written and zeroed, by region."""
        return {r: everything(r) if self.found is None else self.found[r] for r in self.plan.regions}

    @property
    def nothing_to_do(self) -> bool:
        right = self.found is not None and all(found.right for found in self.found.values())
        return right and self.plan.update is None and not self.plan.mended_bytes


def prepare(image: Path, target: Target, wish: Wish, step: Step) -> Prepared:
    """Look at the target and decide. Nothing is written.

    Raises as `plan_flash` and `plan_update` do; PartialWriteError if the target cannot be read; UsageError if a slot is
    given for an image or target without slots; DeviceRefusedError if the target's slots are not those of the image.
    """
    with Image(image) as source, Guarded(target, "target", "reading"):
        layout = None if wish.whole else read_layout(source)
        record = None if layout is None else read_record(layout, target)
        if layout is None or record is None:
            if layout is not None:
                refuse_misfit(layout, target)
            if wish.slot is not None:
                raise UsageError(
                    "--slot: the target does not have the image's slots, or was left half written as a whole",
                    where=target.identity.path,
                    hint="without --slot, the whole disk is written",
                )
            if not (wish.whole or wish.full):
                refuse_other_file(source, target)
            plan = _whole(image, target)
            compared = not wish.full and Ability.TABLE not in target.abilities
            compared = compared and (wish.resume or (not wish.whole and resembles(plan.regions, source, target)))
            return Prepared(plan, compare(plan.regions, source, target, step) if compared else None)
        can_read, mend = Ability.READ in target.abilities, _damage(source, target)
        if wish.slot is None and not wish.full and can_read:
            running = slots.active(record.state).lower()
            plan = plan_slot(source, layout, running)._replace(mend=mend)
            with step(f"Comparing slot {running}"):
                right = hold(plan.contents, source, target)
            if right:
                return Prepared(plan, {region: Findings(kept=region.size) for region in plan.contents}, record)
        try:
            plan = plan_update(source, layout, record, wish.slot, target.abilities)._replace(mend=mend)
        except DeviceRefusedError as error:
            error.where = target.identity.path  # what the user named, not the partition that holds the state
            raise
        if wish.full or not can_read:
            return Prepared(plan, None, record)
        from erofs_edge.flash.copies import find_copies, older  # a whole disk has no other slot

        with older(wish.baseline, layout, plan) as before:
            found = compare(plan.regions, source, target, step, before)
        known = _known(wish, layout, plan, target, step) if any(f.write for f in found.values()) else {}
        if Ability.PATCH not in target.abilities or not known:
            found = find_copies(found, source, layout, plan, target, known)
        return Prepared(plan, found, record, known)


def prepare_check(image: Path, target: Target, slot: str | None, step: Step) -> Prepared:
    """What differs from the image: in a slot (by default the one that starts next), or on a disk without slots.

    Raises as `prepare` does."""
    with Image(image) as source, Guarded(target, "target", "reading"):
        layout = read_layout(source)
        record = None if layout is None else read_record(layout, target)
        if layout is None or record is None:
            plan = _readable(image, target)
        else:
            name = (slot or slots.active(record.state)).lower()
            if name not in layout.slots:
                raise UsageError(f"no slot {name!r}", hint=f"slots: {', '.join(layout.slots)}")
            plan = plan_slot(source, layout, name)._replace(mend=_damage(source, target))
        return Prepared(plan, compare(plan.regions, source, target, step), record)


def prepare_repair(image: Path, target: Target, slot: str | None, step: Step) -> list[Prepared]:
    """What is wrong in each slot that holds this image, or on a disk without slots. A slot in use is repaired in place.

    Raises VerificationError if nothing on the target is a copy of the image, DeviceRefusedError if its slots are not
    those of the image.
    """
    with Image(image) as source, Guarded(target, "target", "reading"):
        layout = read_layout(source)
        record = None if layout is None else read_record(layout, target)
        if layout is None or record is None:
            if layout is not None:
                refuse_misfit(layout, target)
            return [_repair_of_disk(_readable(image, target), source, target, step)]
        mend = _damage(source, target)
        wanted = layout.slots if slot is None else (slot.lower(),)
        found = [_repair_of(source, layout, record, name, target, step) for name in wanted if name in layout.slots]
    copies = [prepared for prepared in found if prepared is not None]
    if not copies:
        raise VerificationError(
            "no slot holds this image: each holds another build, or more than half of it differs",
            where=target.identity.path,
            hint="flash it without --repair",
        )
    copies[-1] = copies[-1]._replace(plan=copies[-1].plan._replace(mend=mend))
    return copies


def refuse_differences(prepared: Prepared, target: Target) -> None:
    """Raises VerificationError, listing the first differences, if the target differs from the image."""
    wrong = {region: found for region, found in prepared.todo.items() if not found.right}
    if not wrong:
        return
    bytes_wrong = sum(found.write_bytes + found.zero_bytes for found in wrong.values())
    first = ", ".join(f"'{region.name}' at {min((*found.write, *found.zero))[0]:#x}" for region, found in wrong.items())
    raise VerificationError(
        f"{bytes_wrong} bytes differ from the image, the first in {first}",
        where=target.identity.path,
        hint="run the same command without --verify-only to write them",
    )


def _damage(image: Image, target: Target) -> Mend | None:
    """What is wrong with the table that the target keeps."""
    return target.table_damage(image.read(0, min(image.size, SECTOR)))


def _known(wish: Wish, layout: Layout, plan: Plan, target: Target, step: Step) -> dict[Region, Reference]:
    """What another slot holds, if that is of use."""
    if wish.baseline is None or not (Ability.COPY | Ability.PATCH) & target.abilities:
        return {}
    from erofs_edge.flash.copies import references

    with step(f"Comparing the other slots with {wish.baseline.name}"):
        return references(wish.baseline, layout, plan, target)


def _whole(image: Path, target: Target) -> Plan:
    """A whole disk; if the target makes its own table, only what lies in partitions."""
    plan = plan_flash(image, target.identity)
    if Ability.TABLE not in target.abilities:
        return plan
    return plan._replace(contents=tuple(region for region in plan.contents if region.in_partition))


def _readable(image: Path, target: Target) -> Plan:
    """What can be compared of a whole disk: everything, or the partitions if the target makes its own table.

    Raises VerificationError if such a target lacks one of them.
    """
    plan = _whole(image, target)
    if Ability.TABLE not in target.abilities:
        return plan
    there = target.partitions()
    for region in plan.contents:
        if region.name not in there or there[region.name][1] < region.end:
            raise VerificationError(
                f"the device has no partition '{region.name}' of {region.size} bytes, as the image does",
                where=target.identity.path,
                hint="run the same command without --verify-only or --repair to write it",
            )
    return plan._replace(table=())


def _repair_of_disk(plan: Plan, image: Image, target: Target, step: Step) -> Prepared:
    found = compare(plan.regions, image, target, step)
    wrong = sum(f.write_bytes + f.zero_bytes for region, f in found.items() if region.from_image)
    if wrong > plan.data_bytes * REPAIRABLE:
        raise VerificationError(
            "this disk does not hold the image: more than half of it differs",
            where=target.identity.path,
            hint="flash it without --repair",
        )
    return Prepared(plan, found)


def _repair_of(
    image: Image, layout: Layout, record: Record, slot: str, target: Target, step: Step
) -> Prepared | None:  # fmt: skip
    from erofs_edge.flash.builds import is_other_build  # only a repair needs it, and what it loads

    plan = plan_slot(image, layout, slot)
    found = compare(plan.regions, image, target, step)
    data = sum(region.data_bytes for region in plan.contents)
    if sum(findings.write_bytes for findings in found.values()) > data * REPAIRABLE:
        return None
    if any(findings.write and is_other_build(region, image, target) for region, findings in found.items()):
        return None
    if slots.standing(record.state, slot) == "bad" and not all(findings.right for findings in found.values()):
        # what is intact again may show that it works; until then nothing changes for the running system
        update = SlotUpdate(record, slot.upper(), record.state, slots.mark(record.state, slot, "pending"), "0" * 64)
        plan = plan._replace(update=update)
    return Prepared(plan, found, record)
