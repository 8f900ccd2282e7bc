# SPDX-License-Identifier: Apache-2.0
"""Carry out a plan on a target: write, read back, and only then make the partition table valid.

Each region's holes are made zeros, for a hash tree promises zeros there. The proof is a second reading of the
medium, compared with the hashes of what was read from the image.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from erofs_edge.errors import CapacityError, DeviceError, PartialWriteError, SourceError, VerificationError
from erofs_edge.flash.plan import Plan, Region
from erofs_edge.flash.target import Target

CHUNK = 4 << 20
NOWHERE = bytes(CHUNK)
BLOCK = 4096  # what a bad place is narrowed down to

Progress = Callable[[int, int], None]
Step = Callable[[str], AbstractContextManager[Progress]]
"""step("Writing 'boot_a'") around each piece of work; what it yields is told (done, total) in bytes"""

RESUME_HINT = "the same command with --resume goes on: what is right already is kept"


@dataclass(slots=True)
class RegionResult:
    """What was done to one region, in bytes and seconds. `kept` was right already."""

    name: str
    start: int
    size: int
    written: int = 0
    zeroed: int = 0
    kept: int = 0
    verified: int = 0
    write_seconds: float = 0.0
    verify_seconds: float = 0.0
    digests: dict[int, bytes] = field(default_factory=dict, repr=False)
    """sha256 of each chunk of data, by its offset"""


def flash(plan: Plan, target: Target, step: Step, *, verify: bool = True, resume: bool = False) -> list[RegionResult]:
    """Make the target hold the image.

    With `resume`, data that the target holds already is read and kept; holes are always treated that way.

    Raises PartialWriteError (or CapacityError, where the disk under a file is full) when a write fails, SourceError
    when the image does, VerificationError when what is read back is not what was written.
    """
    results = {region: RegionResult(region.name, region.start, region.size) for region in plan.regions}
    image = os.open(plan.image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with ThreadPoolExecutor(2) as pool:
            job = _Job(image, plan.image, target, pool, resume)
            if plan.table:
                with step("Erasing old table"):
                    job.erase(plan.table[-1])
            for stage in (plan.contents, plan.table):
                for region in stage:
                    label = f"Writing '{region.name}' ({region.data_bytes >> 10} KB)"
                    if not region.data:
                        label = f"Zeroing '{region.name}' ({region.size >> 10} KB)"
                    with step(label) as progress:
                        job.write(region, results[region], progress)
                for region in stage if verify else ():
                    with step(f"Verifying '{region.name}'") as progress:
                        job.verify(region, results[region], progress)
    finally:
        os.close(image)
    target.finish()
    return list(results.values())


class _Job:
    """One image on its way to one target."""

    def __init__(self, image: int, path: Path, target: Target, pool: ThreadPoolExecutor, resume: bool) -> None:
        self.image, self.path, self.target, self.pool, self.resume = image, path, target, pool, resume

    def erase(self, table: Region) -> None:
        """Invalidate the old partition table, on the medium, before anything else changes."""
        with _Guarded(self.target, table.name) as at:
            at.offset = table.start
            self.target.zero(table.start, table.size)
            self.target.flush()

    def write(self, region: Region, result: RegionResult, progress: Progress) -> None:
        started = time.monotonic()
        hashes: deque[tuple[int, Future[bytes]]] = deque()
        with _Guarded(self.target, region.name) as at:
            for start, end in region.zeros():
                self._zero(start, end, result, at)
                progress(result.zeroed + result.kept, region.size)
            for start, length in _chunks(region.data):
                at.offset = start
                data = self._source(start, length)
                hashes.append((start, self.pool.submit(_digest, data)))
                if self.resume and self.target.read(start, length) == data:
                    result.kept += length
                else:
                    self._write_all(start, data, at)
                    result.written += length
                progress(result.written + result.zeroed + result.kept, region.size)
                while len(hashes) > 3:
                    _take(hashes, result)
            self.target.flush()
        while hashes:
            _take(hashes, result)
        result.write_seconds = time.monotonic() - started

    def _write_all(self, offset: int, data: bytes, at: _Guarded) -> None:
        view = memoryview(data)
        while view:
            done = self.target.write(offset, view)
            if not 0 < done <= len(view):
                raise OSError(errno.EIO, "the device takes no more data")
            view, offset = view[done:], offset + done
            at.offset = offset

    def _zero(self, start: int, end: int, result: RegionResult, at: _Guarded) -> None:
        """Make a range zeros; pieces that are zeros already are only read."""
        zeroed = 0
        for offset, length in _chunks(self.target.data(start, end - start)):
            at.offset = offset
            if self.target.cheap_zeros or self.target.read(offset, length) != NOWHERE[:length]:
                self.target.zero(offset, length)
                zeroed += length
        result.zeroed += zeroed
        result.kept += end - start - zeroed

    def verify(self, region: Region, result: RegionResult, progress: Progress) -> None:
        started = time.monotonic()
        bad: list[int] = []
        waiting: deque[tuple[int, int, Future[bytes]]] = deque()

        def judge() -> None:
            start, length, digest = waiting.popleft()
            if digest.result() != result.digests[start]:
                bad.extend(self._differences(start, length))
            result.verified += length
            progress(result.verified, region.size)

        with _Guarded(self.target, region.name, "reading back") as at:
            for start, length in _chunks(region.data):
                at.offset = start
                waiting.append((start, length, self.pool.submit(_digest, self.target.read(start, length))))
                if len(waiting) > 3:
                    judge()
            while waiting:
                judge()
            for start, end in region.zeros():
                for offset, length in _chunks(self.target.data(start, end - start)):
                    at.offset = offset
                    data = self.target.read(offset, length)
                    if data != NOWHERE[:length]:
                        bad.extend(_differing(data, NOWHERE[:length], offset))
                result.verified += end - start
                progress(result.verified, region.size)
        result.verify_seconds = time.monotonic() - started
        if bad:
            shown = ", ".join(f"{offset:#x}" for offset in bad[:5]) + (", …" if len(bad) > 5 else "")
            raise VerificationError(
                f"'{region.name}' reads back differently in {len(bad)} block(s) of {BLOCK} bytes, at byte {shown}",
                where=self.target.identity.path,
                hint="the medium loses data (worn out, or smaller than it says): use another one",
            )

    def _differences(self, start: int, length: int) -> list[int]:
        """Where the target differs from the image; the chunk itself where a second reading shows no difference."""
        places = list(_differing(self.target.read(start, length), self._source(start, length), start))
        return places or [start]

    def _source(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self.image, length, offset)
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror}", where=f"{self.path}: offset {offset:#x}") from error
        if len(data) != length:
            raise SourceError("the image became shorter while it was being read", where=str(self.path))
        return data


class _Guarded:
    """Turns an OSError of the target into what the user is told; `offset` is how far things went."""

    def __init__(self, target: Target, region: str, doing: str = "writing") -> None:
        self.target, self.region, self.doing = target, region, doing
        self.offset = 0

    def __enter__(self) -> _Guarded:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        where = f"{self.target.identity.path}: offset {self.offset:#x}"
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and self.target.identity.kind == "file":
            raise CapacityError(f"{self.doing} '{self.region}': {reason}", where=where) from error
        if error.errno in (errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM):
            raise DeviceError(
                f"{self.doing} '{self.region}': the device is gone", where=where, hint=RESUME_HINT
            ) from error
        raise PartialWriteError(
            f"{self.doing} '{self.region}' failed: {reason}", where=where, hint=RESUME_HINT
        ) from error


def _chunks(ranges: Iterator[tuple[int, int]] | tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int]]:
    """(offset, length) pieces of at most CHUNK bytes."""
    for start, end in ranges:
        for offset in range(start, end, CHUNK):
            yield offset, min(CHUNK, end - offset)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _take(hashes: deque[tuple[int, Future[bytes]]], result: RegionResult) -> None:
    start, future = hashes.popleft()
    result.digests[start] = future.result()


def _differing(data: bytes, expected: bytes, offset: int) -> Iterator[int]:
    """Offsets of the blocks that differ; bytes that are missing differ."""
    for at in range(0, len(expected), BLOCK):
        if data[at : at + BLOCK] != expected[at : at + BLOCK]:
            yield offset + at
