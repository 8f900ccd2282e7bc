# SPDX-License-Identifier: Apache-2.0
"""cpio archives of the "newc" kind, as the kernel unpacks them into its initramfs
(Documentation/driver-api/early-userspace/buffer-format.rst; init/initramfs.c).
"""

from __future__ import annotations

from erofs_edge.errors import CapacityError
from erofs_edge.tree import FileTree, Inode

TRAILER = b"TRAILER!!!"
LIMIT = 0xFFFFFFFF


def write_cpio(tree: FileTree, *, epoch: int) -> bytes:
    """The whole tree as one archive: names in byte order, parents first, inode numbers counted from 1.

    Times are `epoch`, owners those of the tree. Hard links are written as the kernel wants them: every name of the
    group, the content with the last. Raises CapacityError for a file of 4 GiB or more.
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
