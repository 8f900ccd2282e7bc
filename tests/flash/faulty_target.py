# SPDX-License-Identifier: Apache-2.0
"""A target in memory that fails on request."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from erofs_edge.flash.target import Identity, PlainTarget


class FaultyTarget(PlainTarget):
    """A disk full of 0xA5.

    short    writes take at most this many bytes
    cut      writing stops for good after this many bytes (the power fails, the card is pulled): OSError(code)
    lies     bytes at these offsets read back flipped
    bad      reading this offset fails with EIO
    wraps    a counterfeit card: it has only this many bytes, higher addresses wrap around
    """

    def __init__(
        self,
        size: int,
        *,
        short: int | None = None,
        cut: int | None = None,
        code: int = errno.EIO,
        lies: tuple[int, ...] = (),
        bad: int | None = None,
        wraps: int | None = None,
        fill: bytes = b"\xa5",
    ) -> None:
        self.memory = bytearray(fill * size)
        self.short, self.cut, self.code, self.lies, self.bad, self.wraps = short, cut, code, lies, bad, wraps
        self.written = 0
        self.log: list[tuple[str, int, int]] = []
        self.finished = False

    @property
    def identity(self) -> Identity:
        return Identity("/dev/faulty", "block", len(self.memory), 512, "Faulty Disk", "S1", True)

    def read(self, offset: int, length: int) -> bytes:
        if self.bad is not None and offset <= self.bad < offset + length:
            raise OSError(errno.EIO, "Input/output error")
        data = bytearray(self.memory[self._place(offset) : self._place(offset) + length])
        for lie in self.lies:
            if offset <= lie < offset + len(data):
                data[lie - offset] ^= 0x10
        return bytes(data)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        length = len(data) if self.short is None else min(len(data), self.short)
        if self.cut is not None:
            length = min(length, self.cut - self.written)
            if not length:
                raise OSError(self.code, "Input/output error")
        self.memory[self._place(offset) : self._place(offset) + length] = data[:length]
        self.written += length
        self.log.append(("write", offset, length))
        return length

    def zero(self, offset: int, length: int) -> None:
        self.memory[self._place(offset) : self._place(offset) + length] = bytes(length)
        self.log.append(("zero", offset, length))

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield offset, offset + length

    def flush(self) -> None:
        self.log.append(("flush", 0, 0))

    def finish(self) -> None:
        self.finished = True

    def close(self) -> None:
        pass

    def _place(self, offset: int) -> int:
        return offset if self.wraps is None else offset % self.wraps
