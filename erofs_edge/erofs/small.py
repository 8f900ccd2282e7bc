# SPDX-License-Identifier: Apache-2.0
"""Files that fit beside their inodes, read on the way to the larger ones, which other processes compress meanwhile:
telling these of such a file, and hearing of it, takes longer than to read it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from erofs_edge.erofs.at_once import read_alone
from erofs_edge.erofs.ondisk import COMPACT_SIZE, EXTENDED_SIZE, LAYOUT_FLAT_INLINE
from erofs_edge.erofs.plan import Node
from erofs_edge.tree import FileContent

TOLD = 64 << 10  # bytes


def without_small(files: Iterable[Node], block_size: int, told: Callable[[int], object]) -> Iterator[Node]:
    """The files that are still to be stored; of the others, which have nothing outside the block of their inode, all is
    known then. Those that cannot be read so are left to whoever tells why. `told` gets bytes that were read."""
    done = 0
    for node in files:
        size, content = node.size, node.inode.content
        if size < block_size and type(content) is FileContent and not content.start:
            room = block_size - len(node.xattrs) - (EXTENDED_SIZE if node.extended else COMPACT_SIZE)
            if size <= room:
                path = content.path
                data = read_alone(path if type(path) is bytes else os.fsencode(path), size)
                if data is not None:
                    node.layout, node.tail_size, node.tail = LAYOUT_FLAT_INLINE, size, data
                    done += size
                    if done >= TOLD:
                        told(done)
                        done = 0
                    continue
        yield node
    told(done)
