# SPDX-License-Identifier: Apache-2.0
"""The limits of a walk through the directories of an image, which is untrusted: it ends, and visits none twice."""

from __future__ import annotations

from erofs_edge.erofs.backing import broken
from erofs_edge.erofs.inode import DiskInode

DEPTH_MAX = 2048  # directories; a path of PATH_MAX bytes cannot go deeper
_SIZE_FACTOR, _SIZE_MORE = 16, 1 << 20  # directories may have this many times the bytes of the image, and so many more


class WalkLimits:
    """What a walk from the directory `top` on has reached. `size`: bytes of the image."""

    def __init__(self, top: DiskInode, size: int) -> None:
        self._seen = {top.nid}
        self._left = _SIZE_FACTOR * size + _SIZE_MORE

    def enter(self, directory: DiskInode, depth: int) -> None:
        """Account for the entries of a directory that are about to be read. Raises ErofsFormatError if they are too
        many or too deep."""
        self._left -= directory.size
        if self._left < 0:
            raise broken("directories are larger than the image can hold", directory.offset)
        if depth >= DEPTH_MAX:
            raise broken(f"directories are nested deeper than {DEPTH_MAX}", directory.offset)

    def find(self, child: DiskInode, parent: DiskInode) -> None:
        """Account for a directory found in another. Raises ErofsFormatError if it was found before."""
        if child.nid in self._seen:
            raise broken(f"directory {child.nid} is reached twice", parent.offset)
        self._seen.add(child.nid)
