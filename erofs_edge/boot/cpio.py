# SPDX-License-Identifier: Apache-2.0
"""cpio archives in the "newc" format, which the kernel unpacks as its initramfs
(Documentation/driver-api/early-userspace/buffer-format.rst; init/initramfs.c).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from erofs_edge.errors import CapacityError, FormatError
from erofs_edge.tree import FileTree, Inode

TRAILER = b"TRAILER!!!"
LIMIT = 0xFFFFFFFF
MAGICS = (b"070701", b"070702")
_HEAD = 110  # bytes of a header


class Member(NamedTuple):
    """One entry of an archive; `rdev` is (major, minor)."""

    name: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    rdev: tuple[int, int]
    data: bytes


def read_cpio(archive: bytes) -> Iterator[Member]:
    """The entries of an archive, up to its trailer; of all archives if several are concatenated. Raises FormatError."""
    position = 0
    while position < len(archive):
        if not archive[position]:
            position += 4 - position % 4  # zeros between archives
            continue
        head = archive[position : position + _HEAD]
        if head[:6] not in MAGICS or len(head) < _HEAD:
            raise FormatError("not a cpio archive", where=f"offset {position:#x}")
        try:
            fields = [int(head[at : at + 8], 16) for at in range(6, _HEAD, 8)]
        except ValueError:
            raise FormatError("a header of a cpio archive is damaged", where=f"offset {position:#x}") from None
        _, mode, uid, gid, _, mtime, size, _, _, major, minor, name_size, _ = fields
        start = position + _HEAD + name_size
        name = archive[position + _HEAD : start - 1]
        start += -start % 4
        if name_size < 1 or start + size > len(archive):
            raise FormatError("a cpio archive is cut short", where=f"offset {position:#x}")
        if name != TRAILER:
            yield Member(name, mode, uid, gid, mtime, (major, minor), archive[start : start + size])
        position = start + size + -size % 4


def write_cpio(tree: FileTree, *, epoch: int) -> bytes:
    """Write a whole tree as one archive: names in byte order, parents first, inode numbers from 1.

    Times are `epoch`, owners those of the tree. Hard links are written as the kernel requires: every name of the group,
    with the content at the last. Raises CapacityError for a file of 4 GiB or more.
    """
    entries = [(path.lstrip(b"/"), inode) for path, inode in tree.walk() if path != b"/"]
    links: dict[int, list[bytes]] = {}
    for name, inode in entries:
        links.setdefault(id(inode), []).append(name)
    numbers: dict[int, int] = {}
    pieces: list[bytes] = []
    for name, inode in entries:
        names = links[id(inode)]
        number = numbers.setdefault(id(inode), len(numbers) + 1)
        data = b""
        if inode.is_symlink:
            data = inode.target
        elif inode.is_file and name == names[-1]:
            if inode.size > LIMIT:
                raise CapacityError("file is too large for a cpio archive", where=name.decode("utf-8", "replace"))
            data = inode.read()
        links_here = 2 if inode.is_dir else len(names)
        pieces += _entry(name, inode, data, number=number, links=links_here, epoch=epoch)
    pieces += _entry(TRAILER, Inode(0), b"", number=0, links=1, epoch=0)
    size = sum(map(len, pieces))
    return b"".join([*pieces, bytes(-size % 512)])


def _entry(name: bytes, inode: Inode, data: bytes, *, number: int, links: int, epoch: int) -> list[bytes]:
    numbers = (number, inode.mode, inode.uid, inode.gid, links, epoch, len(data), 0, 0, *inode.rdev, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in numbers) + name + b"\0"
    return [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]
