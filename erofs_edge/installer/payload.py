# SPDX-License-Identifier: Apache-2.0
"""The payload of an installer medium: a disk image in pieces, each named by its sha256, in one verified EROFS.

/list           a line for each piece: first MiB on the disk, MiB, sha256, partition
/pieces/SHA256  its bytes; what two slots have in common is stored once
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.disk import gpt
from erofs_edge.disk.sparse import data_extents
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.write import write_image
from erofs_edge.errors import ErofsEdgeError, FormatError, place_within
from erofs_edge.tree import BytesContent, Content, FileContent, FileTree, Inode
from erofs_edge.verity.tree import VerityInfo, append

MIB = 1 << 20
PIECE = 32
"""MiB: errors are located to this precision"""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some MiB of a disk: the first, how many, their sha256 in hex, their partition."""

    at: int
    count: int
    digest: str
    name: str


def pieces_of(disk: Path, sector: int = 512) -> list[Piece]:
    """The pieces that turn an unused disk into the one in this image: of each partition everything up to its last byte
    of data, or both its ends if it has none; and the partition tables.

    Holes inside a partition's content are included, because hash trees cover them as zeros. After the content, the disk
    may have anything. Raises FormatError for an image without a table or whose partitions are not on whole MiB.
    """
    try:
        with disk.open("rb") as file:
            fd, size = file.fileno(), os.fstat(file.fileno()).st_size
            table = gpt.decode(lambda offset, length: os.pread(fd, length, offset), size, sector)
            spans = [(0, MIB, "partition table")]
            for name, (start, end) in table.places().items():
                spans += [(*span, name) for span in _content(fd, start, end)]
            spans.append((size - MIB, size, "partition table"))
            return [piece for span in spans for piece in _pieces(fd, *span)]
    except FormatError as error:
        place_within(error, disk)
        raise
    except OSError as error:
        raise ErofsEdgeError(f"cannot read the disk image: {error.strerror}", where=str(disk)) from error


def _content(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    """(start, end) of what must be written of a partition, in bytes."""
    if start % MIB or end % MIB:
        raise FormatError(f"a partition from byte {start} to {end} is not on whole MiB")
    last = max((min(stop, end) for _, stop in data_extents(fd, end, start)), default=start)
    if last == start:
        return [(start, start + MIB), (end - MIB, end)] if end - start > MIB else [(start, end)]
    return [(start, -(-last // MIB) * MIB)]


def _pieces(fd: int, start: int, end: int, name: str) -> Iterator[Piece]:
    for at in range(start, end, PIECE * MIB):
        length = min(PIECE * MIB, end - at)
        digest = hashlib.sha256(os.pread(fd, length, at)).hexdigest()
        yield Piece(at // MIB, length // MIB, digest, name.replace(" ", "-"))


def write_payload(disk: Path, out: Path, *, epoch: int, sector: int = 512) -> tuple[list[Piece], VerityInfo]:
    """Write the image with its hash tree; the same disk image gives the same bytes.

    Raises as `pieces_of` and `write_image` do.
    """
    pieces = pieces_of(disk, sector)
    tree = FileTree()
    tree.directory("pieces")
    for piece in {piece.digest: piece for piece in pieces}.values():
        content: Content = FileContent(disk, piece.count * MIB, piece.at * MIB)
        if piece.at == 0:  # the start of a file would be taken for a file that has grown
            content = BytesContent(content.read(0, content.size))
        tree.add(f"pieces/{piece.digest}", Inode(stat.S_IFREG | 0o444, content=content))
    text = "".join(f"{piece.at} {piece.count} {piece.digest} {piece.name}\n" for piece in pieces)
    tree.add("list", Inode(stat.S_IFREG | 0o444, content=BytesContent(text.encode())))
    write_image(tree, out, WriteOptions(compression="lz4hc", pcluster=64 << 10, epoch=epoch, times="fixed"))
    return pieces, append(out)
