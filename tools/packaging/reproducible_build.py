# SPDX-License-Identifier: Apache-2.0
"""The build backend: setuptools, followed by a rewrite of its archives so that every byte depends on the sources only.

What setuptools writes depends on the clock, the umask, the user and the order of folders. Both archives are rewritten:
members sorted by name, one time (SOURCE_DATE_EPOCH, else 1980-01-01, the first that a ZIP file can hold), modes 0644
and 0755, no owner. The wheel's RECORD lists only contents and stays unchanged. pyproject.toml pins setuptools, as its
version is in the wheel.
"""

from __future__ import annotations

import io
import os
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (  # what pip asks a backend for
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable", "build_sdist", "build_wheel", "get_requires_for_build_editable", "get_requires_for_build_sdist",
    "get_requires_for_build_wheel", "prepare_metadata_for_build_editable", "prepare_metadata_for_build_wheel",
]  # fmt: skip
FIRST = 315_532_800
"""1980-01-01, seconds since 1970"""


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Build the wheel into a folder. Return its name."""
    name: str = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    _rewrite(Path(wheel_directory, name), _zip)
    return name


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """Build the source archive into a folder. Return its name."""
    name: str = build_meta.build_sdist(sdist_directory, config_settings)
    _rewrite(Path(sdist_directory, name), _tar)
    return name


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Build an editable wheel. Return its name. It has a .pth line with the folder: setuptools' default, a finder,
    would be loaded by each Python that starts."""
    settings = {"editable_mode": "compat", **(config_settings or {})}
    name: str = build_meta.build_editable(wheel_directory, settings, metadata_directory)
    return name


def _rewrite(path: Path, form: Any) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(form(path.read_bytes()))
    temporary.replace(path)


def _epoch() -> int:
    return max(FIRST, int(os.environ.get("SOURCE_DATE_EPOCH", FIRST)))


def _mode(mode: int) -> int:
    return 0o755 if mode & 0o100 else 0o644


def _zip(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        # .dist-info comes last, as the wheel format recommends
        for entry in sorted(old.infolist(), key=lambda one: (".dist-info/" in one.filename, one.filename)):
            if entry.is_dir():
                continue
            made = zipfile.ZipInfo(entry.filename, time.gmtime(_epoch())[:6])
            made.external_attr = (0o100000 | _mode(entry.external_attr >> 16)) << 16
            made.create_system = 3
            # stored: deflate's bytes depend on the zlib of the running Python
            new.writestr(made, old.read(entry), zipfile.ZIP_STORED)
    return out.getvalue()


def _tar(data: bytes) -> bytes:
    plain = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as old,
        tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for entry in sorted(old.getmembers(), key=lambda one: one.name):
            # made by setuptools for itself; archives made from this one would list them, too
            if ".egg-info" in entry.name or entry.name.endswith("/setup.cfg"):
                continue
            made = tarfile.TarInfo(entry.name)
            made.type, made.size, made.linkname, made.mtime = entry.type, entry.size, entry.linkname, _epoch()
            made.mode = 0o755 if entry.isdir() else _mode(entry.mode)
            new.addfile(made, old.extractfile(entry) if entry.isfile() else None)
    return _gzip(plain.getvalue())


def _gzip(data: bytes) -> bytes:
    """Return a gzip file with stored, not compressed, data, for the same reason (RFC 1952; stored blocks: RFC 1951,
    3.2.4)."""
    out = [b"\x1f\x8b\x08\x00", struct.pack("<I", _epoch()), b"\x00\xff"]
    for at in range(0, len(data), 0xFFFF):
        piece = data[at : at + 0xFFFF]
        out += [struct.pack("<BHH", at + 0xFFFF >= len(data), len(piece), len(piece) ^ 0xFFFF), piece]
    return b"".join([*out, struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)])
