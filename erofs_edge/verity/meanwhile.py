# SPDX-License-Identifier: Apache-2.0
"""The digests of an image's blocks, made while the image is being written, where the salt is known before.

A forked process does it: a thread would take turns with those that write the image. It is told which bytes are in the
file, reads them from there, out of the page cache, and keeps their digests, 0.8 % of the image. What is changed later,
as the head of an EROFS image is, it reads once more when the image is whole.
"""

from __future__ import annotations

import os
import signal
from struct import Struct
from types import TracebackType

from erofs_edge.forks import ending_here, may_fork, tell
from erofs_edge.verity.blocks import SLICE, hash_blocks, read_exactly
from erofs_edge.verity.superblock import Superblock

RANGE = Struct("<QQ")
"""what the process is told: the first byte and the bytes of a run of whole blocks that it can read now"""
MESSAGES = RANGE.size * 256


class BlockDigests:
    """The digest slots of blocks that come in any order, those that come again in place of what was there."""

    def __init__(self, sb: Superblock) -> None:
        self._sb, self._slots = sb, bytearray()

    def take(self, offset: int, data: bytes) -> None:
        """Bytes from a whole block on; where the last block is cut off, zeros follow."""
        size, slot = self._sb.data_block_size, self._sb.slot_size
        new = hash_blocks(data + bytes(-len(data) % size), size, self._sb)
        start = offset // size * slot
        self._slots += bytes(max(start - len(self._slots), 0))
        self._slots[start : start + len(new)] = new

    def slots(self, blocks: int) -> bytes:
        """Of the first `blocks` blocks."""
        return bytes(self._slots[: blocks * self._sb.slot_size])


class Meanwhile:
    """Follows an image that is being written (`erofs.output.Follower`); the process ends with the block.

    Where no process can be forked safely, or somebody has killed it, there are no digests, and the tree is made from
    the whole image.
    """

    def __init__(self, salt: bytes, block_size: int = 4096, algorithm: str = "sha256") -> None:
        """`block_size`: bytes of a data block."""
        self._sb = Superblock(bytes(16), salt, 1, algorithm, block_size, block_size)
        self._child = 0
        self._told = 0  # bytes: so many from the start on were said to be there
        self._again: list[tuple[int, int]] = []  # (first, end) of bytes changed since

    def __enter__(self) -> Meanwhile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._child:
            os.close(self._result)
            self._stop_telling()
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            self._child = 0

    def begin(self, fd: int) -> None:
        """The file, which is empty, begins to be written."""
        if not may_fork() or self._child:
            return
        here, told = os.pipe()
        result, there = os.pipe()
        self._child = os.fork()
        if not self._child:
            _follow(self._sb, fd, here, there)
        os.close(here)
        os.close(there)
        self._tell, self._result = told, result

    def written(self, end: int) -> None:
        """All bytes up to `end` are in the file."""
        end -= end % self._sb.data_block_size
        if end > self._told:
            self._say(self._told, end)
            self._told = end

    def changed(self, offset: int, length: int) -> None:
        """These bytes are others now, or will be when the image is whole."""
        if length and offset < self._told:
            self._again.append((offset, offset + length))

    def digests(self, size: int) -> bytes | None:
        """The digest slots of the image, which is whole now and has `size` bytes, with zeros up to a whole block; None
        where there are none. Once only."""
        if not self._child:
            return None
        step = self._sb.data_block_size
        blocks = -(-size // step)
        for first, end in (*self._again, (min(self._told, size - size % step), size)):
            start, stop = first - first % step, min(end + -end % step, size)
            if start < stop:
                self._say(start, stop)
        self._say(blocks, 0)
        self._stop_telling()
        with open(self._result, "rb", closefd=False) as pipe:
            found = pipe.read()
        return found if len(found) == blocks * self._sb.slot_size else None

    def _say(self, first: int, end: int) -> None:
        if self._child and self._tell >= 0:
            try:
                os.write(self._tell, RANGE.pack(first, end))
            except BrokenPipeError:
                self._stop_telling()

    def _stop_telling(self) -> None:
        if self._tell >= 0:
            os.close(self._tell)
            self._tell = -1


def _follow(sb: Superblock, fd: int, told: int, result: int) -> None:
    """In the forked process, which ends here: ranges are read and hashed until the one that says how many blocks there
    are, (blocks, 0); then the digests go into the pipe."""
    with ending_here():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _keep_only(fd, told, result)
        found = BlockDigests(sb)
        while messages := os.read(told, MESSAGES):
            for first, end in RANGE.iter_unpack(messages):
                for offset in range(first, end, SLICE):
                    found.take(offset, read_exactly(fd, min(SLICE, end - offset), offset))
                if not end:
                    tell(result, found.slots(first))


def _keep_only(*fds: int) -> None:
    """Close all other files: where somebody waits for the end of a pipe, it must not be open here."""
    start = 3
    for fd in sorted(fds):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
