# SPDX-License-Identifier: Apache-2.0
"""A board with the provisioning system, in memory."""

from __future__ import annotations

from collections.abc import Callable

from erofs_edge.flash.survey import digest
from erofs_edge.transport.nbd import control
from erofs_edge.transport.nbd.connect import parse_address


class Board:
    """Both exports of a board in memory: what was requested, and answers as work.sh gives them."""

    size, address, sent, received = control.SIZE, parse_address("nbd://board"), 0, 0

    def __init__(self, disk: bytes, *, looks: bool = True, says: str = "") -> None:
        """`looks`: it detects zeros; an older one does not. `says`: its description."""
        self.description = says
        self.disk, self.asked, self.flushed, self.looks = disk, list[str](), 0, looks
        self.export = self
        self.holder = "ok"
        self._memory: dict[int, bytes] = {}

    def can(self, flag: object) -> bool:
        return False

    def settle(self) -> None:
        """Wait for requests in flight; there are none."""

    def close(self) -> None:
        """Nothing is held."""

    def write(self, offset: int, data: bytes) -> None:
        self._memory[offset] = data

    def read(self, offset: int, length: int) -> bytes:
        (at,) = (at for at, data in self._memory.items() if at <= offset < at + len(data))
        return self._memory[at][offset - at : offset - at + length]

    def flush(self) -> None:
        self.flushed += 1
        items = self._memory[0].decode().split("\n")[:-2]
        self.asked += items
        self._memory[control.ANSWERS] = "".join(f"{self._answer(*item.split())}\n" for item in [*items, "."]).encode()

    def _answer(self, name: str, *words: str) -> str:
        by = "blake2b" if words and words[-1] == "blake2b" else "sha256"
        words = tuple(word for word in words if word != by)
        if name == "hash":
            start, length = map(int, words)
            return digest(by, self.disk[start : start + length]).hex()
        if name == "zeros":
            start, length = map(int, words)
            found = "data" if any(self.disk[start : start + length]) else "zeros"
            return found if self.looks else "error unknown"
        if name == "blocks":
            size, start, length = map(int, words)
            pieces = (self.disk[at : at + size] for at in range(start, start + length, size))
            place, _ = control.leaves(length // size, control.DIGESTS[by])
            self._memory[place] = b"".join(digest(by, piece) for piece in pieces)
            return "ok"
        if name == "hold":
            return self.holder
        return "is " if name in ("serial", "compatible") else "."


class Zeros(Board):
    """Only the disk's export, without questions."""

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)

    def deliver(self, offset: int, length: int, take: Callable[[int, memoryview], None]) -> None:
        take(offset, memoryview(bytes(length)))

    def flush(self) -> None:
        """Nothing is pending."""


class Disk(Board):
    """Only the disk's export, with what a board holds."""

    def __init__(self, board: Board) -> None:
        super().__init__(b"", says=board.description)
        self.board, self.written = board, 0

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.board.disk[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.written += len(data)

    def flush(self) -> None:
        """Nothing is pending."""
