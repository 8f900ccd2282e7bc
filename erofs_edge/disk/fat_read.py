# SPDX-License-Identifier: Apache-2.0
"""Read a FAT16 or FAT32 volume from any source: its files. Input may be hostile: every chain is bounded.

Source: Microsoft FAT specification (fatgen103).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import Struct

from erofs_edge.errors import FormatError

Read = Callable[[int, int], bytes]
"""read(offset, length) of the volume; fewer bytes at its end"""

ENTRY = 32
ENTRIES_MAX = 1 << 16
DEPTH_MAX = 32
FILES_MAX = 100_000
TABLE_MAX = 64 << 20
_LABEL, _DIRECTORY, _LONG = 0x08, 0x10, 0x0F
_BPB = Struct("<3s8sHBHBHHBHHHII")
_BPB32 = Struct("<IHHI")
_FAT16_MIN, _FAT32_MIN = 4085, 65525  # clusters


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: path in the volume, size in bytes, time as the 32 bits of the entry, clusters in order."""

    path: str
    size: int
    stamp: int
    clusters: tuple[int, ...]


class Volume:
    """A volume. `label` and `serial` come from the boot sector, `bits` is 16 or 32; sizes in bytes."""

    def __init__(self, read: Read, size: int) -> None:
        """Raises FormatError if there is no such volume in `size` bytes."""
        self._read = read
        head = read(0, 512)
        if len(head) < 512 or head[510:512] != b"\x55\xaa":
            raise FormatError("not a FAT volume: no boot sector", where="offset 0x1fe")
        _, _, self.sector, spc, reserved, fats, roots, few, _, fat16, _, _, _, many = _BPB.unpack_from(head)
        if self.sector not in (512, 1024, 2048, 4096) or spc not in (1, 2, 4, 8, 16, 32, 64, 128) or fats not in (1, 2):
            raise FormatError("not a FAT volume: its geometry makes no sense", where="offset 0xb")
        fat32, _, _, first = _BPB32.unpack_from(head, 36)
        fat_sectors = fat16 or fat32
        self.cluster: int = self.sector * spc
        self._fat_start = reserved * self.sector
        self._root_start = self._fat_start + fats * fat_sectors * self.sector
        self._root_size = -(-roots * ENTRY // self.sector) * self.sector
        self._data: int = self._root_start + self._root_size
        total = (few or many) * self.sector
        if not reserved or not fat_sectors or not self._data < total <= size:
            raise FormatError("not a FAT volume: it is larger than its place", where="offset 0x13")
        self.clusters = (total - self._data) // self.cluster
        if self.clusters < _FAT16_MIN:
            raise FormatError("FAT12 volumes are not supported", where="offset 0xd")
        self.bits = 16 if self.clusters < _FAT32_MIN else 32
        self._root_cluster = first if self.bits == 32 else 0
        at = 64 if self.bits == 32 else 36
        self.serial = int.from_bytes(head[at + 3 : at + 7], "little")
        self.label = head[at + 7 : at + 18].decode("latin-1").rstrip()
        width = self.bits // 8
        length = (self.clusters + 2) * width
        if length > min(fat_sectors * self.sector, TABLE_MAX):
            raise FormatError("the FAT is shorter than the volume", where=f"offset {self._fat_start:#x}")
        raw = read(self._fat_start, length)
        self._fat = memoryview(raw[: len(raw) // width * width]).cast("H" if width == 2 else "I")

    def files(self) -> Iterator[Entry]:
        """Every file, directories in the order of their entries. Raises FormatError."""
        if self.bits == 32:
            root = self.content(self._chain(self._root_cluster, "the root directory"))
        else:
            root = self._read(self._root_start, self._root_size)
        stack, count = [("", root, 0)], 0
        seen: set[int] = set()
        while stack:
            prefix, data, depth = stack.pop()
            for name, attribute, first, size, stamp in _entries(data):
                count += 1
                if count > FILES_MAX or depth >= DEPTH_MAX:
                    raise FormatError("too many files or too deep a tree in a FAT volume", where=prefix or "/")
                path = f"{prefix}{name}"
                chain = self._chain(first, path) if first else ()
                if not attribute & _DIRECTORY:
                    if size > len(chain) * self.cluster:
                        raise FormatError(f"{size} bytes in {len(chain)} clusters", where=path)
                    yield Entry(path, size, stamp, chain)
                elif first in seen:
                    raise FormatError("a directory is reached twice", where=path)
                else:
                    seen.add(first)
                    stack.append((path + "/", self.content(chain[: ENTRIES_MAX * ENTRY // self.cluster]), depth + 1))

    def content(self, chain: tuple[int, ...], size: int | None = None) -> bytes:
        """The bytes of a chain of clusters, at most `size`."""
        pieces, first = [], 0
        for end in range(1, len(chain) + 1):  # adjacent clusters are read together
            if end == len(chain) or chain[end] != chain[end - 1] + 1:
                pieces.append(self._read(self.offset(chain[first]), (end - first) * self.cluster))
                first = end
        data = b"".join(pieces)
        return data if size is None else data[:size]

    def offset(self, number: int) -> int:
        """Byte offset of a cluster in the volume."""
        return self._data + (number - 2) * self.cluster

    def _chain(self, first: int, what: str) -> tuple[int, ...]:
        found: list[int] = []
        number = first
        mask = 0xFFFF if self.bits == 16 else 0x0FFFFFFF
        end = mask - 7
        while number < end:
            if not 2 <= number < min(self.clusters + 2, len(self._fat)) or len(found) > self.clusters:
                raise FormatError(f"the chain of clusters leaves the volume or is a ring, at {number}", where=what)
            found.append(number)
            number = self._fat[number] & mask
        return tuple(found)


def _entries(data: bytes) -> Iterator[tuple[str, int, int, int, int]]:
    """(name, attribute, first cluster, size, date << 16 | time) of a directory, without '.', '..' and labels."""
    parts: dict[int, str] = {}
    for at in range(0, len(data) - ENTRY + 1, ENTRY):
        entry = data[at : at + ENTRY]
        if not entry[0]:
            return
        attribute = entry[11]
        if entry[0] == 0xE5:
            parts = {}
        elif attribute == _LONG:
            text = entry[1:11] + entry[14:26] + entry[28:32]
            parts[entry[0] & 0x3F] = text.decode("utf-16-le", "replace").split("\0")[0].rstrip("\uffff")
        else:
            name = "".join(parts[number] for number in sorted(parts)) or _short(entry)
            parts = {}
            if not attribute & _LABEL and name not in (".", ".."):
                cluster = int.from_bytes(entry[26:28], "little") | int.from_bytes(entry[20:22], "little") << 16
                stamp = int.from_bytes(entry[22:26], "little")
                yield name, attribute, cluster, int.from_bytes(entry[28:32], "little"), stamp


def _short(entry: bytes) -> str:
    stem, end = entry[:8].decode("latin-1").rstrip(), entry[8:11].decode("latin-1").rstrip()
    stem = stem.lower() if entry[12] & 0x08 else stem
    end = end.lower() if entry[12] & 0x10 else end
    return f"{stem}.{end}" if end else stem
