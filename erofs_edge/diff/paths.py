# SPDX-License-Identifier: Apache-2.0
"""Compare what two paths name: folders of builds or releases, disks, images, FITs, vbmeta images, or any files."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
from pathlib import Path

from erofs_edge.boot.fdt import MAGIC as FDT_MAGIC
from erofs_edge.diff.archive import ARCHIVE_MAX, MAGIC, MAGIC_AT, compare_archives
from erofs_edge.diff.boot import compare_fits, compare_vbmetas
from erofs_edge.diff.content import EXPLAINED_MAX, explain
from erofs_edge.diff.disk import compare_disks, compare_volumes, find_table
from erofs_edge.diff.erofs import compare_images
from erofs_edge.diff.report import Change, Report, shown
from erofs_edge.diff.verity import compare_trees
from erofs_edge.disk.fat_read import Volume
from erofs_edge.erofs.backing import Backing
from erofs_edge.erofs.ondisk import SUPER_MAGIC, SUPER_OFFSET
from erofs_edge.erofs.superblock import read_superblock
from erofs_edge.errors import ErofsEdgeError, FormatError, UsageError
from erofs_edge.positions import pread
from erofs_edge.trust import avb

FIT_MAX = 1 << 30
JSON_MAX = 64 << 20
DEPTH_MAX = 64
_SLICE = 4 << 20


def compare_paths(old: Path, new: Path) -> Report:
    """Report everything that differs between what two paths name.

    Raises ErofsEdgeError if either cannot be read, and UsageError for a folder compared with a file and for pipes and
    devices, which have no meaningful file size. Damaged input is compared as bytes, and the damage is reported.
    """
    for path in (old, new):
        if not path.exists():
            raise ErofsEdgeError("no such file or folder", where=str(path))
        if not (path.is_file() or path.is_dir()):
            raise UsageError("neither a file nor a folder", where=str(path), hint="copy it to a file and compare that")
    if old.is_dir() != new.is_dir():
        raise UsageError(f"cannot compare a folder with a file: {old} and {new}", hint="give two folders, or two files")
    report = Report(str(old), str(new))
    try:
        if old.is_dir():
            _folders(old, new, report, 0)
        else:
            compare_files(old, new, report)
    except OSError as error:
        raise ErofsEdgeError(f"cannot be read: {error.strerror}", where=str(error.filename or old)) from error
    return report


def _folders(old: Path, new: Path, report: Report, depth: int) -> None:
    names = [{entry.name for entry in os.scandir(path) if not entry.name.startswith(".")} for path in (old, new)]
    held = _partitions(old), _partitions(new)
    for name in sorted(names[0] | names[1]):
        one, other = old / name, new / name
        if name not in names[0] or name not in names[1]:
            report.add(Change("file", name, "removed" if name in names[0] else "added"))
        elif stat.S_IFMT(one.lstat().st_mode) != stat.S_IFMT(other.lstat().st_mode):
            report.add(Change("file", name, "type"))
        elif one.is_symlink():
            report.field("file", name, "target", os.readlink(one), os.readlink(other))
        elif one.is_dir() and depth < DEPTH_MAX:
            with report.inside(name):
                _folders(one, other, report, depth + 1)
        elif one.is_file():
            with report.inside(name):
                if name in held[0] and name in held[1]:
                    _disk_of_files(one, other, report)
                else:
                    compare_files(one, other, report)


def _partitions(folder: Path) -> set[str]:
    """Names of the disk images in a build's folder; the contents of their partitions lie beside them as files."""
    return {"disk.img"} if (folder / "release.json").is_file() and (folder / "disk.img").is_file() else set()


def _disk_of_files(old: Path, new: Path, report: Report) -> None:
    """Compare a build's disk: its table, and what is in no other file. The rest is reported where its file is
    compared.
    """
    report.compared.append(report.place())
    tables = find_table(old), find_table(new)
    if tables[0] is None or tables[1] is None:
        compare_files(old, new, report)
        return

    def beside(one: Path, other: Path, inner: Report) -> None:
        names = [_file_of(path, folder.parent) for path, folder in ((one, old), (other, new))]
        if names[0] is None or names[1] is None:
            _partition(one, other, inner)
        elif names[0] == names[1]:
            inner.add(Change("partition", "", "content", names[0], names[1], f"told at {names[0]}"))
        else:
            inner.add(Change("partition", "", "content", names[0], names[1]))

    compare_disks(old, new, (tables[0], tables[1]), report, beside)


def _file_of(partition: Path, folder: Path) -> str | None:
    """The file in the folder that a partition's content starts with."""
    with partition.open("rb") as handle:
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.name == "disk.img" or not path.is_file():
                continue
            size = path.stat().st_size
            if not 0 < size <= partition.stat().st_size:
                continue
            with path.open("rb") as file:
                if all(
                    pread(file.fileno(), _SLICE, at) == pread(handle.fileno(), min(_SLICE, size - at), at)
                    for at in range(0, size, _SLICE)
                ):
                    return path.name
    return None


def compare_files(old: Path, new: Path, report: Report) -> None:
    """Compare two files according to their formats, unless their bytes are equal."""
    report.compared.append(report.place() or old.name)
    if _same_bytes(old, new):
        return
    before = len(report.changes)
    try:
        if not _by_table(old, new, report):
            _partition(old, new, report)
    except FormatError as error:
        report.add(Change("damage", "", "structure", None, None, str(error)))
    if len(report.changes) == before:
        _as_bytes(old, new, report)


