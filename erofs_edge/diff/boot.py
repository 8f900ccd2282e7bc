# SPDX-License-Identifier: Apache-2.0
"""Compare two FITs or two vbmeta images: every node, property and descriptor, and the contents of an initramfs."""

from __future__ import annotations

import hashlib
import stat

from erofs_edge.boot import fdt
from erofs_edge.boot.contents import unpack_initramfs
from erofs_edge.boot.cpio import Member, read_cpio
from erofs_edge.diff.content import explain, first_difference
from erofs_edge.diff.report import Change, Report, shown
from erofs_edge.errors import FormatError
from erofs_edge.trust import avb

_DATA = "data"
_WHY = {"value": "signature over what changed", "timestamp": "timestamp", "padding": "places the kernel"}


def compare_fits(old: bytes, new: bytes, report: Report) -> None:
    """Compare two FITs, or any two device trees. Raises FormatError if one is damaged."""
    before = len(report.changes)
    one, other = fdt.parse(old), fdt.parse(new)
    report.field("FIT", "", "reservations", one.reservations, other.reservations)
    _nodes("", one.root, other.root, report)
    if len(report.changes) == before and old != new:
        at = first_difference(old, new)
        report.add(Change("FIT", "", "bytes", None, None, f"no property differs; bytes do from {at:#x} on"))


def _nodes(path: str, old: fdt.Node, new: fdt.Node, report: Report) -> None:
    for name in [*old.props, *(name for name in new.props if name not in old.props)]:
        one, other = old.props.get(name), new.props.get(name)
        if one == other:
            continue
        where = f"{path}/{name}"
        if name == _DATA and one is not None and other is not None:
            _data(path, one, other, report)
        else:
            report.add(Change("FIT", where, "property", _property(one), _property(other), _why(path, name)))
    if list(old.props) != list(new.props) and old.props == new.props:
        report.add(Change("FIT", path or "/", "order of properties"))
    for name in [*old.children, *(name for name in new.children if name not in old.children)]:
        before, after = old.children.get(name), new.children.get(name)
        if before is None or after is None:
            report.add(Change("FIT", f"{path}/{name}", "removed" if after is None else "added"))
        else:
            _nodes(f"{path}/{name}", before, after, report)


def _why(path: str, name: str) -> str:
    if name == "value" and path.rpartition("/")[2].startswith("hash"):
        return "follows from the data"
    return _WHY.get(name, "")


def _property(value: bytes | None) -> str | None:
    """A property in readable form: a string if it is one, else hex; long ones by their digest."""
    if value is None:
        return None
    if len(value) > 128:
        return f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()[:16]}"
    text = value[:-1]
    if value.endswith(b"\0") and text and text.isascii() and all(32 <= byte < 127 for byte in text):
        return text.decode("ascii")
    return shown(value)


def _data(path: str, old: bytes, new: bytes, report: Report) -> None:
    if path.endswith("/ramdisk"):
        try:
            sides = [{m.name: m for m in read_cpio(unpack_initramfs(data))} for data in (old, new)]
        except FormatError as error:
            report.add(Change("initramfs", path, "content", None, None, f"damaged: {error}"))
            return
        before = len(report.changes)
        with report.inside(path):
            _archives(sides[0], sides[1], report)
        if len(report.changes) > before:
            return
    why, detail = explain(old, new)
    report.add(Change("FIT", path, "content", f"{len(old)} bytes", f"{len(new)} bytes", why, detail=detail))


def _archives(old: dict[bytes, Member], new: dict[bytes, Member], report: Report) -> None:
    for name in sorted(old.keys() | new.keys()):
        one, other = old.get(name), new.get(name)
        where = "/" + name.decode("utf-8", "replace").lstrip("/")
        if one is None or other is None:
            report.add(
                Change("initramfs", where, "removed" if other is None else "added", _member(one), _member(other))
            )
            continue
        for what in ("mode", "uid", "gid", "rdev", "mtime"):
            values = getattr(one, what), getattr(other, what)
            report.field("initramfs", where, what, *values, why="timestamp" if what == "mtime" else "")
        if one.data != other.data:
            why, detail = explain(one.data, other.data)
            sizes = f"{len(one.data)} bytes", f"{len(other.data)} bytes"
            report.add(Change("initramfs", where, "content", *sizes, why, detail=detail))


def _member(member: Member | None) -> str | None:
    return None if member is None else f"{stat.filemode(member.mode)} {len(member.data)} bytes"


def compare_vbmetas(old: bytes, new: bytes, report: Report) -> None:
    """Compare two vbmeta images. Raises FormatError if one is damaged."""
    sides = [avb.parse_vbmeta(raw) for raw in (old, new)]
    one, other = sides[0][0], sides[1][0]
    before = len(report.changes)
    for name in ("rollback_index", "rollback_index_location", "flags", "release"):
        report.field("vbmeta", "header", name, getattr(one, name), getattr(other, name))
    keyed = [{_key(d): d for d in meta.descriptors} for meta in (one, other)]
    for key in [*keyed[0], *(key for key in keyed[1] if key not in keyed[0])]:
        first, second = keyed[0].get(key), keyed[1].get(key)
        if first is None or second is None:
            report.add(Change("vbmeta", key, "removed" if second is None else "added"))
            continue
        for name in type(first).__slots__:
            report.field("vbmeta", key, name, getattr(first, name), getattr(second, name, None))
    if len(report.changes) == before and old != new:
        report.add(Change("vbmeta", "", "signature or key", None, None, "no field differs"))


def _key(descriptor: avb.Descriptor) -> str:
    kind = type(descriptor).__name__.lower()
    name = getattr(descriptor, "partition", None) or getattr(descriptor, "key", "")
    return f"{kind} {name}".rstrip()
