# SPDX-License-Identifier: Apache-2.0
"""Owners, modes and capabilities from a canned fs_config file, as made by AOSP's build.

A line is `PATH UID GID MODE [capabilities=MASK]`, the mode octal, the mask in C notation. PATH has no leading slash and
starts with the mount point; the root's is empty (the line starts with a space). File types do not change.
"""

from __future__ import annotations

import re
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from erofs_edge.errors import SourceError
from erofs_edge.sources.rewrite import first_names
from erofs_edge.tree import FileTree

CAPABILITY = b"security.capability"
_REVISION_2_EFFECTIVE = 0x02000001  # struct vfs_cap_data of linux/capability.h
_CAP_DATA = struct.Struct("<IIIII")  # magic, permitted and inheritable of capabilities 0 to 31, then of 32 to 63
_SHAPE = "PATH UID GID MODE [capabilities=MASK]"
_ID_MAX = 0xFFFFFFFE
_MISSING_SHOWN = 5


class Config(NamedTuple):
    """The values of a line; `capabilities` is a bit mask, 0 for none."""

    uid: int
    gid: int
    mode: int
    capabilities: int


def capability_value(mask: int) -> bytes:
    """security.capability of revision 2, effective: permitted capabilities from a 64-bit mask."""
    return _CAP_DATA.pack(_REVISION_2_EFFECTIVE, mask & 0xFFFFFFFF, 0, mask >> 32, 0)


def parse_fs_config(text: str, where: str) -> dict[bytes, Config]:
    """Path → its values; if there are several lines, the last. Raises SourceError with file:line."""
    found = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            path, config = _parse(line.rstrip(), f"{where}:{number}")
            found[path.encode("utf-8", "surrogateescape")] = config
    return found


def read_fs_config(path: Path) -> dict[bytes, Config]:
    """Read a file. Raises SourceError if it cannot be read, or with file:line."""
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
    return parse_fs_config(text, str(path))


def apply_fs_config(tree: FileTree, config: dict[bytes, Config], mount_point: str = "/", where: str = "") -> None:
    """Set the values of every inode; hard links use their first name. A capability mask replaces that of the source; no
    mask means no capabilities. Raises SourceError if paths are missing."""
    prefix = mount_point.strip("/").encode("utf-8", "surrogateescape")
    missing = []
    for path, inode in first_names(tree):
        below = path.strip(b"/")
        key = prefix + b"/" + below if prefix and below else below
        said = config.get(key)
        if said is None:
            missing.append(key.decode("utf-8", "backslashreplace") or "the root")
            continue
        inode.uid, inode.gid = said.uid, said.gid
        inode.mode = stat.S_IFMT(inode.mode) | said.mode
        inode.xattrs = {name: value for name, value in inode.xattrs.items() if name != CAPABILITY}
        if said.capabilities:
            inode.xattrs[CAPABILITY] = capability_value(said.capabilities)
    if missing:
        more = f" and {len(missing) - _MISSING_SHOWN} more" if len(missing) > _MISSING_SHOWN else ""
        raise SourceError(
            f"no line for {', '.join(missing[:_MISSING_SHOWN])}{more}",
            where=where or None,
            hint="every path of the tree needs one, with the mount point before it",
        )


def _parse(line: str, where: str) -> tuple[str, Config]:
    path, *words = line.split(" ") if line.startswith(" ") else line.split()
    words = [word for word in words if word]
    if len(words) < 3:
        raise SourceError(f"{len(words) + 1} fields, a line has four or more", where=where, hint=_SHAPE)
    uid, gid = (_number(word, 10, _ID_MAX, what, where) for word, what in zip(words, ("user", "group"), strict=False))
    mode = _number(words[2], 8, 0o7777, "mode", where)
    mask = 0
    for word in words[3:]:
        name, equals, value = word.partition("=")
        if name != "capabilities" or not equals:
            raise SourceError(f"unknown field {word!r}", where=where, hint=_SHAPE)
        mask = _number(value, 0, (1 << 64) - 1, "capabilities", where)
    return path.strip("/"), Config(uid, gid, mode, mask)


def _number(text: str, base: int, largest: int, what: str, where: str) -> int:
    digits = {8: r"[0-7]+", 10: r"\d+", 0: r"0[xX][0-9a-fA-F]+|\d+"}[base]
    if re.fullmatch(digits, text, re.A):
        if base == 0 and re.fullmatch(r"0\d+", text, re.A):
            base = 8
        try:
            value = int(text, base)
        except ValueError:
            value = -1
        if 0 <= value <= largest:
            return value
    raise SourceError(f"{what} {text!r} is not a number from 0 to {largest:{'o' if base == 8 else 'd'}}", where=where)
