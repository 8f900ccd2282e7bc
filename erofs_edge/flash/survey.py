# SPDX-License-Identifier: Apache-2.0
"""Find out what a target already holds of a region, proved by reading it or by digests that the target computes.

Records of earlier writes do not count, and neither do hash trees stored on the target: a tree says what should be
there. If the target can hash, the proof is top-down: a digest per MiB, and only where that differs, digests of smaller
pieces. So each MiB that is right costs about 32 bytes on the wire.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import starmap
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from erofs_edge.flash.comparing import CHUNK, Range, pieces
from erofs_edge.flash.comparing import differences as by_reading
from erofs_edge.flash.guarded import Guarded
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Region
from erofs_edge.flash.target import BLOCK, Ability, Target
from erofs_edge.threads import Threads

if TYPE_CHECKING:
    import hashlib

WINDOW = 64 << 20  # bytes covered by one exchange of digests
RANGES = 4096  # places in it, at most
SMALL = 1 << 20  # bytes of a hole that is hashed with the data around it, or with others, and not searched for data
NOWHERE = bytes(CHUNK)
DIGEST_BYTES = {"sha256": 32, "sha256-232": 29, "blake2b": 64}

Progress = Callable[[int, int], None]
Step = Callable[[str], AbstractContextManager[Progress]]
"""step("Writing 'boot_a'") is the context of each piece of work; it yields a function called with (done, total) in
bytes
"""
Known = Callable[[int, int, bytes], list[Range] | None]
Told = Callable[[int], None]
"""told(bytes checked so far)"""


class Findings(NamedTuple):
    """Ranges (start, end) in which the target differs from the image: `write` data there, make `zero` zeros, `copy`
    (start, end, source) from elsewhere on the target. `kept`: bytes that are right."""

    write: Sequence[Range] = ()
    zero: Sequence[Range] = ()
    kept: int = 0
    copy: Sequence[tuple[int, int, int]] = ()

    @property
    def right(self) -> bool:
        """Whether the target holds the whole region."""
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


class Older(NamedTuple):
    """An older image that a region may still hold: byte X of the target was byte X - `shift` of it, up to `end`. If a
    digest confirms it, the differences are known without further queries."""

    image: Image
    shift: int
    end: int

    def differing(self, offset: int, data: memoryview, answer: bytes, name: str) -> list[Range] | None:
        """The blocks in which this image differs from `data` at an offset; None if the target does not hold it."""
        if offset + len(data) > self.end:
            return None
        old = memoryview(self.image.read(offset - self.shift, len(data)))
        if digest(name, old) != answer:
            return None
        starts = range(0, len(data), BLOCK)
        wrong = [at for at in starts if old[at : at + BLOCK] != data[at : at + BLOCK]]
        return [(offset + at, offset + min(at + BLOCK, len(data))) for at in wrong]


def everything(region: Region) -> Findings:
    """The work if nothing is known: all of the data and all of the holes."""
    return Findings(region.data, tuple(region.zeros()))


def survey(
    region: Region, image: Image, target: Target, told: Told = lambda done: None, older: Older | None = None
) -> Findings:
    """Compare a region with the image. Raises OSError if the target fails, SourceError if the image does."""
    write, zero = list[Range](), list[Range]()
    for is_data, start, end in differences(region, image, target, told, older):
        ranges = write if is_data else zero
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    found = Findings(write, zero)
    return found._replace(kept=region.size - found.write_bytes - found.zero_bytes)


def compare(
    regions: Sequence[Region],
    image: Image,
    target: Target,
    step: Step,
    older: Mapping[Region, Older] = MappingProxyType({}),
) -> dict[Region, Findings]:
    """What the target lacks of each region. Raises PartialWriteError or DeviceError if it fails."""
    found = {}
    for region in regions:
        with step(f"Comparing '{region.name}'") as progress, Guarded(target, region.name, "reading"):

            def told(done: int, size: int = region.size, progress: Progress = progress) -> None:
                progress(done, size)

            found[region] = survey(region, image, target, told, older.get(region))
    return found


def holds(region: Region, image: Image, target: Target) -> bool:
    """Whether the target holds the whole region. Stops at the first difference; if the target hashes, only digests of
    the largest pieces are requested."""
    if Ability.HASH in target.abilities:
        return next(_hashed(region, image, target, lambda done: None, None, target.steps[:1]), None) is None
    return next(differences(region, image, target), None) is None


def differences(
    region: Region, image: Image, target: Target, told: Told = lambda done: None, older: Older | None = None
) -> Iterator[tuple[bool, int, int]]:
    """(whether the image has data there, start, end) of everything that differs: first in the data, then in the
    holes.
    """
    if Ability.HASH in target.abilities:
        yield from _hashed(region, image, target, told, older, target.steps)
    else:
        ought = region.data, lambda at, buffer: image.read_into(at - region.shift, buffer)
        yield from ((True, *found) for found in by_reading(*ought, target, told))
        yield from ((False, *found) for found in by_reading(_holes(region, target), _clear, target))
    told(region.size)


def _hashed(
    region: Region, image: Image, target: Target, told: Told, older: Older | None, steps: Sequence[int]
) -> Iterator[tuple[bool, int, int]]:
    done, name, data = 0, target.hash_name, joined(region)
    for window in _windows(data):
        want = _Digests(name, [(start, image.read(start - region.shift, end - start)) for start, end in window])
        for found in _by_digest(target, steps, window, want, want.against(older)):
            yield from _divided(*found, region.data)
        done += sum(end - start for start, end in window)
        told(done)
    for window in _windows(_holes(region._replace(data=tuple(data)), target, SMALL)):
        for first, last in _by_digest(target, steps, window, lambda at, length: zero_digest(name, length)):
            yield False, first, last


def joined(region: Region) -> list[Range]:
    """The data with the small holes inside it: an image whose small holes are kept as such, as by `cp`, is not asked
    about in many small pieces."""
    found: list[Range] = []
    for start, end in region.data:
        if found and start - found[-1][1] <= SMALL:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found


def _divided(start: int, end: int, data: Sequence[Range]) -> Iterator[tuple[bool, int, int]]:
    """(whether it is data, start, end) of what a range has inside and between `data`."""
    index = max(0, bisect_right(data, (start, end)) - 1)
    while start < end:
        while index < len(data) and data[index][1] <= start:
            index += 1
        first, last = data[index] if index < len(data) else (end, end)
        is_data = first <= start
        after = min(end, last if is_data else first)
        yield is_data, start, after
        start = after


def _windows(ranges: Iterable[Range]) -> Iterator[list[Range]]:
    """Group ranges into what one exchange covers."""
    window: list[Range] = []
    size = 0
    for start, end in pieces(ranges, WINDOW):
        if size + end - start > WINDOW or len(window) == RANGES:
            yield window
            window, size = [], 0
        window.append((start, end))
        size += end - start
    if window:
        yield window


def _holes(region: Region, target: Target, small: int = 0) -> Iterator[Range]:
    """What may be other than zeros where the image has a hole; `small`: holes of up to this many bytes are not
    queried.
    """
    for start, end in region.zeros():
        if end - start > small:
            yield from target.data(start, end - start)
        elif end > start:
            yield start, end


def _clear(offset: int, buffer: bytearray) -> None:
    buffer[:] = memoryview(NOWHERE)[: len(buffer)]


def chunks(ranges: Iterable[Range], size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """(offset, length) pieces of at most `size` bytes."""
    return ((start, end - start) for start, end in pieces(ranges, size))


def digest(name: str, data: bytes | memoryview) -> bytes:
    """A digest as `Target.digests` makes it: 'sha256'; 'sha256-232', its first 29 bytes; 'blake2b', all 64 bytes; or
    'crc32', four bytes, big-endian."""
    if name == "crc32":
        return zlib.crc32(data).to_bytes(4, "big")
    made = start_digest(name)
    made.update(data)
    return made.digest()[: DIGEST_BYTES[name]]


def start_digest(name: str) -> hashlib.blake2b | hashlib._Hash:
    """An object of hashlib for that digest, except 'crc32'."""
    import hashlib  # OpenSSL takes milliseconds to load, and comparing by reading does not need it

    return hashlib.blake2b() if name == "blake2b" else hashlib.sha256()


def _by_digest(
    target: Target,
    steps: Sequence[int],
    ranges: list[Range],
    want: Callable[[int, int], bytes],
    known: Known = lambda at, size, answer: None,
) -> Iterator[Range]:
    """Pieces in which the target differs. Each step is one query about the differences found by the step above.
    want(offset, length): the digest that a piece must have; known(offset, length, digest): the differences in a piece
    with this digest, None if they have to be queried."""
    wrong, found = ranges, list[Range]()
    for step in steps:
        asked = list(chunks(wrong, step))
        with Threads(1) as meanwhile:  # the expected digests are computed while the target computes its own
            making = meanwhile.submit(list, starmap(want, asked))
            answers = target.digests(asked)
            wanted = making.result()
        if len(answers) != len(asked):
            answers = [b""] * len(asked)  # a malformed answer proves nothing
        wrong = []
        for (at, size), answer, right in zip(asked, answers, wanted, strict=True):
            if answer == right:
                continue
            told = known(at, size, answer) if size > BLOCK else None
            if told is None:
                wrong.append((at, at + size))
            else:
                found += told
        if not wrong:
            break
        if len(wrong) == len(asked) > 1 and steps[-1] > BLOCK:
            break  # blank, or another system: at this cost of answers, asking further would save little writing
    yield from sorted(found + wrong) if found else wrong


class _Digests:
    """Digests of pieces of a given size, each inside one of some ranges: (start, bytes), in order."""

    def __init__(self, name: str, held: list[tuple[int, bytes]]) -> None:
        self._name = name
        self._starts = [start for start, _ in held]
        self._held = [memoryview(data) for _, data in held]

    def __call__(self, offset: int, length: int) -> bytes:
        return digest(self._name, self._bytes(offset, length))

    def against(self, older: Older | None) -> Known:
        """What is known of pieces in which the target may hold an older image."""

        def known(offset: int, length: int, answer: bytes) -> list[Range] | None:
            data = self._bytes(offset, length)
            return None if older is None else older.differing(offset, data, answer, self._name)

        return known

    def _bytes(self, offset: int, length: int) -> memoryview:
        index = bisect_right(self._starts, offset) - 1
        at = offset - self._starts[index]
        return self._held[index][at : at + length]


@lru_cache(64)
def zero_digest(name: str, length: int) -> bytes:
    """The digest of a hole."""
    return digest(name, bytes(length))
