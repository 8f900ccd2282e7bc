# SPDX-License-Identifier: Apache-2.0
"""Find out whether a target holds all of some regions, with as few exchanges as the target needs.

Where it differs is not asked here. So a target that proves large ranges at once needs one exchange for everything, and
starts few programs for it; see `survey.py` for the places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Region
from erofs_edge.flash.survey import chunks, holds, joined, start_digest
from erofs_edge.flash.target import BLOCK, Target
from erofs_edge.threads import Threads

DATA_AT_ONCE, ZEROS_AT_ONCE = 512 << 20, 1 << 30
"""bytes in one exchange: at 10 MB/s, a slow card reads this in two minutes"""
PIECE = 1 << 20  # bytes of the image that are read at a time


def hold(regions: Sequence[Region], image: Image, target: Target) -> bool:
    """Whether the target holds all of these regions. What differs in their first or last blocks, as two builds nearly
    always do, is not looked at any further. Raises OSError if the target fails, SourceError if the image does."""
    if not target.proof:
        return all(holds(region, image, target) for region in regions)
    return not any(_differs(region, image, target) for region in regions) and prove(regions, image, target)


def prove(regions: Sequence[Region], image: Image, target: Target) -> bool:
    """As `hold`, for regions that were just written. The target must have a `proof`."""
    groups = _groups(_parts(regions, target.proof))
    return all(_proved(group, image, target) for group in groups)


class _Part(NamedTuple):
    """Bytes [start, start + length) of the target: data, or zeros of which the image has none. Byte X is byte X -
    `shift` of the image."""

    start: int
    length: int
    shift: int
    is_data: bool


def _parts(regions: Sequence[Region], most: int) -> Iterator[_Part]:
    """The data, in equal parts of up to `most` bytes, then all holes that are not hashed with data."""
    for region in regions:
        for start, end in joined(region):
            count = -(-(end - start) // most)
            size = -(-(end - start) // (count * BLOCK)) * BLOCK
            yield from (_Part(at, length, region.shift, True) for at, length in chunks([(start, end)], size))
    for region in regions:
        holes = region._replace(data=tuple(joined(region))).zeros()
        yield from (_Part(at, length, 0, False) for at, length in chunks(holes, ZEROS_AT_ONCE))


def _groups(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Parts for one exchange each."""
    group, data, zeros = list[_Part](), 0, 0
    for part in parts:
        data, zeros = data + part.length * part.is_data, zeros + part.length * (not part.is_data)
        if group and (data > DATA_AT_ONCE or zeros > ZEROS_AT_ONCE):
            yield group
            group, data, zeros = [], part.length * part.is_data, part.length * (not part.is_data)
        group.append(part)
    if group:
        yield group


def _proved(group: list[_Part], image: Image, target: Target) -> bool:
    """Whether the target holds these parts."""
    data = [part for part in group if part.is_data]
    name = target.hash_name
    with Threads(1) as meanwhile:  # our digests are computed while the target computes its own
        making = meanwhile.submit(lambda: [_digest(name, image, part) for part in data])
        answers, are_zeros = target.prove(
            [(part.start, part.length) for part in data],
            [(part.start, part.length) for part in group if not part.is_data],
        )
        return are_zeros and answers == making.result()


def _digest(name: str, image: Image, part: _Part) -> bytes:
    """The digest that the target must give, made from pieces that stay in the processor's cache."""
    made, buffer = start_digest(name), bytearray(PIECE)
    for at, length in chunks([(part.start - part.shift, part.start - part.shift + part.length)], PIECE):
        if length != len(buffer):
            buffer = bytearray(length)
        image.read_into(at, buffer)
        made.update(buffer)
    return made.digest()


def _differs(region: Region, image: Image, target: Target) -> bool:
    """Whether the first or the last block of the data differs."""
    if not region.data:
        return False
    first, last = region.data[0], region.data[-1]
    ends = {first[0]: min(BLOCK, first[1] - first[0])}
    ends[max(last[0], last[1] - BLOCK)] = min(BLOCK, last[1] - last[0])
    return any(target.read(start, length) != image.read(start - region.shift, length) for start, length in ends.items())
