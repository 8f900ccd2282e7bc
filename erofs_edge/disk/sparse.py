# SPDX-License-Identifier: Apache-2.0
"""Files with holes: find their data, and copy them with their holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from erofs_edge.errors import SourceError

CHUNK = 8 << 20
PIECE = 256 << 10
"""bytes hashed at a time: they stay in the processor's cache"""

Progress = Callable[[int, int], None]
"""progress(done, total), both in bytes"""

Count = Callable[[int], None]
"""count(bytes done since the last call)"""


def data_extents(fd: int, size: int, position: int = 0) -> Iterator[tuple[int, int]]:
    """(start, end) of everything in bytes [position, size) that is not a hole; one extent if the host cannot tell."""
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ESPIPE):
                raise
            start, end = position, size
        if start >= size:
            return
        yield start, end
        position = end


def sparse_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex, without reading its holes. Raises OSError."""
    import hashlib  # callers that only want extents do not need it

    digest = hashlib.sha256()
    buffer, zeros = bytearray(PIECE), bytes(PIECE)
    view = memoryview(buffer)

    def skip(length: int) -> None:
        for _ in range(length // PIECE):
            digest.update(zeros)
        digest.update(memoryview(zeros)[: length % PIECE])

    with path.open("rb", buffering=0) as file:
        size, position = os.fstat(file.fileno()).st_size, 0
        for start, end in data_extents(file.fileno(), size):
            skip(start - position)
            file.seek(start)
            position = start
            while position < end:
                done = file.readinto(view[: min(PIECE, end - position)])
                if not done:
                    raise OSError(errno.EIO, "the file has become shorter", str(path))
                digest.update(view[:done])
                position += done
        skip(size - position)
    return digest.hexdigest()


@contextmanager
def copied_from(path: Path) -> Iterator[int]:
    """The descriptor of a file, for `copy_data`.

    Raises SourceError if it cannot be read, or if the block finds that it has become shorter.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
    try:
        yield fd
    except EOFError as error:
        raise SourceError("the file changed while it was being read", where=str(path)) from error
    finally:
        os.close(fd)


def copy_data(source: int, target: int, size: int, at: int, count: Count | None = None) -> None:
    """Copy the data of `size` bytes of one file to byte `at` of another; where it has holes, the target is left as it
    is.

    Uses copy_file_range (which shares blocks if the file system can), else read and write.
    Raises OSError, and EOFError if the source is shorter than `size`.
    """
    in_kernel = hasattr(os, "copy_file_range")
    for start, end in data_extents(source, size):
        position = start
        while position < end:
            length = min(CHUNK, end - position)
            done = 0
            if in_kernel:
                try:
                    done = os.copy_file_range(source, target, length, position, at + position)
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                        raise
                    in_kernel = False
            if not done:
                data = os.pread(source, length, position)
                done = os.pwrite(target, data, at + position) if data else 0
            if not done:
                break  # it became shorter: reported below
            position += done
            if count is not None:
                count(done)
    if os.lseek(source, 0, os.SEEK_END) < size:  # what was cut off looks like a hole
        raise EOFError(f"shorter than {size} bytes")
