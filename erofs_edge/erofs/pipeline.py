# SPDX-License-Identifier: Apache-2.0
"""Reading and compressing in threads: pieces of files in, stored pieces out, always in the same order.

Threads pay because reading, hashing and compressing happen in C without the interpreter's lock. What is in flight is
bounded in bytes, so memory does not grow with the tree.
"""

from __future__ import annotations

import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from erofs_edge.erofs.codings import Codings
from erofs_edge.erofs.compress import (
    COMPRESSED_MAGIC,
    CutRules,
    Cutter,
    Segment,
    Tails,
    raw_segment,
    segment_gains,
    whole_fragment,
)
from erofs_edge.erofs.contents import PIECE, ZEROS, digest, read_piece, read_small, sha256
from erofs_edge.erofs.index import Extent
from erofs_edge.erofs.meter import Meter
from erofs_edge.erofs.options import Ahead
from erofs_edge.erofs.plan import Node, is_tiny
from erofs_edge.threads import Threads
from erofs_edge.tree import Content, FileContent

if TYPE_CHECKING:  # what few builds need is loaded when they do
    from erofs_edge.erofs.anchors import Anchors, OldExtent
    from erofs_edge.erofs.cache import CompressionCache
    from erofs_edge.erofs.repeats import Key
    from erofs_edge.erofs.sharing import Shares

BATCH = 1 << 20  # bytes of small files that make one task
IN_FLIGHT = 64 << 20  # bytes of content being read, compressed, or waiting for their turn
HASH_BATCH = 64  # files
SAMPLE, SAMPLED = 4096, 16 << 10  # bytes from the middle of files that have more than these
BLOCK, INLINE, FRAGMENT, ALL = Tails  # looking up an enum's members takes as long as a call, before Python 3.12
MAGIC = 16  # bytes at the start of a file that tell its kind


class Piece:
    """Bytes [offset, offset + length) of a file, or (twin) a file that has the content of an earlier one.

    packed  None for files; of the packed inode, whether this is what compresses
    old     of that: the extents that an older image has there
    data    its bytes, where they have been read already and stay as they are
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
    """What became of a piece: `segment` when it was compressed, else `data` as it is (None for twins).

    Of a fragment, `digest` is the sha256 (empty when it was not read), `dense` tells that it does not compress.
    """

    piece: Piece
    segment: Segment | None
    data: bytes | memoryview | None
    digest: bytes = b""
    dense: bool = False


class Worker(threading.local):
    """A thread's cutters, by the identity of their rules: comparing all values takes longer than small files do."""

    def __init__(self, meter: Meter | None) -> None:
        self.meter = meter
        self.cutters: dict[int, Cutter] = {}

    def cutter(self, rules: CutRules) -> Cutter:
        cutter = self.cutters.get(id(rules))
        if cutter is None or cutter.rules is not rules:
            cutter = self.cutters[id(rules)] = Cutter(rules, self.meter)
        return cutter

    def restart(self) -> None:
        """As Cutter.restart, of all that this thread has."""
        for cutter in self.cutters.values():
            cutter.restart()


def find_twins(files: Iterable[Node], codings: Codings, pool: Threads, *, larger_than: int) -> dict[Node, Node]:
    """Files with content and compression of an earlier one → the first of them. Only files of equal size are read, and
    large ones as a whole only where the same stands in their middle."""
    candidates = [n for n in files if n.size > larger_than]
    sizes = Counter(n.size for n in candidates)
    candidates = [n for n in candidates if sizes[n.size] > 1]
    large = [n for n in candidates if n.size > SAMPLED]
    samples = dict(zip(large, _of_each(large, _sample, pool), strict=True))
    alike = Counter((n.size, sample) for n, sample in samples.items())
    candidates = [n for n in candidates if n.size <= SAMPLED or alike[n.size, samples[n]] > 1]
    twins = {}
    first: dict[tuple[bytes, CutRules | None], Node] = {}
    hashes = _of_each(candidates, lambda node: digest(_content(node), node.where), pool)
    for node, content_hash in zip(candidates, hashes, strict=True):
        original = first.setdefault((content_hash, codings.of(node)), node)
        if original is not node:
            twins[node] = original
    return twins


