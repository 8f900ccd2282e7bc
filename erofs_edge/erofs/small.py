# SPDX-License-Identifier: Apache-2.0
"""Read files that fit next to their inodes here, on the way to the larger ones that other processes compress meanwhile:
handing over such a file takes longer than reading it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from erofs_edge.erofs.at_once import read_alone
from erofs_edge.erofs.ondisk import COMPACT_SIZE, EXTENDED_SIZE, LAYOUT_FLAT_INLINE
from erofs_edge.erofs.plan import Node
from erofs_edge.tree import FileContent

TOLD = 64 << 10  # bytes read between two calls of `told`


def without_small(files: Iterable[Node], block_size: int, told: Callable[[int], object]) -> Iterator[Node]:
    """Yield the files that are still to be stored; the others have no data outside the block of their inode and are
    done. Files that cannot be read this way are left to the code that reports why. `told` receives the number of bytes
    read."""
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
