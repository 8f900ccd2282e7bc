# SPDX-License-Identifier: Apache-2.0
"""What the tests of sources share: trees made comparable, archives and packages made by hand."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

from erofs_edge.tree import FileTree

Row = tuple[int, int, int, int, tuple[int, int], bytes, dict[bytes, bytes], bytes]


def rows(tree: FileTree, *, directory_times: bool = True) -> dict[bytes, Row]:
    """Everything about every path, contents included."""
    return {
        path: (
            inode.mode,
            inode.uid,
            inode.gid,
            inode.mtime_ns if directory_times or not inode.is_dir else 0,
            inode.rdev,
            inode.target,
            inode.xattrs,
            inode.read() if inode.is_file else b"",
        )
        for path, inode in tree.walk()
    }


def link_groups(tree: FileTree) -> list[list[bytes]]:
    """Names that are one file."""
    groups: dict[int, list[bytes]] = {}
    for path, inode in tree.walk():
        if not inode.is_dir:
            groups.setdefault(id(inode), []).append(path)
    return sorted(sorted(names) for names in groups.values() if len(names) > 1)


def entry(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o777 if kind == tarfile.SYMTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar_bytes(entries: Iterable[tuple[tarfile.TarInfo, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def ar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    out = bytearray(b"!<arch>\n")
    for name, data in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return bytes(out)


def control_text(name: str = "tiny", version: str = "1.0", **fields: str) -> str:
    lines = {"Package": name, "Version": version, "Architecture": "arm64", "Maintainer": "A <a@b.c>"}
    lines |= {key.replace("_", "-"): value for key, value in fields.items()}
    return "".join(f"{key}: {value}\n" for key, value in lines.items()) + "Description: a test\n of packages\n"


def deb_bytes(
    entries: Iterable[tuple[tarfile.TarInfo, bytes]] = (),
    *,
    control: str | None = None,
    info: dict[str, bytes] | None = None,
    data: bytes | None = None,
    data_name: str = "data.tar",
) -> bytes:
    """A package with uncompressed archives, unless `data` says otherwise."""
    files = {"control": (control if control is not None else control_text()).encode(), **(info or {})}
    return ar_bytes(
        [
            ("debian-binary", b"2.0\n"),
            ("control.tar", tar_bytes(entry(f"./{name}", text) for name, text in files.items())),
            (data_name, data if data is not None else tar_bytes(entries)),
        ]
    )
