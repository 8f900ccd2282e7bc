# SPDX-License-Identifier: Apache-2.0
"""A piece of a file and its result: read, judged and compressed by one thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from erofs_edge.erofs.cached_cuts import cut_before_cached, cut_cached
from erofs_edge.erofs.compress import COMPRESSED_MAGIC, Cutter
from erofs_edge.erofs.contents import read_piece, read_small, sha256
from erofs_edge.erofs.cut_rules import CutRules, Tails
from erofs_edge.erofs.meter import Meter
from erofs_edge.erofs.plan import Node, is_tiny
from erofs_edge.erofs.segments import Segment, raw_segment, segment_gains, whole_fragment
from erofs_edge.tree import Content

if TYPE_CHECKING:  # imported late, since few builds need it
    from erofs_edge.erofs.anchors import Anchors, OldExtent
    from erofs_edge.erofs.cache import CompressionCache
    from erofs_edge.erofs.repeats import Key
    from erofs_edge.erofs.sharing import Shares

BLOCK, INLINE, FRAGMENT, ALL = Tails  # before Python 3.12, looking up a member of an enum takes as long as a call
MAGIC = 16  # bytes at the start of a file that show its kind


class Piece:
    """Bytes [offset, offset + length) of a file, or (twin) a file with the content of an earlier one.

    packed  None for files; for the packed inode, whether this part is compressible
    old     for the packed inode: the extents that an older image has there
    data    its bytes, if they have been read already and will not change
    """

    __slots__ = ("data", "length", "node", "offset", "old", "packed", "twin")

    def __init__(
        self,
        node: Node,
        offset: int,
        length: int,
        twin: Node | None = None,
        packed: bool | None = None,
        old: Sequence[OldExtent] = (),
    ) -> None:
        self.node, self.offset, self.length, self.twin, self.packed, self.old = node, offset, length, twin, packed, old
        self.data: bytes | None = None

    @property
    def key(self) -> Key:
        return self.node, self.offset

    @property
    def is_whole(self) -> bool:
        return self.length == self.node.size

    @property
    def is_last(self) -> bool:
        return self.offset + self.length == self.node.size


class Stored(NamedTuple):
    """The result for a piece: `segment` if it was compressed, else the raw `data` (None for twins).

    For a fragment, `digest` is the sha256 (empty if it was not read), and `dense` says that it does not compress.
    """

    piece: Piece
    segment: Segment | None
    data: bytes | memoryview | None
    digest: bytes = b""
    dense: bool = False


class Worker(threading.local):
    """A thread's cutters, by identity of their rules: comparing all values would take longer than small files do."""

    def __init__(self, meter: Meter | None) -> None:
        self.meter = meter
        self.cutters: dict[int, Cutter] = {}

    def cutter(self, rules: CutRules) -> Cutter:
        cutter = self.cutters.get(id(rules))
        if cutter is None or cutter.rules is not rules:
            cutter = self.cutters[id(rules)] = Cutter(rules, self.meter)
        return cutter

    def restart(self) -> None:
        """Call Cutter.restart for all cutters of this thread."""
        for cutter in self.cutters.values():
            cutter.restart()


def content_of(node: Node) -> Content:
    """Return the content of a file."""
    assert node.inode.content is not None  # noqa: S101 - files without content have no pieces
    return node.inode.content


def store_piece(
    piece: Piece,
    cutter: Cutter | None,
    cache: CompressionCache | None,
    block_size: int,
    tails: Tails,
    beside: int,
    shares: Shares | None = None,
) -> Stored:
    """Process one piece. `cutter` is None if it is not to be compressed; `shares` is given only for pieces related to
    others. Raises SourceError if it cannot be read."""
    if piece.twin:
        return Stored(piece, None, None)
    if cutter is not None and tails in (FRAGMENT, ALL) and not is_tiny(piece.node, beside):
        fragment = _whole_fragment(piece, cutter, tails)
        if fragment is not None:
            return fragment
    elif tails is not INLINE and piece.node.size <= block_size:
        cutter = None
    content = content_of(piece.node)
    data = read_small(content, piece.length)  # file names are formatted only when needed
    if data is None:
        data = read_piece(content, piece.offset, piece.length, piece.node.where)
    if piece.packed is False:
        return Stored(piece, raw_segment(data, block_size), None)
    if cutter is None or (piece.packed is None and _is_incompressible(piece, data, cutter)):
        return Stored(piece, None, data)
    if cutter.rules.by_kind and piece.packed is None:
        cutter = cutter.for_start(data[:MAGIC] if not piece.offset else _start(piece))
    end = tails if piece.is_last else BLOCK
    if shares is None:
        segment = cut_cached(data, cutter, cache, end, _unchanged(piece, data) if piece.old else None)
    else:
        before = partial(cut_before_cached, cutter=cutter, cache=cache)
        segment = shares.cut(piece.key, data, before, partial(cut_cached, cutter=cutter, cache=cache, tails=end))
    if piece.is_whole and not segment_gains(segment, piece.node.size, block_size):
        return Stored(piece, None, data)
    digest = sha256(memoryview(data)[-segment.fragment :]) if segment.fragment else b""
    return Stored(piece, segment, None, digest)


def _whole_fragment(piece: Piece, cutter: Cutter, tails: Tails) -> Stored | None:
    """Return the result for a file that goes to the packed inode whole and uncut; None for one that has to be cut.

    It is read only if its sha256 is useful: with ALL, twins have already found equal files.
    """
    node = piece.node
    if tails is ALL:
        return Stored(piece, whole_fragment(node.size), None, dense=_is_incompressible(piece, None, cutter))
    if node.size > cutter.rules.pcluster:
        return None
    data = read_piece(content_of(node), 0, node.size, node.where)
    dense = _is_incompressible(piece, data, cutter)
    return Stored(piece, whole_fragment(node.size), None, sha256(data), dense)


def _is_incompressible(piece: Piece, data: bytes | None, cutter: Cutter) -> bool:
    """Give the same answer for every piece of a file."""
    start = data if data is not None and not piece.offset else _start(piece)
    if not start.startswith(COMPRESSED_MAGIC):
        return False
    offset, length = cutter.probe_range(piece.node.size, start)
    if piece.is_whole and data is not None:
        return cutter.is_incompressible(data[offset : offset + length])
    return cutter.is_incompressible(read_piece(content_of(piece.node), offset, length, piece.node.where))


def _start(piece: Piece) -> bytes:
    return read_piece(content_of(piece.node), 0, min(MAGIC, piece.node.size), piece.node.where)


def _unchanged(piece: Piece, data: bytes) -> Anchors:
    from erofs_edge.erofs.anchors import unchanged

    return unchanged(piece.old, data, piece.offset)
