# SPDX-License-Identifier: Apache-2.0
"""Compute the digests of an image's blocks while the image is being written, if the salt is known in advance.

A forked process does this; a thread would compete with those that write the image. The process is told which bytes are
in the file, reads them from the page cache and keeps their digests, 0.8 % of the image. What changes later, such as the
head of an EROFS image, is read again once the image is complete.
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
"""message to the process: first and end byte of a run of whole blocks that can now be read"""
MESSAGES = RANGE.size * 256


class BlockDigests:
    """The digest slots of blocks that arrive in any order. A block that arrives again replaces its earlier digest."""

    def __init__(self, sb: Superblock) -> None:
        self._sb, self._slots = sb, bytearray()

    def take(self, offset: int, data: bytes) -> None:
        """Hash `data`, which starts at a block boundary. A partial last block is padded with zeros."""
        size, slot = self._sb.data_block_size, self._sb.slot_size
        new = hash_blocks(data + bytes(-len(data) % size), size, self._sb)
        start = offset // size * slot
        self._slots += bytes(max(start - len(self._slots), 0))
        self._slots[start : start + len(new)] = new

    def slots(self, blocks: int) -> bytes:
        """Return the slots of the first `blocks` blocks."""
        return bytes(self._slots[: blocks * self._sb.slot_size])


class Meanwhile:
    """Follow an image that is being written (`erofs.output.Follower`). The process ends with the block.

    If no process can be forked safely, or the process was killed, there are no digests, and the tree has to be made
    from the finished image.
    """

    def __init__(self, salt: bytes, block_size: int = 4096, algorithm: str = "sha256") -> None:
        """`block_size`: size of a data block in bytes."""
        self._sb = Superblock(bytes(16), salt, 1, algorithm, block_size, block_size)
        self._child = 0
        self._told = 0  # bytes from the start that have been reported as written
        self._again: list[tuple[int, int]] = []  # (first, end) of byte ranges changed since then

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
        """Start following: the file is empty and is about to be written."""
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
        """All bytes up to `end` are now in the file."""
        end -= end % self._sb.data_block_size
        if end > self._told:
            self._say(self._told, end)
            self._told = end

    def changed(self, offset: int, length: int) -> None:
        """These bytes have changed, or will have by the time the image is complete."""
        if length and offset < self._told:
            self._again.append((offset, offset + length))

    def digests(self, size: int) -> bytes | None:
        """Return the digest slots of the finished image of `size` bytes, zero-padded to a whole block, or None if there
        are none. Can be called only once."""
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
    """Runs in the forked process, which ends here: read and hash ranges until the message (blocks, 0) states how many
    blocks there are; then write the digests to the pipe."""
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
    """Close all other files: a pipe that stays open here would never reach its end for whoever reads it."""
    start = 3
    for fd in sorted(fds):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
