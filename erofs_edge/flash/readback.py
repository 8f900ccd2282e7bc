# SPDX-License-Identifier: Apache-2.0
"""The proof after writing: read the whole region again from the medium and compare it with what was read from the
image, or with the image itself if the data went to the target without passing through this program.

All of it is read, not only what was written: a counterfeit card that maps high addresses onto low ones destroys data
that was right before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from erofs_edge.errors import VerificationError
from erofs_edge.flash.comparing import differing
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Region
from erofs_edge.flash.proof import prove
from erofs_edge.flash.survey import NOWHERE, chunks, differences, digest
from erofs_edge.flash.target import BLOCK, Ability, Target
from erofs_edge.threads import Threads

if TYPE_CHECKING:
    from concurrent.futures import Future

SMALL = 256 << 10  # bytes
Told = Callable[[int, int], None]
"""told(bytes checked so far, position on the target)"""


class Expected:
    """Digests of what was written, by offset, computed on other threads while the target is busy."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], Future[bytes]] = {}
        self._known: dict[tuple[int, int], bytes] = {}
        self._busy: deque[Future[bytes]] = deque()

    def remember(self, pool: Threads, offset: int, data: bytes) -> None:
        """Record data that was read from the image for this offset."""
        if len(data) < SMALL:
            self._known[offset, len(data)] = digest("sha256", data)
            return
        future = pool.submit(digest, "sha256", data)
        self._found[offset, len(data)] = future
        self._busy.append(future)
        if len(self._busy) > 3:
            self._busy.popleft().result()  # only a few pieces stay in memory

    def get(self, offset: int, length: int) -> bytes | None:
        """The digest of a piece, if it was written as one piece."""
        found = self._found.get((offset, length))
        return self._known.get((offset, length)) if found is None else found.result()


def check(region: Region, image: Image, target: Target, expected: Expected, pool: Threads, told: Told) -> None:
    """Raises VerificationError, listing the blocks, if the target does not hold the region; OSError, SourceError."""
    if target.proof and prove([region], image, target):
        told(region.size, region.end)
        return
    if Ability.HASH in target.abilities:
        bad = [start for _, start, _ in differences(region, image, target, lambda done: told(done, region.start))]
    else:
        bad = _read(region, image, target, expected, pool, told)
    if bad:
        raise unlike(region.name, bad, target)


def unlike(name: str, bad: list[int], target: Target) -> VerificationError:
    """The error for a region in which the blocks at these offsets are not what was written."""
    shown = ", ".join(f"{offset:#x}" for offset in bad[:5]) + (", …" if len(bad) > 5 else "")
    return VerificationError(
        f"'{name}' reads back differently in {len(bad)} block(s) of {BLOCK} bytes, at byte {shown}",
        where=target.identity.path,
        hint="the medium loses data (it is worn out, or smaller than it claims): use another one",
    )


def _read(region: Region, image: Image, target: Target, expected: Expected, pool: Threads, told: Told) -> list[int]:
    """Offsets of the blocks that differ."""
    bad: list[int] = []
    done, buffer = 0, bytearray()
    waiting: deque[tuple[int, int, Callable[[], bool]]] = deque()

    def judge() -> None:
        nonlocal done
        start, length, right = waiting.popleft()
        if not right():
            places = list(_places(target.read(start, length), image.read(start - region.shift, length), start))
            bad.extend(places or [start])  # a second reading may show no difference
        done += length
        told(done, start)

    for start, length in chunks(region.data):
        told(done, start)
        want = expected.get(start, length)
        if want is None:  # the data did not pass through this program, or was there before
            if len(buffer) != length:
                buffer = bytearray(length)
            image.read_into(start - region.shift, buffer)
            waiting.append((start, length, target.holds(start, buffer).__bool__))
        else:
            waiting.append((start, length, _has(pool, target.read(start, length), want)))
        if len(waiting) > 3:
            judge()
    while waiting:
        judge()
    for start, end in region.zeros():
        for offset, length in chunks(target.data(start, end - start)):
            told(done, offset)
            bad.extend(_places(target.read(offset, length), NOWHERE[:length], offset))
        done += end - start
        told(done, start)
    return bad


def _has(pool: Threads, data: bytes, want: bytes) -> Callable[[], bool]:
    """Return a function that tells whether data has this digest; a small piece is hashed at once, since a thread costs
    more.
    """
    if len(data) < SMALL:
        return (digest("sha256", data) == want).__bool__
    found = pool.submit(digest, "sha256", data)
    return lambda: found.result() == want


def _places(have: bytes, want: bytes, offset: int) -> list[int]:
    return [start for start, _ in differing(have, want, offset)]
