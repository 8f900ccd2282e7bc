# SPDX-License-Identifier: Apache-2.0
"""Where trees and parity are written: to new files made for them, or to parts of existing files and devices."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erofs_edge.positions import READ_WRITE
from erofs_edge.verity.blocks import file_size
from erofs_edge.writing import new_file, room_for


@contextmanager
def area_of(path: Path, offset: int, what: str) -> Iterator[int]:
    """Yield a descriptor for writing data that begins at byte `offset` of a file or device.

    A file with nothing before `offset` is written anew and gets its name only if the block succeeds. If there is data
    before `offset`, or on a device, the write is in place; a file that grew is cut back after a failure. Raises
    CapacityError if there is no space left for `what`, UsageError if a new file would not be a regular file, OSError.
    """
    if not path.exists() or (not offset and path.is_file()):
        with new_file(path, what) as new:
            yield new.fd
        return
    fd = os.open(path, READ_WRITE)
    try:
        before = file_size(fd)
        with room_for(what, str(path)):
            yield fd
    except BaseException:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, before)
        raise
    finally:
        os.close(fd)
