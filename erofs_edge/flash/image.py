# SPDX-License-Identifier: Apache-2.0
"""The image to be written to a target: a file, its holes, and its partition table."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType

from erofs_edge.disk import gpt
from erofs_edge.disk.sparse import data_extents
from erofs_edge.errors import FormatError, SourceError
from erofs_edge.reading import read_exactly

PACKED = {
    b"\x1f\x8b\x08": ("gzip", "gzip -dk {}"),
    b"\xfd7zXZ\0": ("xz", "xz -dk {}"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dk {}"),
    b"BZh": ("bzip2", "bzip2 -dk {}"),
    b"PK\x03\x04": ("zip", "unzip {}"),
    b"\x3a\xff\x26\xed": ("Android sparse", "simg2img {} disk.img"),
}
"""first bytes of compressed formats in which disk images are distributed (RFC 1952, RFC 8878, the formats' own
specifications): format, command to unpack
"""


class Image:
    """An image opened for reading. `size` in bytes. Raises SourceError if it cannot be read or is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
        self.size = os.lseek(self._fd, 0, os.SEEK_END)
        if not self.size:
            self.close()
            raise SourceError("the image is empty", where=str(path))

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes."""
        try:
            data = read_exactly(self._fd, length, offset)
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror}", where=f"{self.path}: offset {offset:#x}") from error
        if len(data) != length:
            raise SourceError("the image became shorter while it was being read", where=str(self.path))
        return data

    def read_into(self, offset: int, buffer: bytearray) -> None:
        """Fill a buffer with the bytes from an offset on."""
        try:
            done = os.preadv(self._fd, [buffer], offset)
        except OSError:
            done = 0  # reported by the fallback
        if done < len(buffer):
            buffer[done:] = self.read(offset + done, len(buffer) - done)

    def fileno(self) -> int:
        """The file descriptor, for sending data without reading it here."""
        return self._fd

    def extents(self, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
        """(start, end) of everything that is not a hole. If a file has as many blocks as bytes, the kernel is not asked
        for holes: on tmpfs it would check every page."""
        info = os.fstat(self._fd)
        if stat.S_ISREG(info.st_mode) and info.st_blocks * 512 >= self.size:
            end = self.size if end is None else min(end, self.size)
            return [(start, end)] if start < end else []
        return list(data_extents(self._fd, self.size if end is None else min(end, self.size), start))

    def table(self) -> gpt.Table | None:
        """The partition table, or None if there is no valid one: the image is plain bytes then.

        Raises SourceError if the table has partitions beyond the end of the file, usually after an incomplete download,
        and if the image is compressed and has to be unpacked first.
        """

        def read(offset: int, length: int) -> bytes:
            return os.pread(self._fd, length, offset)

        table = read_table(read, self.size)
        if table is None and (whole := gpt.needed(read) or 0) > self.size:
            raise SourceError(
                f"the image is cut off: its partitions need {whole} bytes, the file has {self.size}",
                where=str(self.path),
                hint=f"get it again; if only zeros at its end are missing: truncate -s {whole} {self.path}",
            )
        if table is None:
            self._refuse_packed(read(0, 8))
        return table

    def _refuse_packed(self, start: bytes) -> None:
        if (packed := unpacking(start, self.path)) is not None:
            kind, hint = packed
            raise SourceError(f"this is a {kind} file, from which no board can start", where=str(self.path), hint=hint)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unpacking(start: bytes, path: Path) -> tuple[str, str] | None:
    """Return (format, hint how to unpack it) of a compressed file with these first bytes; None for other files."""
    for magic, (kind, command) in PACKED.items():
        if start.startswith(magic):
            return kind, f"unpack it first: {command.format(path)}"
    return None


def read_table(read: gpt.Read, size: int) -> gpt.Table | None:
    """The partition table of a disk of `size` bytes, for either sector size; None if there is no valid one."""
    for sector in (512, 4096):
        try:
            return gpt.decode(read, size, sector)
        except FormatError:
            continue
    return None
