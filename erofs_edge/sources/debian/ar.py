# SPDX-License-Identifier: Apache-2.0
"""The ar container of Debian packages: deb(5), "FORMAT"; names of up to 16 characters, no symbol tables."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from erofs_edge.errors import SourceError

MAGIC = b"!<arch>\n"
HEADER = 60  # bytes: name 16, mtime 12, uid 6, gid 6, mode 8, size 10, "`\n"
MAX_MEMBERS = 64


class ArMember(NamedTuple):
    """`size` bytes at byte `start` of the file."""

    name: str
    start: int
    size: int


def ar_members(path: Path) -> list[ArMember]:
    """The members of an ar file in order. Raises SourceError if it is not one, damaged or truncated."""
    members: list[ArMember] = []
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(0)
            if file.read(len(MAGIC)) != MAGIC:
                raise SourceError("not a Debian package (no ar magic)", where=str(path))
            at = len(MAGIC)
            while at < end:
                file.seek(at)
                header = file.read(HEADER)
                where = f"{path}: offset {at:#x}"
                if len(header) != HEADER or header[58:] != b"`\n" or len(members) == MAX_MEMBERS:
                    raise SourceError("damaged ar header", where=where)
                digits = header[48:58].strip(b" ")
                if not digits.isdigit():
                    raise SourceError("damaged size in an ar header", where=where)
                name = header[:16].rstrip(b" ").removesuffix(b"/").decode("ascii", "replace")
                size = int(digits)
                at += HEADER
                if size > end - at:
                    raise SourceError(f"truncated: member {name!r} needs {size - (end - at)} bytes more", where=where)
                members.append(ArMember(name, at, size))
                at += size + size % 2
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
    return members
