# SPDX-License-Identifier: Apache-2.0
"""Read content in large pieces, and detect files that change meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from erofs_edge.erofs import at_once
from erofs_edge.errors import SourceError
from erofs_edge.positions import READ
from erofs_edge.reading import read_exactly
from erofs_edge.tree import Content, FileContent, Inode

PIECE = 16 << 20  # bytes; also the length of a segment, which no extent crosses
ZEROS = bytes(PIECE)  # this very object stands for a piece in a hole of its file; it takes up no memory


def sha256(data: bytes | memoryview) -> bytes:
    """Return the digest of bytes."""
    import hashlib  # see `digest`

    return hashlib.sha256(data).digest()


def read_piece(content: Content, offset: int, length: int, where: str) -> bytes:
    """Return exactly the bytes [offset, offset + length). Raises SourceError, naming `where`, if they are not there."""
    if type(content) is FileContent:
        data = read_small(content, length)
        if data is None:
            data = _read_file(content, offset, length, where)
    else:
        data = content.read(offset, length)
    if len(data) != length:
        raise _changed(where, content)
    return data


def read_small(content: Content, length: int) -> bytes | None:
    """Read a whole small file at once. None for others, or if that fails: `read_piece` then reads it or reports why
    not."""
    if type(content) is not FileContent:
        return None
    path, size, start = content
    if size != length or size > at_once.SMALL or start:
        return None
    read = at_once.reader()
    return read(path if type(path) is bytes else os.fsencode(path), length) if read is not None else None


def pieces(content: Content, where: str) -> Iterator[bytes]:
    """Yield the whole content, PIECE by PIECE."""
    for offset in range(0, content.size, PIECE):
        yield read_piece(content, offset, min(PIECE, content.size - offset), where)


def digest(content: Content, where: str) -> bytes:
    """Return the sha256 of the whole content."""
    import hashlib  # imports OpenSSL; most builds need no digest

    state = hashlib.sha256()
    for piece in pieces(content, where):
        state.update(piece)
    return state.digest()


def check_unchanged(inode: Inode, where: str) -> None:
    """Raises SourceError, naming `where`, for a host file whose mtime differs from its inode, as read by
    `directory.scan`: it has been written since, and what was read may be half old and half new."""
    content = inode.content
    if type(content) is not FileContent:
        return
    try:
        is_same = os.lstat(content.path).st_mtime_ns == inode.mtime_ns
    except OSError:
        is_same = False
    if not is_same:
        raise SourceError(
            f"file {os.fsdecode(content.path)} changed while the image was being written",
            where=where,
            hint="build from what nobody writes to: a copy, or a snapshot of the file system",
        )


def _read_file(content: FileContent, offset: int, length: int, where: str) -> bytes:
    try:
        fd = os.open(content.path, READ)
        try:
            size = os.fstat(fd).st_size
            # content from byte 0 is the whole file; otherwise it is a member of an archive
            if size < content.start + content.size or (size != content.size and not content.start):
                raise _changed(where, content)
            start = content.start + offset
            data = ZEROS if length == PIECE and _is_hole(fd, start) else read_exactly(fd, length, start)
        finally:
            os.close(fd)
    except OSError as error:
        raise SourceError(f"cannot read {os.fsdecode(content.path)}: {error.strerror}", where=where) from error
    return data


def _is_hole(fd: int, start: int) -> bool:
    """Whether the file system reports a hole of PIECE bytes from there on."""
    try:
        return os.lseek(fd, start, os.SEEK_DATA) >= start + PIECE
    except OSError as error:
        return error.errno == errno.ENXIO  # no data up to the end
    except AttributeError:  # no such call on this system
        return False


def _changed(where: str, content: Content) -> SourceError:
    name = f" {os.fsdecode(content.path)}" if isinstance(content, FileContent) else ""
    return SourceError(f"file{name} changed its size while it was being read", where=where)
