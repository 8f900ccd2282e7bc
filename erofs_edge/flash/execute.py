# SPDX-License-Identifier: Apache-2.0
"""Carry out a plan on a target: compare, write what differs, read back, and only then make it bootable.

The last thing written is the partition table of a whole disk; it is the slot state if one slot is updated, and if the
target makes the table itself, which it then does first. If a copy of a table that the target keeps is damaged, it is
mended after that: nothing written before needs it. Holes in a region are written as zeros, because a hash tree
covers them as zeros. The proof is a reading of the medium, or a digest that the target makes of it, compared with what
was read from the image.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from erofs_edge.flash import slot_state
from erofs_edge.flash.comparing import Range
from erofs_edge.flash.guarded import Guarded
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Plan, Region
from erofs_edge.flash.readback import Expected, check, unlike
from erofs_edge.flash.survey import NOWHERE, Findings, Step, chunks, everything
from erofs_edge.flash.target import BLOCK, Ability, Target
from erofs_edge.threads import Threads, ahead

if TYPE_CHECKING:
    from collections.abc import Mapping

    from erofs_edge.disk.gpt_copies import Mend
    from erofs_edge.flash.delta import Frame, Reference
    from erofs_edge.flash.pace import Pace

LITTLE = 4 << 20  # bytes; less than this is not worth measuring which way is faster


class RegionResult:
    """What was done to one region, in bytes and seconds. `kept` is what was already right."""

    def __init__(self, name: str, start: int, size: int) -> None:
        self.name, self.start, self.size = name, start, size
        self.written = self.zeroed = self.copied = self.kept = self.verified = 0
        self.write_seconds = self.verify_seconds = 0.0
        self.expected = Expected()


def flash(
    plan: Plan,
    target: Target,
    step: Step,
    *,
    verify: bool = True,
    found: dict[Region, Findings] | None = None,
    known: Mapping[Region, Reference] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[RegionResult]:
    """Make the target hold the image.

    found   what was seen of the target before: correct data is kept, and if nothing differs nothing is written. Without
            it, everything except holes is written
    known   what another slot holds, so that a target that can unpack is sent deltas
    clock   seconds; the timings decide only how much is sent packed to a target that can unpack

    Raises PartialWriteError (or CapacityError if the disk under a file is full) when a write fails, SourceError if the
    image cannot be read, VerificationError if what is read back is not what was written.
    """
    results = {region: RegionResult(region.name, region.start, region.size) for region in plan.regions}
    with Image(plan.image) as image, Threads(2) as pool:
        by_name = Ability.TABLE in target.abilities
        verify = verify and bool((Ability.READ | Ability.HASH) & target.abilities)
        job = _Job(image, target, pool, step, clock, remembers=verify and Ability.HASH not in target.abilities)
        for region, findings in (found or {}).items():
            if findings.right:  # it was compared a moment ago: that is its proof
                results[region].kept = results[region].verified = region.size
        if found is None or not all(findings.right for findings in found.values()):
            state = _state(plan, image) if by_name else ()
            job.begin(plan, state)
            if Ability.PATCH in target.abilities:
                job.measure(sum((found[r] if found else everything(r)).write_bytes for r in plan.contents))
            for stage in (tuple(r for r in plan.contents if r not in state), state if by_name else plan.table):
                for region in stage:
                    seen = None if found is None or stage is plan.table else found[region]
                    job.write(region, results[region], seen, (known or {}).get(region), last=stage is plan.table)
                for region in stage if verify else ():
                    job.verify(region, results[region])
        job.confirm(plan)
        mended = [job.mend(plan.mend, verify=verify)] if plan.mend is not None and plan.mend.writes else []
    target.finish()
    return [*results.values(), *mended]


def _state(plan: Plan, image: Image) -> tuple[Region, ...]:
    """The region of the slot state, if the plan writes one."""
    from erofs_edge.flash.update import find_state

    table = image.table()
    found = find_state(table, image.read) if table is not None else None
    return tuple(region for region in plan.contents if found is not None and region.name == found[0])


class _Job:
    """One image on its way to one target. `remembers`: keep digests of what is written, for the reading back."""

    def __init__(
        self, image: Image, target: Target, pool: Threads, step: Step, clock: Callable[[], float], *, remembers: bool
    ) -> None:
        self.image, self.target, self.pool, self.step, self.clock = image, target, pool, step, clock
        self.remembers = remembers
        self.pace: Pace | None = None

    def measure(self, size: int) -> None:
        """Announce the number of bytes to send to a target that can unpack: unless few, find out the fastest way."""
        if size > LITTLE:
            from erofs_edge.flash.pace import Pace

            self.pace = Pace(self.target.effort)

    def begin(self, plan: Plan, state: tuple[Region, ...]) -> None:
        """Before anything else changes, record on the medium that nothing may boot from what is about to change.
        `state`: the slot state of a disk whose table the target makes."""
        if plan.update is not None:
            with self.step(f"Closing slot {plan.update.slot.lower()}"), Guarded(self.target, "slot state"):
                slot_state.begin(self.target, plan.update)
        elif plan.table and Ability.TABLE in self.target.abilities:
            with self.step("Writing the partition table"), Guarded(self.target, "gpt"):
                self.target.make_table(self.image.read(0, plan.table[-1].size))
                for region in state:
                    slot_state.begin_whole(self.target, region.start, region.size)
        elif plan.table:
            head, end = plan.table[-1], self.target.identity.size
            with self.step("Erasing old table"), Guarded(self.target, head.name) as at:
                for start, size in ((head.start, head.size), (end - BLOCK, BLOCK)):
                    at.offset = start
                    if start == head.start or self.target.read(start, size) != NOWHERE[:size]:
                        self.target.zero(start, size)
                        self.target.flush()

    def confirm(self, plan: Plan) -> None:
        """Everything is proved: make this slot the next to start."""
        if plan.update is None:
            return
        with Guarded(self.target, "slot state", "reading"):
            due = slot_state.is_due(self.target, plan.update)
        if due:
            with self.step(f"Opening slot {plan.update.slot.lower()}"), Guarded(self.target, "slot state"):
                slot_state.end(self.target, plan.update)

    def mend(self, mend: Mend, *, verify: bool) -> RegionResult:
        """Write what makes the damaged copy of the table whole, one piece after the other."""
        name, result = mend.region, RegionResult(mend.region, mend.start, mend.size)
        started = time.monotonic()
        with (
            self.step(f"Writing '{name}' ({-(-mend.size >> 10)} KB)") as progress,
            Guarded(self.target, name) as at,
        ):
            for offset, data in mend.writes:
                at.offset = offset
                self._write_all(offset, data, at)
                self.target.flush_part(offset, len(data))
                result.written += len(data)
                progress(result.written, mend.size)
        result.write_seconds = time.monotonic() - started
        if verify:
            started = time.monotonic()
            with self.step(f"Verifying '{name}'"), Guarded(self.target, name, "reading back"):
                if wrong := [at for at, data in mend.writes if not self.target.holds(at, bytearray(data))]:
                    raise unlike(name, wrong, self.target)
            result.verified, result.verify_seconds = mend.size, time.monotonic() - started
        return result

    def write(
        self, region: Region, result: RegionResult, found: Findings | None, reference: Reference | None, *, last: bool
    ) -> None:  # fmt: skip
        """Write what differs, or everything if that is not known. `last`: all contents are proved by now, and data read
        for that may stay cached for the next reader."""
        if found is not None and found.right:
            return
        todo = found or everything(region)
        label = f"Writing '{region.name}' ({todo.write_bytes >> 10} KB)"
        if not todo.write:
            label = f"Zeroing '{region.name}' ({todo.zero_bytes >> 10} KB)"
        started = time.monotonic()
        with self.step(label) as progress, Guarded(self.target, region.name) as at:
            result.kept = todo.kept

            def told() -> None:
                progress(result.written + result.zeroed + result.copied + result.kept, region.size)

            for start, end in todo.zero:
                self._zero(start, end, result, at)
                told()
            for start, end, source in todo.copy:
                at.offset = start
                self.target.copy(source, start, end - start)
                result.copied += end - start
                told()
            ranges = iter(todo.write)
            if Ability.PATCH in self.target.abilities:
                ranges = self._unpacked(region, todo, result, reference, at, told)
            for start, length in chunks(ranges):
                at.offset = start
                if not self.target.send(start, self.image.fileno(), start - region.shift, length):
                    data = self.image.read(start - region.shift, length)
                    if self.remembers:
                        result.expected.remember(self.pool, start, data)
                    self._write_all(start, data, at)
                result.written += length
                told()
            if last:
                self.target.flush_part(region.start, region.size)
            else:
                self.target.flush()
        result.write_seconds = time.monotonic() - started

    def _unpacked(
        self,
        region: Region,
        todo: Findings,
        result: RegionResult,
        reference: Reference | None,
        at: Guarded,
        told: Callable[[], None],
    ) -> Iterator[Range]:
        """Send the parts that are smaller when packed, and return the other ranges as they come. The next part is
        packed meanwhile.
        """
        from erofs_edge.flash.delta import Frame

        for piece in self._pieces(region, todo, reference):
            if not isinstance(piece, Frame):
                yield piece
                continue
            at.offset, source = piece.start, piece.reference
            self.target.patch(
                source.start if source else 0, source.length if source else 0, piece.start, piece.length, piece.data
            )
            result.written += piece.wrong
            told()

    def _pieces(self, region: Region, todo: Findings, reference: Reference | None) -> Iterator[Frame | Range]:
        """Frames and ranges, in the order of the region."""
        if reference is None and self.pace is not None:
            from erofs_edge.flash.turns import Turns

            return iter(Turns(region, todo, self.image, self.pool, self.pace, self.target.settle, self.clock))
        from erofs_edge.flash.delta import frames

        return ahead(frames(region, todo, self.image, reference), self.pool)

    def verify(self, region: Region, result: RegionResult) -> None:
        """Read back a region of which anything was written."""
        if result.verified == region.size and not (result.written or result.zeroed or result.copied):
            return
        started = time.monotonic()
        with (
            self.step(f"Verifying '{region.name}'") as progress,
            Guarded(self.target, region.name, "reading back") as at,
        ):

            def told(done: int, place: int) -> None:
                at.offset = place
                progress(done, region.size)

            check(region, self.image, self.target, result.expected, self.pool, told)
        result.verified = region.size
        result.verify_seconds = time.monotonic() - started

    def _write_all(self, offset: int, data: bytes, at: Guarded) -> None:
        view = memoryview(data)
        while view:
            done = self.target.write(offset, view)
            if not 0 < done <= len(view):
                raise OSError(errno.EIO, "the device takes no more data")
            view, offset = view[done:], offset + done
            at.offset = offset

    def _zero(self, start: int, end: int, result: RegionResult, at: Guarded) -> None:
        """Turn a range into zeros; pieces that are zeros already are only read."""
        zeroed = 0
        for offset, length in chunks(self.target.data(start, end - start)):
            at.offset = offset
            if self.target.cheap_zeros or self.target.read(offset, length) != NOWHERE[:length]:
                self.target.zero(offset, length)
                zeroed += length
        result.zeroed += zeroed
        result.kept += end - start - zeroed
