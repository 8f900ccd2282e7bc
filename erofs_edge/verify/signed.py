# SPDX-License-Identifier: Apache-2.0
"""Quickly check whether an image about to be written to a board is signed: the signatures and what they cover, but not
all the data.

A build is checked with the key that lies beside it, which detects what was changed, exchanged or never signed. Whose
key is acceptable is decided by `verify --key`, which reads everything.
"""

from __future__ import annotations

import os
from pathlib import Path

from erofs_edge.build.names import PUBLIC_KEY, RELEASE
from erofs_edge.disk import gpt
from erofs_edge.errors import FormatError, VerificationError
from erofs_edge.positions import READ, pread


def refuse_unsigned(image: Path) -> None:
    """Raises VerificationError, saying what is wrong, if a disk image is not signed, or not by the key of the build
    that it lies in; SourceError if it cannot be read.

    Images without a partition table pass, and so do partitions that nothing marks as bootable.
    """
    try:
        fd = os.open(image, READ)
    except OSError as error:
        raise VerificationError(f"cannot read: {error.strerror}", where=str(image)) from error
    try:
        try:
            table = gpt.find(lambda offset, length: pread(fd, length, offset), os.fstat(fd).st_size)
        except FormatError:
            return  # nothing boots from it, whatever it is: the plan reports what is wrong
        if table is not None:
            _check(fd, table, image)
    finally:
        os.close(fd)


def is_plain(image: Path) -> bool:
    """Whether it is not a disk at all, so that `refuse_unsigned` has nothing to check; False if it cannot be read."""
    try:
        with image.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            return gpt.find(lambda offset, length: pread(file.fileno(), length, offset), size) is None
    except (OSError, FormatError):
        return False


def _check(fd: int, table: gpt.Table, image: Path) -> None:
    """Only for disks, and partly only for builds: the code that checks signatures is slow to load."""
    if (image.parent / RELEASE).is_file() and (image.parent / PUBLIC_KEY).is_file():
        from erofs_edge.verify.signatures import check_built as check
    else:
        from erofs_edge.verify.unsigned import check_alone as check
    check(fd, table, image)


def is_development(image: Path) -> bool:
    """Whether an image lies in a build that was signed with a development key. Raises ErofsEdgeError if that build
    cannot be read."""
    from erofs_edge.build.record import read_release

    if not (image.parent / RELEASE).is_file():
        return False
    sign = read_release(image.parent).get("sign")
    return isinstance(sign, dict) and sign.get("development") is True
