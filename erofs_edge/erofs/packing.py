# SPDX-License-Identifier: Apache-2.0
"""Store the packed inode: once, or twice if keeping a baseline's places costs too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from erofs_edge.erofs.codings import Codings
from erofs_edge.erofs.contents import PIECE
from erofs_edge.erofs.cut_rules import Tails
from erofs_edge.erofs.files import FileStore
from erofs_edge.erofs.malloc import give_back_free_memory, give_back_large_memory
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.packed import add_packed_node, set_packed_content
from erofs_edge.erofs.piece import Stored
from erofs_edge.erofs.plan import PACKED_PATH, Plan

if TYPE_CHECKING:  # imported late, for builds with a baseline only
    from erofs_edge.erofs.baseline import Baseline


def store_packed(
    plan: Plan,
    files: FileStore,
    codings: Codings,
    options: WriteOptions,
    run: Callable[..., Iterator[Stored]],
    baseline: Baseline | None,
) -> Iterator[Stored]:
    """Store the packed inode, if it has any content: as in the baseline, unless that takes too much space.

    `run` compresses pieces. Yields what was stored, for counting; what is discarded again counts twice.
    """
    old, ino = None, 0
    if baseline is not None:
        from erofs_edge.erofs.stable import number_for

        old, ino = baseline.packed, number_for(PACKED_PATH, plan, baseline)
    files.place_fragments(old)
    if codings.default is None or not files.packer.content.size:
        return
    rules = codings.default._replace(pcluster=options.packed_pcluster_size, packed=True)
    # threads will hold several pieces, as no file has required so far; with lz4, new memory costs time
    if files.packer.content.size > PIECE and rules.level is not None:
        give_back_large_memory()
        give_back_free_memory()
    tails = Tails.INLINE if options.ztailpacking else Tails.BLOCK
    node = add_packed_node(plan, files.packer, ino)
    for stored in run(files.packer.pieces(node), rules=rules, tails=tails):
        files.take(stored)
        yield stored
    if old is None or not (files.is_loose() or (options.compact and files.packer.gaps)):
        return
    files.drop_packed(node)
    files.place_fragments()
    set_packed_content(node, files.packer)
    for stored in run(files.packer.pieces(node), rules=rules, tails=tails):
        files.take(stored)
        yield stored
