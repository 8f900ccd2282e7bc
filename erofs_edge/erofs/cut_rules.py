# SPDX-License-Identifier: Apache-2.0
"""What the cutting of content into pclusters depends on besides the content."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from erofs_edge.codec.registry import Codec
from erofs_edge.erofs.ondisk import SLOT_SIZE

RULES = 7  # version of compress.py: raised when the same content is cut differently
EXTENT_LENGTH_MAX = 8_192_000  # the window of mkfs.erofs; below 8 MiB, no distance in an index saturates
EXTENT_LCLUSTERS_MAX = 2000  # the same in lclusters, for small blocks


class CutRules(NamedTuple):
    """What cutting depends on besides the content; sizes in bytes. `by_kind`: the level was left open; `exact`: use it
    even where it saves no block; `packed`: the content is the packed inode."""

    codec: Codec
    level: int | None
    block_size: int
    pcluster: int
    dictionary: int = 0
    by_kind: bool = False
    exact: bool = False
    packed: bool = False

    @property
    def extent_max(self) -> int:
        return min(EXTENT_LENGTH_MAX, EXTENT_LCLUSTERS_MAX * self.block_size)

    @property
    def inline_max(self) -> int:
        """Maximum bytes of an inline tail: one that long fits wherever the index ends (a multiple of 8 bytes)."""
        return self.block_size - SLOT_SIZE

    @property
    def identity(self) -> str:
        """Names everything except the content that the output depends on."""
        fixed = f"{RULES} {self.codec.name} {self.codec.version} {self.level} {self.block_size} {self.pcluster}"
        more = f"{' exact' * self.exact}{' packed' * self.packed}"
        return f"{fixed} {self.dictionary}{more}" if self.dictionary or more else fixed


class Tails(Enum):
    """What happens to the end of a file: ordinary blocks, bytes after the index, or a part of the packed inode. ALL
    puts whole files there. The values distinguish cached data."""

    BLOCK = ""
    INLINE = " inline"
    FRAGMENT = " fragment"
    ALL = " all"


TAILS = {
    ("none", False): Tails.BLOCK,
    ("none", True): Tails.INLINE,
    ("tails", False): Tails.FRAGMENT,
    ("tails", True): Tails.FRAGMENT,  # here, only the packed inode's own tail is inline
    ("all", False): Tails.ALL,
    ("all", True): Tails.ALL,
}
"""(WriteOptions.fragments, .ztailpacking) → what happens to the ends of files"""
