# SPDX-License-Identifier: Apache-2.0
"""Find data that the target already has elsewhere, in a slot that is not being written.

There are two ways to know: digests of that slot's blocks, which a target that can hash supplies for 32 or 64 bytes per
block; or an image on this machine that the target is proved to hold. Hash trees stored on the target are never trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erofs_edge.flash.comparing import Range
from erofs_edge.flash.delta import Reference
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Plan, Region
from erofs_edge.flash.proof import hold
from erofs_edge.flash.survey import DIGEST_BYTES, WINDOW, Findings, Older, chunks, digest
from erofs_edge.flash.target import BLOCK, Ability, Target
from erofs_edge.flash.update import Layout, plan_slot, read_layout

WORTH = 4  # digests may cost a quarter of the bytes there are to send

Blocks = dict[bytes, int]
"""digest of a block → byte offset on the target where such a block stands"""


def references(baseline: Path, layout: Layout, plan: Plan, target: Target) -> dict[Region, Reference]:
    """For each region of a slot, what another slot is proved to hold: the content of an older image with the same
    layout. Empty if no slot holds that. Raises OSError, SourceError."""
    if plan.update is None:
        return {}
    with Image(baseline) as old:
        there = read_layout(old)
        if there is None or any(there.places.get(name) != place for name, place in _slotted(layout).items()):
            return {}
        for slot in layout.slots:
            regions = plan_slot(old, there, slot).contents
            if slot != plan.update.slot.lower() and hold(regions, old, target):
                return dict(zip(plan.contents, (_content(region, old) for region in regions), strict=True))
    return {}


@contextmanager
def older(baseline: Path | None, layout: Layout, plan: Plan) -> Iterator[dict[Region, Older]]:
    """Per region, an older image that the slot being written may still hold. The target is asked to confirm it."""
    if baseline is None or plan.update is None:
        yield {}
        return
    with Image(baseline) as old:
        there = read_layout(old)
        if there is None or any(there.places.get(name) != place for name, place in _slotted(layout).items()):
            yield {}
            return
        regions = plan_slot(old, there, plan.update.slot.lower()).contents
        yield {region: Older(old, one.shift, one.end) for region, one in zip(plan.contents, regions, strict=True)}


def find_copies(
    found: dict[Region, Findings],
    image: Image,
    layout: Layout,
    plan: Plan,
    target: Target,
    known: dict[Region, Reference],
) -> dict[Region, Findings]:
    """Replace writes by copies for everything that another slot holds, if the target can copy."""
    if Ability.COPY not in target.abilities or plan.update is None:
        return found
    # a checksum may match by chance
    tells = Ability.HASH in target.abilities and target.hash_name in DIGEST_BYTES
    name = target.hash_name if tells else "sha256"
    result = {}
    for region, findings in found.items():
        reference = known.get(region)
        if reference is not None:
            blocks = _of_bytes(reference, name)
        elif tells and region.data_bytes // BLOCK * DIGEST_BYTES[name] * WORTH < findings.write_bytes:
            blocks = _of_target(region, layout, plan.update.slot.lower(), target)
        else:
            blocks = {}
        result[region] = _copied(region, findings, image, blocks, name) if blocks else findings
    return result


def _copied(region: Region, found: Findings, image: Image, blocks: Blocks, name: str) -> Findings:
    """Split what has to be written into what can be copied and the rest."""
    write, copy = list[Range](), list[tuple[int, int, int]]()
    for start, length in chunks(found.write):
        data = memoryview(image.read(start - region.shift, length))
        for at in range(0, length, BLOCK):
            begin, end = start + at, start + min(at + BLOCK, length)
            source = blocks.get(digest(name, data[at : at + BLOCK])) if end - begin == BLOCK else None
            if source is None:
                _append(write, begin, end)
            elif copy and copy[-1][1] == begin and copy[-1][2] + begin - copy[-1][0] == source:
                first, _, origin = copy[-1]
                copy[-1] = (first, end, origin)
            else:
                copy.append((begin, end, source))
    return Findings(write, found.zero, found.kept, copy)


def _append(ranges: list[tuple[int, int]], start: int, end: int) -> None:
    if ranges and ranges[-1][1] == start:
        ranges[-1] = (ranges[-1][0], end)
    else:
        ranges.append((start, end))


def _of_bytes(reference: Reference, name: str) -> Blocks:
    view = memoryview(reference.data)
    ends = len(view) // BLOCK * BLOCK
    return {digest(name, view[at : at + BLOCK]): reference.start + at for at in range(0, ends, BLOCK)}


def _of_target(region: Region, layout: Layout, slot: str, target: Target) -> Blocks:
    """Digests of the other slots, up to where this image has data: systems with the same layout are placed alike."""
    base = region.name.removesuffix(f"_{slot}")
    blocks: Blocks = {}
    for other in layout.slots:
        if other == slot:
            continue
        start = layout.places[f"{base}_{other}"][0]
        for offset, length in chunks(((a - region.start, b - region.start) for a, b in region.data), WINDOW):
            pieces = [(start + offset + at, BLOCK) for at in range(0, length - BLOCK + 1, BLOCK)]
            for (place, _), answer in zip(pieces, target.digests(pieces), strict=False):
                blocks.setdefault(answer, place)
    return blocks


def _content(region: Region, image: Image) -> Reference:
    """All of a region up to the end of its data, with holes as zeros."""
    end = max((end for _, end in region.data), default=region.start)
    return Reference(region.start, b"".join(_pieces(region, image, end)))


def _pieces(region: Region, image: Image, end: int) -> Iterator[bytes]:
    for start, length in chunks([(region.start, end)]):
        yield image.read(start - region.shift, length)


def _slotted(layout: Layout) -> dict[str, tuple[int, int]]:
    names = [f"{base}_{slot}" for base in layout.bases for slot in layout.slots]
    return {name: layout.places[name] for name in names}
