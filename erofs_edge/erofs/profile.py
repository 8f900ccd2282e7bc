# SPDX-License-Identifier: Apache-2.0
"""Access profiles: which files, or parts of them, are used first, and in which order (docs/layout.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from erofs_edge.errors import SourceError
from erofs_edge.tree import split

_LINE = re.compile(rb"(/.*?)(?:[ \t]+(\d+)[ \t]+(\d+))?[ \t]*", re.DOTALL)
_DIGITS_MAX = 38  # for offset and length together: as many as two 64-bit numbers have
_ODD = re.compile(rb"[\x00-\x1f\x7f-\xff\\]|[ \t](?=[\d \t]*$)")
_ESCAPE = re.compile(rb"\\([0-7]{3}|\\)")


class Use(NamedTuple):
    """Use of bytes [start, end) of the file at `path`; `end` None: the whole file."""

    path: bytes
    start: int = 0
    end: int | None = None


def read_profile(file: Path) -> tuple[Use, ...]:
    """Read the uses in order, each once. Raises SourceError with file and line for an invalid line."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read the profile: {error.strerror}", where=str(file)) from error
    uses: dict[Use, None] = {}
    for number, line in enumerate(data.replace(b"\r\n", b"\n").split(b"\n"), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or match[3] == b"0" or len(match[2] or b"") + len(match[3] or b"") > _DIGITS_MAX:
            raise SourceError(
                "not a line of a profile",
                where=f"{file}:{number}",
                hint="a path from the root as in /usr/bin/x, or with a range of bytes, offset and length, as in"
                " /usr/bin/x 0 65536",
            )
        path = _ESCAPE.sub(_unescape, match[1])
        if not is_path(path):
            raise SourceError(f"no file has the path {escape(path)}", where=f"{file}:{number}")
        start, length = int(match[2] or 0), int(match[3] or 0)
        uses.setdefault(Use(path, start, start + length if length else None))
    return tuple(uses)


def is_path(path: bytes) -> bool:
    """Whether a tree could have this path: no '..', no NUL, and no name longer than 255 bytes."""
    try:
        split(path)
    except SourceError:
        return False
    return True


def profile_text(uses: Iterable[Use]) -> str:
    """Format uses as lines for `read_profile`."""
    return "".join(
        f"{escape(use.path)}\n" if use.end is None else f"{escape(use.path)} {use.start} {use.end - use.start}\n"
        for use in uses
    )


def escape(path: bytes) -> str:
    """Format a path for a profile, in ASCII: nothing ends the line, is an escape by accident, or looks like a range."""
    return _ODD.sub(lambda match: b"\\%03o" % match[0][0], path).decode("ascii")


def unescape(path: str) -> bytes:
    """Reverse `escape`."""
    return _ESCAPE.sub(_unescape, path.encode())


def _unescape(match: re.Match[bytes]) -> bytes:
    return b"\\" if match[1] == b"\\" else bytes([int(match[1], 8) & 0xFF])
