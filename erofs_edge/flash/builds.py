# SPDX-License-Identifier: Apache-2.0
"""Tell a damaged copy of an image from another build, which may differ from it in few blocks.

A repair writes to slots that are in use. If it took an older system for a damaged newer one, it would replace the only
system that is known to work. So it looks at blocks that no two builds have in common: the top of the hash tree and the
EROFS superblock, whose UUID follows from the content; elsewhere, as in a signed boot image, the first and the last one.
"""

from __future__ import annotations

from collections.abc import Iterator

from erofs_edge.erofs.ondisk import SUPER_MAGIC, SUPER_OFFSET
from erofs_edge.flash.comparing import CHUNK, pieces
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Region
from erofs_edge.flash.survey import digest
from erofs_edge.flash.target import BLOCK, Ability, Target
from erofs_edge.verity.superblock import MAGIC as TREE

EROFS = SUPER_MAGIC.to_bytes(4, "little")
ERASED = (b"\0", b"\xff")


def is_other_build(region: Region, image: Image, target: Target) -> bool:
    """Whether the target holds another build there: none of the blocks that identify the image's is on the target, and
    at least one of them is not erased. Raises OSError if the target fails, SourceError if the image does."""
    is_other = False
    for start in _marks(region, image):
        want = image.read(start - region.shift, min(BLOCK, region.end - start))
        if _holds(target, start, want):
            return False
        is_other = is_other or not any(_holds(target, start, byte * len(want)) for byte in ERASED)
    return is_other


def _marks(region: Region, image: Image) -> Iterator[int]:
    """Where these blocks begin, on the target."""
    tree = last = None
    for start, end in pieces(region.data, CHUNK):
        data = image.read(start - region.shift, end - start)
        if (used := len(data.rstrip(b"\0"))) > 0:
            last = start + (used - 1) // BLOCK * BLOCK
        at = data.find(TREE)
        while at >= 0:
            if at % BLOCK == 0:
                tree = start + at + BLOCK
            at = data.find(TREE, at + 1)
    if last is None:
        return
    if tree is None or image.read(region.start - region.shift + SUPER_OFFSET, len(EROFS)) == EROFS:
        yield region.start
    yield last if tree is None else tree


def _holds(target: Target, start: int, want: bytes) -> bool:
    if Ability.HASH in target.abilities:
        return target.digests([(start, len(want))]) == [digest(target.hash_name, want)]
    return target.read(start, len(want)) == want
