# SPDX-License-Identifier: Apache-2.0
"""Messages to and from the processes that compress: pieces of files and their results, as bytes."""

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
END = 1 << 40  # in place of the number of blocks: extents without blocks are not joined
IS_SEGMENT, IS_DENSE, HAS_DIGEST, IS_JOINED = 1, 2, 4, 8
_new: Any = tuple.__new__  # a named tuple's own constructor takes twice the time

Fields = tuple[bytes, int, int, int, bool, int, int, int]
"""a piece: path, size and start of its content; size of its file, whether the inode is extended, and the bytes of its
attributes; offset and length of the piece"""


def task_of(pieces: Iterable[Piece]) -> bytes:
    """Encode what a process has to know about pieces, whose contents are host files."""
    return marshal.dumps([_fields(piece) for piece in pieces])


def _fields(piece: Piece) -> Fields:
    node = piece.node
    content: Any = node.inode.content
    path, size, start = content
    name = path if type(path) is bytes else os.fsencode(path)
    return name, size, start, node.size, node.extended, len(node.xattrs), piece.offset, piece.length


def pieces_of_task(task: bytes) -> Iterator[Piece]:
    """Yield the pieces encoded by `task_of`. The same object is reused for each of them."""
    inode = Inode(stat.S_IFREG)
    node = Node(inode, b"", 0, None)
    piece = Piece(node, 0, 0)
    fields: list[Fields] = marshal.loads(task)
    for path, size, start, node.size, node.extended, attributes, piece.offset, piece.length in fields:
        inode.content = _new(FileContent, (path, size, start))
        node.xattrs = bytes(attributes)
        yield piece


def _chunks(stored: Stored) -> Sequence[bytes | memoryview]:
    """Return the bytes of a result."""
    if stored.data is not None:
        return [stored.data]
    return stored.segment.chunks if stored.segment is not None else []


def record_of(stored: Sequence[Stored], block_size: int) -> tuple[list[bytes | memoryview], bytes]:
    """Return the bytes of results, in order, and a record that describes them. Segments of whole blocks are joined,
    unless `block_size` is 0."""
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
    """Decode the results for pieces: `view` contains `size` bytes of data, then `length` bytes of the record. Twins and
    pieces that already have their data are not in the record."""
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
            if end == word + 3:  # the usual case
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
