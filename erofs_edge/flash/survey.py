# SPDX-License-Identifier: Apache-2.0
"""What a target holds of a region already, proved: by reading it, or by digests that the target makes itself.

Nobody's memory of earlier writes counts, and no hash tree that the target stores: a tree says what ought to be there.
Where the target hashes, the proof goes top down: a digest for each MiB, and only where that differs for smaller pieces,
so that the wire carries about 32 bytes for each MiB that is right.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache

from erofs_edge.flash.comparing import CHUNK, Range, pieces
from erofs_edge.flash.comparing import differences as by_reading
from erofs_edge.flash.guarded import Guarded
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Region
from erofs_edge.flash.target import BLOCK, Ability, Target

STEPS = (1 << 20, 64 << 10, BLOCK)  # bytes of the pieces that are asked for, from the top down
WINDOW = 32 << 20  # bytes that one exchange of digests is about
NOWHERE = bytes(CHUNK)
DIGEST_BYTES = {"sha256": 32, "sha256-232": 29}

Progress = Callable[[int, int], None]
Step = Callable[[str], AbstractContextManager[Progress]]
"""step("Writing 'boot_a'") around each piece of work; what it yields is told (done, total) in bytes"""
Told = Callable[[int], None]
"""told(bytes looked at so far)"""


@dataclass(slots=True)
class Findings:
    """Ranges (start, end) of the target in which it differs from the image: `write` data there, make `zero` zeros,
    `copy` (start, end, source) from another place of the target. `kept`: bytes that are right."""

    write: list[Range] = field(default_factory=list)
    zero: list[Range] = field(default_factory=list)
    kept: int = 0
    copy: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """The target holds the whole region."""
        return not (self.write or self.zero or self.copy)

    @property
    def write_bytes(self) -> int:
        return sum(end - start for start, end in self.write)

    @property
    def copy_bytes(self) -> int:
        return sum(end - start for start, end, _ in self.copy)

    @property
    def zero_bytes(self) -> int:
        return sum(end - start for start, end in self.zero)


def everything(region: Region) -> Findings:
    """What there is to do where nothing is known: all of the data, and all of the holes."""
    return Findings(list(region.data), list(region.zeros()))


def survey(region: Region, image: Image, target: Target, told: Told = lambda done: None) -> Findings:
    """Compare a region with the image. Raises OSError where the target fails, SourceError where the image does."""
    found = Findings()
    for is_data, start, end in differences(region, image, target, told):
        ranges = found.write if is_data else found.zero
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    found.kept = region.size - found.write_bytes - found.zero_bytes
    return found


def compare(regions: Sequence[Region], image: Image, target: Target, step: Step) -> dict[Region, Findings]:
    """What the target lacks of each region. Raises PartialWriteError or DeviceError where it fails."""
    found = {}
    for region in regions:
        with step(f"Comparing '{region.name}'") as progress, Guarded(target, region.name, "reading"):

            def told(done: int, size: int = region.size, progress: Progress = progress) -> None:
                progress(done, size)

            found[region] = survey(region, image, target, told)
    return found


def holds(region: Region, image: Image, target: Target) -> bool:
    """Whether the target holds the whole region; ends at the first difference."""
    return next(differences(region, image, target), None) is None


def differences(
    region: Region, image: Image, target: Target, told: Told = lambda done: None
) -> Iterator[tuple[bool, int, int]]:
    """(whether the image has data there, start, end) of all that differs: first in the data, then in the holes."""
    if Ability.HASH in target.abilities:
        yield from _hashed(region, image, target, told)
    else:
        ought = region.data, lambda at, buffer: image.read_into(at - region.shift, buffer)
        yield from ((True, *found) for found in by_reading(*ought, target, told))
        yield from ((False, *found) for found in by_reading(_holes(region, target), _clear, target))
    told(region.size)


def _hashed(region: Region, image: Image, target: Target, told: Told) -> Iterator[tuple[bool, int, int]]:
    done, name = 0, target.hash_name
    for start, length in chunks(region.data, WINDOW):
        want = _Digests(name, image.read(start - region.shift, length))
        for first, last in _by_digest(target, start, length, want):
            yield True, first, last
        done += length
        told(done)
    for start, length in chunks(_holes(region, target), WINDOW):
        for first, last in _by_digest(target, start, length, lambda at, length: zero_digest(name, length)):
            yield False, first, last


def _holes(region: Region, target: Target) -> Iterator[Range]:
    return (piece for start, end in region.zeros() if end > start for piece in target.data(start, end - start))


def _clear(offset: int, buffer: bytearray) -> None:
    buffer[:] = NOWHERE[: len(buffer)]


def chunks(ranges: Iterable[Range], size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """(offset, length) pieces of at most `size` bytes."""
    return ((start, end - start) for start, end in pieces(ranges, size))


def digest(name: str, data: bytes | memoryview) -> bytes:
    """As `Target.digests` makes them: 'sha256', 'sha256-232' the first 29 bytes of it, or 'crc32' in four bytes, big
    endian."""
    if name == "crc32":
        return zlib.crc32(data).to_bytes(4, "big")
    return hashlib.sha256(data).digest()[: DIGEST_BYTES[name]]


def _by_digest(target: Target, offset: int, length: int, want: Callable[[int, int], bytes]) -> Iterator[Range]:
    """Pieces in which the target differs: each level of `STEPS` is one question about what differs on the one above.
    want(at, length): the digest that a piece `at` bytes behind the offset must have."""
    wrong = [(0, length)]
    for step in (step for step in STEPS if step >= target.finest):
        pieces = list(chunks(wrong, step))
        answers = target.digests([(offset + at, size) for at, size in pieces])
        if len(answers) != len(pieces):
            answers = [b""] * len(pieces)  # an answer that makes no sense proves nothing
        wrong = [
            (at, at + size) for (at, size), answer in zip(pieces, answers, strict=True) if answer != want(at, size)
        ]
        if not wrong:
            return
        if len(wrong) == len(pieces) > 1 and target.finest > BLOCK:
            break  # blank, or another system: where answers cost that much, more of them would save little writing
    for start, end in wrong:
        yield offset + start, offset + end


class _Digests:
    """Of pieces of some bytes."""

    def __init__(self, name: str, data: bytes) -> None:
        self._name, self._data = name, memoryview(data)

    def __call__(self, at: int, length: int) -> bytes:
        return digest(self._name, self._data[at : at + length])


@lru_cache(64)
def zero_digest(name: str, length: int) -> bytes:
    """Of a hole."""
    return digest(name, bytes(length))
