# SPDX-License-Identifier: Apache-2.0
"""Compare two tar archives, member by member; the inputs of releases are such archives."""

from __future__ import annotations

import tarfile
from pathlib import Path

from erofs_edge.diff.content import explain
from erofs_edge.diff.report import Change, Report
from erofs_edge.errors import FormatError

ARCHIVE_MAX = 256 << 20
MEMBERS_MAX = 100_000
MAGIC, MAGIC_AT = b"ustar", 257
_KINDS = {
    tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hard link",
}  # fmt: skip


def compare_archives(old: Path, new: Path, report: Report) -> None:
    """Compare members by name: kind, mode, owner, time, target and content. Raises FormatError unless both are
    archives.
    """
    try:
        with tarfile.open(old, "r:") as one, tarfile.open(new, "r:") as other:
            sides = _members(one), _members(other)
            for name in sorted(sides[0].keys() | sides[1].keys()):
                before, after = sides[0].get(name), sides[1].get(name)
                if before is None or after is None:
                    report.add(Change("archive", name, "removed" if after is None else "added"))
                    continue
                for what in ("kind", "mode", "uid", "gid", "mtime", "linkname"):
                    report.field("archive", name, what, _shown(before, what), _shown(after, what))
                if before.isreg() and after.isreg():
                    _contents(name, _data(one, before), _data(other, after), report)
            if list(sides[0]) != list(sides[1]) and sides[0].keys() == sides[1].keys():
                report.add(Change("archive", "", "order", None, None, "the same members in another order"))
    except RecursionError as error:
        raise FormatError("a damaged tar archive: too many headers of one member") from error
    except (tarfile.TarError, OverflowError, ValueError) as error:
        raise FormatError(f"a damaged tar archive: {error}") from error


def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    found: dict[str, tarfile.TarInfo] = {}
    total = 0
    for count, member in enumerate(tar, 1):
        total += member.size if member.isreg() else 0
        if member.size < 0 or total > ARCHIVE_MAX:  # sparse members may be larger than the archive
            raise FormatError(f"{member.name}: a member of {member.size} bytes")
        if count > MEMBERS_MAX:
            raise FormatError(f"more than {MEMBERS_MAX} members")
        found[member.name] = member
    return found


def _shown(member: tarfile.TarInfo, what: str) -> object:
    if what == "kind":
        return _KINDS.get(member.type, "other")
    value = getattr(member, what)
    return f"{value:o}" if what == "mode" else value


def _data(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file is not None else b""


def _contents(name: str, old: bytes, new: bytes, report: Report) -> None:
    if old != new:
        why, detail = explain(old, new)
        report.add(Change("archive", name, "content", f"{len(old)} bytes", f"{len(new)} bytes", why, detail=detail))
