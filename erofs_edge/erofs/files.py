# SPDX-License-Identifier: Apache-2.0
"""Store file data: whole blocks are appended to the image, and what stays with the inode is kept in its node."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

from erofs_edge.erofs.chunks import ChunkStore
from erofs_edge.erofs.codings import Codings
from erofs_edge.erofs.contents import pieces
from erofs_edge.erofs.extent_table import build_table
from erofs_edge.erofs.index import Extent, Site, build_index, build_index_of_one, layout_for
from erofs_edge.erofs.looseness import weigh
from erofs_edge.erofs.ondisk import (
    INCOMPAT_48BIT,
    INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEDUPE,
    INCOMPAT_FRAGMENTS,
    INCOMPAT_ZTAILPACKING,
    LAYOUT_CHUNK_BASED,
    LAYOUT_COMPRESSED_COMPACT,
    LAYOUT_COMPRESSED_FULL,
    LAYOUT_FLAT_INLINE,
    NULL_ADDR,
)
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.output import Chunk, Sink
from erofs_edge.erofs.packed import Packer, Part
from erofs_edge.erofs.piece import Piece, Stored
from erofs_edge.erofs.places import OldPacked
from erofs_edge.erofs.plan import NO_BLOCK, Node, choose_flat_layout, reach
from erofs_edge.erofs.ranged import joined, use_extents
from erofs_edge.erofs.repeats import Key, Repeats
from erofs_edge.erofs.segments import JoinedSegment, Segment, gains
from erofs_edge.erofs.sharing import place_extent
from erofs_edge.erofs.spool import Spool
from erofs_edge.errors import CapacityError, SourceError

COPY = 4 << 20  # bytes


class _Placed(NamedTuple):
    """Where a file's blocks are; if it is compressed, its extents, inline tail and number in the packed inode. `apart`:
    each extent is placed separately."""

    block: int
    extents: list[Extent] | None
    tail: bytes = b""
    part: int = -1
    apart: bool = False


class FileStore:
    """Takes stored pieces in order. `originals` are the files of which others will be copies.

    With a Spool or an extra device as sink, blocks get their final numbers only in `settle`.

    size      bytes of all files, set by the caller
    features  incompatible bits required by what was stored
    repeats   extents that refer to parts of other files, `repeated` bytes in total
    excess    blocks that the packed inode would save if it had no gaps
    """

    def __init__(
        self,
        sink: Sink | Spool,
        codings: Codings,
        options: WriteOptions,
        originals: Iterable[Node],
        chunks: ChunkStore | None = None,
        repeats: Repeats | None = None,
        apart: Container[bytes] = (),
    ) -> None:
        """`apart`: paths of files whose extents need not stay together (only with a Spool)."""
        self._sink = sink
        self._spool = sink if isinstance(sink, Spool) else None
        self._moves = self._spool is not None or (options.blob is not None and chunks is None)
        full = options.full_index or options.wide or not codings.big
        self.is_direct = not (full or self._moves or chunks is not None or (repeats is not None and repeats.numbers))
        self._repeats = repeats or Repeats()
        self._apart = apart
        self._bases: dict[int, int] = {}
        self._chunks, self._codings = chunks, codings
        self._block_size, self._block_bits = options.block_size, options.block_bits
        self._options = options
        self._originals: dict[Node, _Placed | None] = dict.fromkeys(originals)
        self._first_block = self._first_run = 0
        self._extents: list[Extent] = []
        self._unused: list[int] = []
        self._own = 0
        self._flat = False
        self._tail = b""
        self._unplaced: list[tuple[Node, _Placed]] = []
        self._unsettled: dict[Node, _Placed] = {}
        self.packer = Packer(options.block_size)
        self.compressed = self.stored = self.reused = self.shared = self.repeats = self.repeated = 0
        self.size = self.features = self.excess = 0
        self._before_packed = (0, 0, 0)

    def take(self, stored: Stored) -> None:
        """Store a piece. Pieces of a file come one after the other, as the pipeline yields them."""
        piece, segment, data, _, _ = stored
        node = piece.node
        if piece.twin:
            self._copy(node, piece.twin)
            return
        if self.is_direct and piece.length == node.size and piece.packed is None and node not in self._originals:
            # most files are a single piece that nothing else depends on
            if segment is None and data is not None:
                self._take_flat(node, data)
                return
            if type(segment) is JoinedSegment and self._take_alone(node, segment):
                return
        if not piece.offset:
            self._begin(node)
            self._extents, self._unused = [], []
            self._own = 0
            self._flat = segment is None
        elif self._flat != (segment is None):
            # the decision to compress was based on different contents
            raise SourceError("file changed while it was being read", where=node.where)
        if segment is None:
            if data is not None:
                self._append_flat(node, data, piece.offset)
            return
        if self._spool is not None and self._is_apart(piece):
            self._append_apart(node, segment, piece.key, self._spool)
        else:
            self._append_segment(segment, piece.key)
        if piece.is_last:
            self._finish_compressed(node, stored)

    def _take_flat(self, node: Node, data: bytes | memoryview) -> None:
        """Store a whole file uncompressed."""
        block_size, sink = self._block_size, self._sink
        block = sink.position >> self._block_bits
        if block >= NULL_ADDR:
            reach(node, block, self._options)
        room = block_size - node.head_size if self._options.inline_tails else 0
        if len(data) <= room:  # the most common result of `choose_flat_layout`
            node.layout, node.i_u, node.tail_size, node.tail = LAYOUT_FLAT_INLINE, NO_BLOCK, len(data), bytes(data)
            return
        blocks = choose_flat_layout(node, block_size, room)
        self.stored += blocks > 0
        if tail := node.tail_size:
            node.tail = bytes(data[-tail:])
        if blocks:
            node.i_u = block
            sink.append([memoryview(data)[: len(data) - tail], bytes(0 if tail else -len(data) % block_size)])

    def _take_alone(self, node: Node, segment: Segment) -> bool:
        """Store a whole file that is one pcluster, if its index has the usual form. Return whether it had."""
        length, blocks, raw, _, _ = segment.extents[0]
        block = self._sink.position >> self._block_bits
        if length != node.size or raw or block + blocks >= NULL_ADDR:
            return False
        rules = self._codings.of(node)
        assert rules is not None  # noqa: S101 - it is compressed
        index = build_index_of_one(blocks, length, self._block_bits, block, node.head_size, rules.codec.algorithm)
        if not index:
            return False
        self._sink.append(segment.chunks)
        self.compressed += 1
        node.layout, node.i_u, node.index = LAYOUT_COMPRESSED_COMPACT, blocks, index
        return True

    def take_symlink(self, node: Node) -> None:
        """Store a symlink's target, next to its inode if it fits."""
        self._begin(node)
        choose_flat_layout(node, self._block_size, self._block_size - node.head_size)
        self._append_data(node, node.inode.target, last=True)

    def settle(self, where: Callable[[int], int]) -> None:
        """Give files their final blocks in the image. May be called again whenever these change."""
        for node, stored in self._unsettled.items():
            if stored.extents is None:
                node.i_u = where(stored.block)
            else:
                fragment = self.packer.offsets[stored.part] if stored.part >= 0 else -1
                self._set_index(node, stored, fragment, where)
        if self._chunks is not None:
            self._chunks.settle(where)

    def place_fragments(self, old: OldPacked | None = None) -> None:
        """All files are stored and the packed inode is complete: make the indexes that refer to it. With `old`, what is
        in the old packed inode keeps its place."""
        self.packer.close(old)
        self._before_packed = self.features, self.compressed, self.stored
        for node, placed in self._unplaced:
            if self._moves:
                self._unsettled[node] = placed
            if not isinstance(self._sink, Spool):
                self._set_index(node, placed, self.packer.offsets[placed.part], self._until_settled)

    def is_loose(self) -> bool:
        """Whether the packed inode, which was stored last, should be reassembled. Sets `excess`."""
        size = self._options.packed_pcluster_size
        packed = weigh(self._extents, self._unused, self.packer.used, size, self._block_size)
        self.excess = packed.excess // self._block_size
        return packed.is_loose

    def drop_packed(self, node: Node) -> None:
        """Discard the packed inode, which was stored last, to store it differently, perhaps without blocks or a
        tail."""
        assert isinstance(self._sink, Spool)  # noqa: S101 - otherwise there is no alternative
        self._sink.rewind(self._first_run)
        self.features, self.compressed, self.stored = self._before_packed
        self._unsettled.pop(node, None)
        node.index, node.tail, node.tail_size = b"", b"", 0
        self.excess = 0

    @property
    def fragments(self) -> int:
        """Number of files that are, or end, in the packed inode."""
        return len(self._unplaced)

    def _begin(self, node: Node) -> None:
        """Prepare for the blocks of a file."""
        if self._spool is not None:
            self._first_run = self._spool.start(node.path)
        self._first_block = self._sink.position // self._block_size
        reach(node, self._first_block, self._options)

    def _set_block(self, node: Node, block: int) -> None:
        node.i_u = block
        if self._moves:
            self._unsettled[node] = _Placed(block, None)

    def _append_segment(self, segment: Segment, key: Key) -> None:
        self._tail = b""
        if type(segment) is JoinedSegment:
            self._sink.append(segment.chunks)
            self._extents += segment.extents
            return
        chunks: list[Chunk] = []
        number = self._repeats.numbers.get(key)
        if number is not None:
            self._bases[number] = self._sink.position // self._block_size
        refers = False
        for extent, chunk in zip(segment.extents, segment.chunks, strict=False):  # fragments have no chunk
            _, blocks, raw, place, _ = extent
            if place >= 0:
                refers = True
                self.repeats += 1
                self.repeated += extent.length
            elif not blocks:
                self._tail = bytes(chunk)
            else:
                chunks.append(chunk)
                if raw and (padding := -len(chunk) % self._block_size):
                    chunks.append(bytes(padding))
        self._sink.append(chunks)
        self._extents += [place_extent(e, self._bases) for e in segment.extents] if refers else segment.extents

    def _is_apart(self, piece: Piece) -> bool:
        """Whether each extent may be placed separately."""
        return self._spool is not None and (piece.packed is not None or piece.node.path in self._apart)

    def _append_apart(self, node: Node, segment: Segment, key: Key, spool: Spool) -> None:
        """Append a piece whose extents may each be placed separately."""
        at = sum(extent.length for extent in self._extents)
        self._tail = b""
        number = self._repeats.numbers.get(key)
        if number is not None:
            self._bases[number] = spool.position // self._block_size
        for extent, chunk in zip(segment.extents, segment.chunks, strict=True):
            if extent.place >= 0:
                self.repeats += 1
                self.repeated += extent.length
                self.features |= INCOMPAT_DEDUPE
                self._extents.append(place_extent(extent, self._bases))
                spool.use(self._extents[-1].place, node.path, at, at + extent.length)
            elif not extent.blocks:
                self._tail = bytes(chunk)
                self._extents.append(extent)
            else:
                spool.start(node.path, at, at + extent.length)
                self._extents.append(extent._replace(place=spool.position // self._block_size))
                spool.append([chunk, bytes(-len(chunk) % self._block_size)])
                self._own += extent.blocks
            first = bytes(memoryview(chunk)[: self._block_size])
            self._unused.append(len(first) - len(first.lstrip(b"\0")))
            at += extent.length

    def _finish_compressed(self, node: Node, stored: Stored) -> None:
        assert stored.segment is not None  # noqa: S101 - it is compressed
        apart = self._is_apart(stored.piece)
        if not stored.piece.is_whole or stored.piece.packed is not None:  # already known for whole files
            blocks = self._own if apart else sum([extent.blocks for extent in self._extents if extent.place < 0])
            is_fragment = stored.segment.fragment == node.size or node in self._repeats.sources
            if not is_fragment and not gains(node.size, blocks, self._block_size, len(self._tail)):
                self._restart_flat(node)
                return
        number = -1
        if length := stored.segment.fragment:
            assert node.inode.content is not None  # noqa: S101 - it was read before
            part = Part(node.inode.content, node.size - length, length, node.where, stored.digest, node.path)
            number = self.packer.add(part, dense=stored.dense)
            self.features |= INCOMPAT_FRAGMENTS
        placed = _Placed(self._first_block, self._extents, self._tail, number, apart)
        self._set_compressed(node, placed)
        if node in self._originals:
            self._originals[node] = placed

    def _set_compressed(self, node: Node, placed: _Placed) -> None:
        assert placed.extents is not None  # noqa: S101 - it is compressed
        self.compressed += 1
        if placed.part >= 0:
            self._unplaced.append((node, placed))
            return
        node.tail, node.tail_size = placed.tail, len(placed.tail)
        if placed.tail:
            self.features |= INCOMPAT_ZTAILPACKING
        if self._moves:
            self._unsettled[node] = placed
        if self._spool is None:
            self._set_index(node, placed, -1, self._until_settled)

    def _until_settled(self, block: int) -> int:
        """Return the block number as far as it is known: data on a device comes after the image."""
        return block + self._moves

    def _set_index(
        self, node: Node, placed: _Placed, fragment: int, where: Callable[[int], int] = lambda block: block
    ) -> None:
        extents = placed.extents
        assert extents is not None  # noqa: S101 - it is compressed
        options, rules = self._options, self._codings.of(node)
        assert rules is not None  # noqa: S101 - it is compressed
        whole = fragment >= 0 and len(extents) == 1
        own = blocks = sum([e.blocks for e in extents])
        ends: list[int] = []
        if [True for e in extents if e.place >= 0]:
            extents = [e if e.place < 0 else e._replace(place=where(e.place)) for e in extents]
            own = sum([e.blocks for e in extents if e.place < 0])
        first = where(placed.block) if own else 1  # has no meaning then
        if placed.apart and (together := joined(extents)) is not None:
            first, extents = together
            own = blocks
        elif own < blocks:
            ends = [e.place + e.blocks for e in extents if e.place >= 0]
            if not placed.apart:
                self.features |= INCOMPAT_DEDUPE
        full = options.full_index or bool(ends)  # compact indexes state only where the first pcluster is
        node.layout = layout_for(self._block_bits, fragment, whole=whole, full=full)
        # inline data counts as a block in st_blocks, as in mkfs.erofs
        node.i_u = blocks + bool(node.tail_size)
        site = Site(self._block_bits, first, node.head_size + 7 & ~7, fragment, rules.codec.algorithm)
        far = max(first + own, *ends, 0) > NULL_ADDR
        node.index = b""
        if not far:
            big = self._codings.big
            node.index = build_index(extents, node.size, site, big=big, inline=node.tail_size, full=full)
        if far or (options.wide and not whole and not node.tail_size):
            self._set_table(node, build_table(extents, node.size, site))

    def _set_table(self, node: Node, table: bytes) -> None:
        """Use the index introduced with 48-bit addresses if it is shorter or the only possible one."""
        if not node.index and node.tail_size:
            raise CapacityError(
                "an inline tail cannot go with data behind block 2**32", where=node.where, hint="omit -E ztailpacking"
            )
        if not node.index or len(table) < len(node.index):
            node.index, node.layout = table, LAYOUT_COMPRESSED_FULL
            self.features |= INCOMPAT_48BIT

    def _restart_flat(self, node: Node) -> None:
        """Store a file flat after all: only after several segments did it turn out that compression gains nothing."""
        self._extents, self._unused = [], []
        assert node.inode.content is not None  # noqa: S101 - it was read before
        if isinstance(self._sink, Spool):
            self._sink.rewind(self._first_run)
        else:
            self._sink.rewind(self._first_block * self._block_size)
        offset = 0
        for data in pieces(node.inode.content, node.where):
            self._append_flat(node, data, offset)
            offset += len(data)

    def _append_flat(self, node: Node, data: bytes | memoryview, offset: int) -> None:
        room = self._block_size - node.head_size if self._options.inline_tails else 0
        if self._chunks is not None and node.size > min(room, self._block_size - 1):
            self._chunks.take(node, data, offset)
            self.stored += not offset
            self.features |= INCOMPAT_CHUNKED_FILE
            if node in self._originals:
                self._originals[node] = _Placed(self._first_block, None)
            return
        if not offset:
            choose_flat_layout(node, self._block_size, room)
            self.stored += node.size > node.tail_size
            if node in self._originals:
                self._originals[node] = _Placed(self._first_block, None)
        self._append_data(node, data, last=offset + len(data) == node.size)

    def _append_data(self, node: Node, data: bytes | memoryview, *, last: bool) -> None:
        whole = len(data)
        if last and node.tail_size:
            whole -= node.tail_size
            node.tail = bytes(data[whole:])
        if not whole:
            return
        self._set_block(node, self._first_block)
        chunks: list[Chunk] = [data if whole == len(data) else memoryview(data)[:whole]]
        if padding := -whole % self._block_size:
            chunks.append(bytes(padding))
        self._sink.append(chunks)

    def _copy(self, node: Node, original: Node) -> None:
        """Copy the bytes of an equal earlier file, or share its blocks if the options allow it."""
        placed = self._originals[original]
        assert placed is not None  # noqa: S101 - the original comes first
        self.reused += 1
        if original.layout == LAYOUT_CHUNK_BASED:
            assert self._chunks is not None  # noqa: S101 - it made the original
            self._chunks.copy(node, original)
            self.stored += 1
            self.shared += 1
            return
        if self._options.shares and self._share(node, original, placed):
            self.shared += 1
            return
        self._begin(node)
        start = placed.block * self._block_size
        if placed.extents is None:
            if original.size == original.tail_size:  # all of it is next to its inode
                self._append_flat(node, original.inline, 0)
                return
            size = original.size - original.tail_size
            for offset in range(0, size, COPY):
                data = self._sink.read(start + offset, min(COPY, size - offset))
                if offset + COPY >= size:
                    data += original.inline
                self._append_flat(node, data, offset)
            return
        size = sum(extent.blocks for extent in placed.extents) * self._block_size
        if placed.apart:  # each extent is a separate run
            for extent in (extent for extent in placed.extents if extent.blocks):
                place, length = extent.place * self._block_size, extent.blocks * self._block_size
                self._sink.append([self._sink.read(place, length)])
            alone = [extent._replace(place=-1) for extent in placed.extents]
            self._set_compressed(node, placed._replace(block=self._first_block, extents=alone, apart=False))
            return
        for offset in range(0, size, COPY):
            self._sink.append([self._sink.read(start + offset, min(COPY, size - offset))])
        self._set_compressed(node, placed._replace(block=self._first_block))

    def _share(self, node: Node, original: Node, placed: _Placed) -> bool:
        """Let a file refer to the blocks of an equal one. False if its tail does not fit where the original's did.

        Flat files need no feature bit for this: each names its first block, and nothing says that the block is
        exclusive. Kernels without the feature bit do not expect a pcluster to belong to two files.
        """
        if placed.extents is not None:
            self._set_compressed(node, placed)
            if isinstance(self._sink, Spool):
                use_extents(self._sink, node.path, placed.block, placed.extents)
            if any(extent.blocks for extent in placed.extents):
                self.features |= INCOMPAT_DEDUPE
            return True
        reach(node, placed.block, self._options)
        room = self._block_size - node.head_size if self._options.inline_tails else 0
        blocks = choose_flat_layout(node, self._block_size, room)
        if blocks > -(-(original.size - original.tail_size) // self._block_size):
            return False
        if node.tail_size:
            tail_at = placed.block * self._block_size + node.size - node.tail_size
            node.tail = original.inline or self._sink.read(tail_at, node.tail_size)
        if blocks:
            self._set_block(node, placed.block)
        self.stored += node.size > node.tail_size
        return True