def _of_each(nodes: Sequence[Node], call: Callable[[Node], bytes], pool: Threads) -> Iterator[bytes]:
    """What `call` gives for each, in threads."""
    batches = [nodes[at : at + HASH_BATCH] for at in range(0, len(nodes), HASH_BATCH)]
    return (one for batch in pool.map(lambda batch: [call(node) for node in batch], batches) for one in batch)


def _sample(node: Node) -> bytes:
    return read_piece(_content(node), (node.size - SAMPLE) // 2, SAMPLE, node.where)


def store(
    pieces: Iterable[Piece],
    pool: Threads,
    *,
    rules: CutRules | None,
    block_size: int,
    cache: CompressionCache | None,
    tails: Tails = BLOCK,
    special: Mapping[Node, CutRules | None] = MappingProxyType({}),
    beside: int = 0,
    shares: Shares | None = None,
    ahead: Ahead | None = None,
    meter: Meter | None = None,
) -> Iterator[Stored]:
    """Every piece, in order. Without rules nothing is compressed but the files that have `special` ones.

    `beside` is what a block has for an inode and its data, 0 if they are kept apart. With `shares` pieces may wait for
    earlier ones: they must be started in order. What `ahead` has started is taken from there. `meter` measures the
    codecs.
    """
    local = Worker(meter)

    def work(batch: list[Piece]) -> list[Stored]:
        return [store_one(piece) for piece in batch]

    def store_one(piece: Piece) -> Stored:
        own = special.get(piece.node, rules)
        # a file that is not to be compressed does not end in the packed inode either
        cutter = local.cutter(own) if own else None
        if shares is None or not shares.touches(piece.key):
            started: Stored | None = ahead.take(piece) if ahead is not None and piece.twin is None else None
            if started is not None:
                return started
            return store_piece(piece, cutter, cache, block_size, tails if own else BLOCK, beside)
        compressed = False
        try:
            stored = store_piece(piece, cutter, cache, block_size, tails if own else BLOCK, beside, shares)
            compressed = stored.segment is not None
        finally:
            shares.finish(piece.key, compressed=compressed)
        return stored

    begin = partial(_begin, threads=lambda batch: pool.submit(work, batch), ahead=ahead, special=special)
    running: deque[tuple[int, Running]] = deque()
    in_flight = 0
    for size, batch in _batches(pieces, ahead):
        while running and in_flight + size > IN_FLIGHT:
            done, future = running.popleft()
            yield from future.result()
            in_flight -= done
        while (begun := begin(batch, wait=bool(running))) is None:
            done, future = running.popleft()
            yield from future.result()
            in_flight -= done
        running.append((size, begun))
        in_flight += size
    while running:
        yield from running.popleft()[1].result()
    if ahead is not None and ahead.crew is not None:
        ahead.crew.finish()


class Running(Protocol):
    """A batch that somebody is at work on."""

    def result(self) -> list[Stored]:
        """Waits for it, and raises what went wrong."""
        ...


class _Started(NamedTuple):
    """A piece that got a head start: a batch of its own."""

    ahead: Ahead
    piece: Piece
    otherwise: Callable[[list[Piece]], Running]

    def result(self) -> list[Stored]:
        stored = self.ahead.take(self.piece)
        return [stored] if stored is not None else self.otherwise([self.piece]).result()


def _begin(
    batch: list[Piece],
    threads: Callable[[list[Piece]], Running],
    ahead: Ahead | None,
    special: Mapping[Node, CutRules | None],
    *,
    wait: bool,
) -> Running | None:
    """Give a batch to the processes that `ahead` has, where it has some and they can do it, else to threads. None where
    `wait` allows to wait until there is room in the processes' memory."""
    if ahead is None or ahead.crew is None:
        return threads(batch)
    if len(batch) == 1 and batch[0].twin is None and ahead.has(batch[0]):
        return _Started(ahead, batch[0], threads)
    if not may_be_sent(batch) or (special and any(piece.node in special for piece in batch)):
        return threads(batch)
    ahead.crew.begin_all()
    begun: Running | None = ahead.crew.submit(batch)
    return begun if begun is not None or wait else threads(batch)


def _content(node: Node) -> Content:
    assert node.inode.content is not None  # noqa: S101 - files without content have no pieces
    return node.inode.content


def pieces_of(files: Iterable[Node], twins: dict[Node, Node], *, tails: Tails = BLOCK) -> Iterator[Piece]:
    """Each file's pieces, in order; those of twins, and with ALL of every file, are whole."""
    for node in files:
        if node.size <= PIECE or node in twins or tails is ALL:
            yield Piece(node, 0, node.size, twins.get(node))
            continue
        for offset in range(0, node.size, PIECE):
            yield Piece(node, offset, min(PIECE, node.size - offset))


def may_be_sent(pieces: Iterable[Piece]) -> bool:
    """Whether pieces depend on nothing but files of the host, which other processes can read."""
    for piece in pieces:
        if piece.packed is not None or piece.old or type(piece.node.inode.content) is not FileContent:
            return False
    return True


def _batches(pieces: Iterable[Piece], ahead: Ahead | None) -> Iterator[tuple[int, list[Piece]]]:
    """(bytes, pieces) of a task each; what processes have begun with is alone."""
    batch: list[Piece] = []
    size = 0
    begun = ahead if ahead is not None and ahead.crew is not None else None
    for piece in pieces:
        if begun is not None and piece.node.size >= begun.least and piece.twin is None and begun.has(piece):
            if batch:
                yield size, batch
                batch, size = [], 0
            yield 0, [piece]
            continue
        cost = 0 if piece.twin else piece.length
        if batch and size + cost > BATCH:
            yield size, batch
            batch, size = [], 0
        batch.append(piece)
        size += cost
    if batch:
        yield size, batch


def store_piece(
    piece: Piece,
    cutter: Cutter | None,
    cache: CompressionCache | None,
    block_size: int,
    tails: Tails,
    beside: int,
    shares: Shares | None = None,
) -> Stored:
    """What becomes of one piece. `cutter` is None for what is not to be compressed; `shares` only of pieces that have
    to do with others. Raises SourceError where it cannot be read."""
    if piece.twin:
        return Stored(piece, None, None)
    if cutter is not None and tails in (FRAGMENT, ALL) and not is_tiny(piece.node, beside):
        fragment = _whole_fragment(piece, cutter, tails)
        if fragment is not None:
            return fragment
    elif tails is not INLINE and piece.node.size <= block_size:
        cutter = None
    content = _content(piece.node)
    data = read_small(content, piece.length)  # names are made only where they are needed
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
        segment = _cut(data, cutter, cache, end, _unchanged(piece, data) if piece.old else None)
    else:
        before = partial(_cut_before, cutter=cutter, cache=cache)
        segment = shares.cut(piece.key, data, before, partial(_cut, cutter=cutter, cache=cache, tails=end))
    if piece.is_whole and not segment_gains(segment, piece.node.size, block_size):
        return Stored(piece, None, data)
    digest = sha256(memoryview(data)[-segment.fragment :]) if segment.fragment else b""
    return Stored(piece, segment, None, digest)


def _whole_fragment(piece: Piece, cutter: Cutter, tails: Tails) -> Stored | None:
    """A file that goes to the packed inode whole, without being compressed before; None for one that has to be cut.

    It is read only where its sha256 is of use: with ALL, twins have found equal files already.
    """
    node = piece.node
    if tails is ALL:
        return Stored(piece, whole_fragment(node.size), None, dense=_is_incompressible(piece, None, cutter))
    if node.size > cutter.rules.pcluster:
        return None
    data = read_piece(_content(node), 0, node.size, node.where)
    dense = _is_incompressible(piece, data, cutter)
    return Stored(piece, whole_fragment(node.size), None, sha256(data), dense)


def _is_incompressible(piece: Piece, data: bytes | None, cutter: Cutter) -> bool:
    """The same answer for every piece of a file."""
    start = data if data is not None and not piece.offset else _start(piece)
    if not start.startswith(COMPRESSED_MAGIC):
        return False
    offset, length = cutter.probe_range(piece.node.size, start)
    if piece.is_whole and data is not None:
        return cutter.is_incompressible(data[offset : offset + length])
    return cutter.is_incompressible(read_piece(_content(piece.node), offset, length, piece.node.where))


def _start(piece: Piece) -> bytes:
    return read_piece(_content(piece.node), 0, min(MAGIC, piece.node.size), piece.node.where)


def _unchanged(piece: Piece, data: bytes) -> Anchors:
    from erofs_edge.erofs.anchors import unchanged

    return unchanged(piece.old, data, piece.offset)


def _cut(
    data: bytes, cutter: Cutter, cache: CompressionCache | None, tails: Tails, old: Anchors | None = None
) -> Segment:
    cut = partial(cutter.recut, old=old) if old else cutter.cut
    if data is ZEROS:
        return _cut_zeros(cutter, tails)
    if cache is None:
        return cut(data, tails)
    from erofs_edge.erofs.cache import cache_key

    key = cache_key(sha256(data), cutter.identity + tails.value + (old.identity if old else ""))
    payload = cache.get(key)
    segment = _unpack(payload, data, cutter.rules.block_size) if payload is not None else None
    if segment is None:
        segment = cut(data, tails)
        cache.put(key, _pack(segment))
    return segment


def _cut_zeros(cutter: Cutter, tails: Tails) -> Segment:
    """The segment of a piece that lies in a hole: made once, a file may have thousands."""
    segment = cutter.zeros.get(tails)
    if segment is None:
        extents, chunks = cutter.cut(ZEROS, tails)
        # what a cutter gives out may not stay as it is, see Cutter.restart
        segment = cutter.zeros[tails] = Segment(extents, [bytes(chunk) for chunk in chunks])
    return segment


def _cut_before(data: bytes, phase: int, cutter: Cutter, cache: CompressionCache | None) -> Segment | None:
    """As Cutter.cut_before."""
    if cache is None:
        return cutter.cut_before(data, phase)
    from erofs_edge.erofs.cache import cache_key

    key = cache_key(sha256(data), f"{cutter.identity} before {phase}")
    payload = cache.get(key)
    segment = _unpack(payload, data, cutter.rules.block_size) if payload is not None else None
    if segment is None:
        segment = cutter.cut_before(data, phase)
        if segment is not None:
            cache.put(key, _pack(segment))
    return segment


def _pack(segment: Segment) -> list[bytes | memoryview]:
    """Number of extents, (length, blocks with the top bit for raw) of each, then the compressed pclusters."""
    numbers = [len(segment.extents)]
    for extent in segment.extents:
        numbers += (extent.length, extent.blocks | extent.raw << 31)
    # a fragment, the last extent, has no chunk
    compressed = [c for e, c in zip(segment.extents, segment.chunks, strict=False) if not e.raw]
    return [struct.pack(f"<{len(numbers)}I", *numbers), *compressed]


def _unpack(payload: bytes, data: bytes, block_size: int) -> Segment | None:
    """The segment that `_pack` stored, raw runs taken from the content; None if it does not fit the content."""
    if len(payload) < 4:
        return None
    count = int.from_bytes(payload[:4], "little")
    at = 4 + 8 * count
    if len(payload) < at:
        return None
    numbers = struct.unpack_from(f"<{2 * count}I", payload, 4)
    segment = Segment([], [])
    blob, source = memoryview(payload), memoryview(data)
    start = 0
    for length, field in zip(numbers[::2], numbers[1::2], strict=True):
        blocks, raw = field & 0x7FFFFFFF, bool(field >> 31)
        segment.extents.append(Extent(length, blocks, raw))
        if raw:
            segment.chunks.append(source[start : start + length])
        elif not blocks:  # the end of the file: an inline tail is the rest of the payload, a fragment nothing
            if at < len(payload):
                segment.chunks.append(blob[at:])
            at = len(payload)
        else:
            segment.chunks.append(blob[at : at + blocks * block_size])
            at += blocks * block_size
        start += length
    return segment if start == len(data) and at == len(payload) else None
