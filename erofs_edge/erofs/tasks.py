# SPDX-License-Identifier: Apache-2.0
"""What processes that compress are told, and what they tell: pieces of files and their results, as bytes."""

from __future__ import annotations

import marshal
import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from erofs_edge.erofs.index import Extent
from erofs_edge.erofs.piece import Piece, Stored
from erofs_edge.erofs.plan import Node
from erofs_edge.erofs.segments import JoinedSegment, Segment
from erofs_edge.tree import FileContent, Inode

RAW = 1 << 31
END = 1 << 40  # instead of blocks: what has none is not joined
IS_SEGMENT, IS_DENSE, HAS_DIGEST, IS_JOINED = 1, 2, 4, 8
_new: Any = tuple.__new__  # a named tuple's own way takes twice the time

Told = tuple[bytes, int, int, int, bool, int, int, int]
"""of a piece: the path, size and start of its content; the size of its file, whether the inode is extended, and bytes
of its attributes; offset and length of the piece"""


def task_of(pieces: Iterable[Piece]) -> bytes:
    """What a process has to know of pieces, whose contents are files of the host."""
    return marshal.dumps([_told(piece) for piece in pieces])


def _told(piece: Piece) -> Told:
    node = piece.node
    content: Any = node.inode.content
    path, size, start = content
    name = path if type(path) is bytes else os.fsencode(path)
    return name, size, start, node.size, node.extended, len(node.xattrs), piece.offset, piece.length


def pieces_of_task(task: bytes) -> Iterator[Piece]:
    """The pieces that `task_of` told of: one object, which is each of them in its turn."""
    inode = Inode(stat.S_IFREG)
    node = Node(inode, b"", 0, None)
    piece = Piece(node, 0, 0)
    told: list[Told] = marshal.loads(task)
    for path, size, start, node.size, node.extended, attributes, piece.offset, piece.length in told:
        inode.content = _new(FileContent, (path, size, start))
        node.xattrs = bytes(attributes)
        yield piece


def _chunks(stored: Stored) -> Sequence[bytes | memoryview]:
    """The bytes of a result."""
    if stored.data is not None:
        return [stored.data]
    return stored.segment.chunks if stored.segment is not None else []


def record_of(stored: Sequence[Stored], block_size: int) -> tuple[list[bytes | memoryview], bytes]:
    """The bytes of results, in order, and the record of what they are. Segments of whole blocks are joined, unless
    `block_size` is 0."""
    words: list[int] = []
    buffers: list[bytes | memoryview] = []
    for one in stored:
        _, segment, _, digest, dense = one
        chunks = _chunks(one)
        buffers += chunks
        lengths = [len(chunk) for chunk in chunks]
        if segment is None:
            words.append(0)
        else:
            numbers: list[int] = []
            total = 0
            for length, blocks, raw, _, _ in segment.extents:
                numbers += (length, blocks | raw << 31)
                total += blocks or END
            kind = IS_SEGMENT | dense * IS_DENSE | bool(digest) * HAS_DIGEST
            size = sum(lengths)
            if size == total * block_size:
                kind, lengths = kind | IS_JOINED, [size]
            words += (kind, len(segment.extents), *numbers, *array("I", digest))
        words += (len(lengths), *lengths)
    return buffers, array("I", words).tobytes()


def results_of(pieces: Iterable[Piece], view: memoryview, size: int, length: int) -> list[Stored]:
    """What became of pieces: `view` has `size` bytes of them, then `length` of their record. What a twin has nobody is
    told, and a piece that has its data keeps it: both have no part in the record."""
    words = view[size : size + length].cast("I").tolist()
    word = at = 0
    results = []
    for piece in pieces:
        if piece.twin is not None or piece.data is not None:
            results.append(_new(Stored, (piece, None, piece.data, b"", False)))
            continue
        kind, word = words[word], word + 1
        extents: list[Extent] = []
        digest = b""
        if kind:
            end = word + 1 + 2 * words[word]
            if end == word + 3:  # as most files have it
                field = words[word + 2]
                extents = [_new(Extent, (words[word + 1], field & ~RAW, field >= RAW, -1, False))]
            else:
                fields = zip(words[word + 1 : end : 2], words[word + 2 : end : 2], strict=True)
                extents = [_new(Extent, (n, field & ~RAW, field >= RAW, -1, False)) for n, field in fields]
            word = end
            if kind & HAS_DIGEST:
                digest, word = array("I", words[word : word + 8]).tobytes(), word + 8
        end = word + 1 + words[word]
        chunks: list[bytes | memoryview] = []
        for one in words[word + 1 : end]:
            chunks.append(view[at : at + one])
            at += one
        word = end
        if kind:
            segment = _new(JoinedSegment if kind & IS_JOINED else Segment, (extents, chunks))
            results.append(_new(Stored, (piece, segment, None, digest, bool(kind & IS_DENSE))))
        else:
            results.append(_new(Stored, (piece, None, chunks[0], b"", False)))
    return results