def _by_table(old: Path, new: Path, report: Report) -> bool:
    tables = find_table(old), find_table(new)
    if tables[0] is None or tables[1] is None:
        return False
    before = len(report.changes)
    compare_disks(old, new, (tables[0], tables[1]), report, _partition)
    if len(report.changes) == before:
        report.add(Change("disk", "", "bytes", None, None, "only bytes outside the partitions differ"))
    return True


def _partition(old: Path, new: Path, report: Report) -> None:
    """Compare two files that are not disks."""
    kinds = kind_of(old), kind_of(new)
    if kinds[0] != kinds[1]:
        report.add(Change("file", "", "kind", kinds[0], kinds[1]))
        return
    try:
        if kinds[0] == "EROFS":
            compare_images(old, new, report)
            compare_trees(old, new, (_size(old), _size(new)), report)
        elif kinds[0] == "FIT":
            compare_fits(_tree(old), _tree(new), report)
        elif kinds[0] == "vbmeta":
            compare_vbmetas(_head(old, avb.SIZE_MAX), _head(new, avb.SIZE_MAX), report)
        elif kinds[0] == "FAT":
            compare_volumes(old, new, report)
        elif kinds[0] == "JSON":
            compare_values("", _value(old), _value(new), report)
        elif kinds[0] == "tar":
            compare_archives(old, new, report)
        else:
            _as_bytes(old, new, report)
    except FormatError as error:
        report.add(Change("damage", "", "structure", None, None, str(error)))


def kind_of(path: Path) -> str:
    """'EROFS', 'FIT', 'vbmeta', 'FAT', 'JSON', 'tar' or 'bytes'."""
    head = _head(path, SUPER_OFFSET + 4)
    found = {
        "EROFS": head[SUPER_OFFSET:] == SUPER_MAGIC.to_bytes(4, "little"),
        "FIT": head[:4] == FDT_MAGIC.to_bytes(4, "big"),
        "vbmeta": head[:4] == avb.MAGIC,
        "FAT": head[510:512] == b"\x55\xaa" and _is_fat(path),
        "JSON": head[:1] in (b"{", b"[") and path.stat().st_size <= JSON_MAX and _is_json(path),
        "tar": head[MAGIC_AT : MAGIC_AT + len(MAGIC)] == MAGIC and path.stat().st_size <= ARCHIVE_MAX,
    }
    return next((kind for kind, is_it in found.items() if is_it), "bytes")


def _is_fat(path: Path) -> bool:
    with path.open("rb") as handle:
        try:
            Volume(lambda offset, length: pread(handle.fileno(), length, offset), path.stat().st_size)
        except FormatError:
            return False
    return True


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def _value(path: Path) -> object:
    """The value of a JSON file; for a DSSE envelope, the statement in it instead of its base64."""
    value = json.loads(path.read_bytes())
    if isinstance(value, dict) and {"payload", "payloadType"} <= value.keys():
        with contextlib.suppress(ValueError, TypeError, RecursionError):  # not a statement: compared as it is
            value["payload"] = json.loads(base64.b64decode(value["payload"], validate=True))
    return value


def compare_values(where: str, old: object, new: object, report: Report) -> None:
    """Compare two JSON values, key by key."""
    if isinstance(old, dict) and isinstance(new, dict) and where.count("/") < DEPTH_MAX:
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in old or key not in new:
                what = "removed" if key in old else "added"
                report.add(Change("JSON", f"{where}/{key}", what, shown(old.get(key)), shown(new.get(key))))
            else:
                compare_values(f"{where}/{key}", old[key], new[key], report)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and where.count("/") < DEPTH_MAX:
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            compare_values(f"{where}/{number}", one, other, report)
    else:
        report.field("JSON", where or "/", "value", old, new)


def _as_bytes(old: Path, new: Path, report: Report) -> None:
    sizes = old.stat().st_size, new.stat().st_size
    if max(sizes) <= EXPLAINED_MAX:
        why, detail = explain(old.read_bytes(), new.read_bytes())
    else:
        why, detail = f"bytes differ from {_first(old, new):#x} on", []
    report.add(Change("file", "", "content", f"{sizes[0]} bytes", f"{sizes[1]} bytes", why, detail=detail))


def _same_bytes(old: Path, new: Path) -> bool:
    return old.stat().st_size == new.stat().st_size and _first(old, new) == old.stat().st_size


def _first(old: Path, new: Path) -> int:
    """The slice at which two files first differ, or the size of the shorter one."""
    size = min(old.stat().st_size, new.stat().st_size)
    with old.open("rb") as one, new.open("rb") as other:
        for offset in range(0, size, _SLICE):
            if one.read(_SLICE) != other.read(_SLICE):
                return offset
    return size


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as handle:
        return handle.read(size)


def _tree(path: Path) -> bytes:
    """The device tree at the start of a partition."""
    size = int.from_bytes(_head(path, 8)[4:], "big")
    if size > FIT_MAX:
        raise FormatError(f"a device tree of {size} bytes", where="offset 0x4")
    return _head(path, size)


def _size(path: Path) -> int:
    backing = Backing(path)
    try:
        return read_superblock(backing, verify_checksum=False).size
    finally:
        backing.close()
