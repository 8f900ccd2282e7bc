# SPDX-License-Identifier: Apache-2.0
"""Debian binary packages, format 2.0: deb(5), deb-control(5), deb-conffiles(5), deb-triggers(5).

The data archive is unpacked into the cache once and referenced there, with an index of its members: reading a package
again only hashes the unpacked archive and parses nothing.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec

from erofs_edge.errors import SourceError
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.ar import ArMember, ar_members
from erofs_edge.sources.decompress import HEAD, codec_of, decompressed, reader
from erofs_edge.sources.tar import tree_of, unpack_archive
from erofs_edge.sources.tarball import Member, parse_members, read_members
from erofs_edge.tree import FileTree

SCRIPTS = ("preinst", "postinst", "prerm", "postrm", "config")
MAX_CONTROL = 64 << 20  # bytes of an unpacked control archive
INDEX = "deb-index-1"
DATA = "deb-data"


@dataclass(frozen=True, slots=True, eq=False)
class Package:
    """The contents of a package file.

    control     fields of the control file, as written; a folded value keeps its line ends
    scripts     the maintainer scripts that exist: preinst, postinst, prerm, postrm, config
    conffiles   absolute paths
    triggers    the triggers file unchanged, b"" without one
    info        every file of the control archive, by name (what dpkg keeps in info/)
    members     of the data archive, in order; their contents are in the file `archive`
    """

    name: str
    version: str
    arch: str
    control: dict[str, str] = field(default_factory=dict)
    scripts: dict[str, bytes] = field(default_factory=dict)
    conffiles: list[str] = field(default_factory=list)
    triggers: bytes = b""
    info: dict[str, bytes] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    archive: Path = Path()

    @property
    def md5sums(self) -> dict[str, str]:
        """Path (without the leading '/') → md5 in hex, as listed in the package."""
        lines = os.fsdecode(self.info.get("md5sums", b"")).splitlines()
        return {path: digest for digest, _, path in (line.partition("  ") for line in lines) if path}

    @property
    def files(self) -> list[str]:
        """Absolute paths in archive order, as in dpkg's NAME.list; the root is '/.'."""
        return ["/" + os.fsdecode(member.path) if member.path else "/." for member in self.members]

    @property
    def data(self) -> FileTree:
        """The package's own files as a new tree."""
        return tree_of(self.members, self.archive, f"{self.name} {self.version}", origin=self.name)


class _Index(msgspec.Struct, array_like=True):
    info: dict[str, bytes]
    members: list[Member]
    sha256: str
    """of the unpacked data archive; empty if the package stores it uncompressed"""


def read_debs(debs: Mapping[str, Path], cache: Cache, *, jobs: int | None = None) -> list[Package]:
    """Read many packages (name → file) in parallel threads; sorted by name.

    Raises SourceError as read_deb does, and if a file contains a package of another name.
    """
    names = sorted(debs)
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        try:
            packages = list(pool.map(lambda name: read_deb(debs[name], cache), names))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for name, package in zip(names, packages, strict=True):
        if package.name != name:
            raise SourceError(f"holds the package {package.name}, not {name}", where=str(debs[name]))
    return packages


def trees_of(debs: Mapping[str, Path], cache: Cache) -> dict[str, FileTree]:
    """The files of each package (name → file), by its name. Raises SourceError as read_deb does."""
    return {name: read_deb(path, cache).data for name, path in debs.items()}


def merged_tree(debs: Mapping[str, Path], cache: Cache) -> FileTree:
    """The files of all packages (name → file) in one tree; if two have the same path, the one whose name comes later in
    the alphabet wins. Raises SourceError as read_deb does."""
    tree = FileTree()
    for _, one in sorted(trees_of(debs, cache).items()):
        tree.merge(one)
    return tree


def read_ahead(debs: Iterable[Path], cache: Cache) -> None:
    """Read packages in parallel threads, the slowest first, so that `read_deb` has them at once.

    Raises SourceError as read_deb does.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(lambda path: read_deb(path, cache), sorted(debs, key=lambda path: -path.stat().st_size)):
            pass


def read_deb(path: Path, cache: Cache) -> Package:
    """Read a package file; the same value for the lifetime of the cache object, unless the underlying files change.

    Raises SourceError naming the file (and the member) if it is malformed.
    """
    key = cache.digest(path)
    sha256, package = cache.kept.get((INDEX, (key, path)), (None, None))
    if package is not None and (not sha256 or cache.proved(package.archive, sha256) is not None):
        return cast("Package", package)
    index = cache.load_record(INDEX, key, _Index)
    archive = cache.derived_path(DATA, key)
    if index is not None and not index.sha256:
        archive = path
    elif index is not None and cache.proved(archive, index.sha256) is None:
        index = None
    fresh = index is None
    if index is None:
        index, archive = _read(path, cache, key)
    info = index.info
    control = parse_control(info["control"].decode("utf-8", "replace"), str(path))
    if fresh:
        cache.store_record(INDEX, key, index)
    package = Package(
        name=control["Package"],
        version=control["Version"],
        arch=control["Architecture"],
        control=control,
        scripts={name: info[name] for name in SCRIPTS if name in info},
        conffiles=_conffiles(info.get("conffiles", b"")),
        triggers=info.get("triggers", b""),
        info=info,
        members=index.members,
        archive=archive,
    )
    cache.kept[INDEX, (key, path)] = index.sha256, package
    return package


def parse_control(text: str, where: str) -> dict[str, str]:
    """Fields of one stanza (deb822(5)). Raises SourceError if one is malformed or a required one is missing."""
    fields: dict[str, str] = {}
    key = ""
    for number, line in enumerate(text.strip("\n").split("\n"), 1):
        if line[:1] in (" ", "\t") and key:
            fields[key] += "\n" + line
        elif match := re.match(r"([!-9;-~]+):[ \t]*(.*)", line):
            key = match[1]
            fields[key] = match[2].rstrip()
        else:
            raise SourceError(f"line {number} of the control file is no field: {line[:60]!r}", where=where)
    for needed, pattern in (
        ("Package", r"[a-z0-9][a-z0-9+.-]*"),
        ("Version", r"[0-9][A-Za-z0-9.+~:-]*"),
        ("Architecture", r"[a-z0-9-]+"),
    ):
        if not re.fullmatch(pattern, fields.get(needed, "")):
            raise SourceError(f"the control file has no usable field {needed}", where=where)
    return fields


def _read(path: Path, cache: Cache, key: str) -> tuple[_Index, Path]:
    where = str(path)
    try:
        control, data = _parts(path, ar_members(path))
        info = _control(path, control, where)
        codec = _codec(path, data)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=where) from error
    if codec == "none":
        members = read_members(path, f"{where}: {data.name}", start=data.start, size=data.size)
        return _Index(info, members, ""), path
    final = cache.derived_path(DATA, key)
    unpacked = unpack_archive(
        cache, final, path, start=data.start, size=data.size, codec=codec, where=f"{where}: {data.name}"
    )
    return _Index(info, unpacked.members, unpacked.sha256), final


def _parts(path: Path, members: list[ArMember]) -> tuple[ArMember, ArMember]:
    """control.tar.* and data.tar.*; deb(5) fixes their order, and members named _* may come in between."""
    where = str(path)
    if not members or members[0].name != "debian-binary":
        raise SourceError("not a Debian package (its first member is not debian-binary)", where=where)
    with path.open("rb") as file:
        file.seek(members[0].start)
        if members[0].size > 64 or not file.read(members[0].size).startswith(b"2."):
            raise SourceError("not a Debian package of format 2.0", where=where)
    rest = [member for member in members[1:] if not member.name.startswith("_")]
    for member, name in zip(rest, ("control.tar", "data.tar"), strict=False):
        if not re.fullmatch(re.escape(name) + r"(\.(gz|xz|zst|bz2))?", member.name):
            raise SourceError(f"member {member.name!r} stands where {name} belongs", where=where)
    if len(rest) != 2:
        raise SourceError(f"{len(rest)} archives inside instead of control.tar and data.tar", where=where)
    return rest[0], rest[1]


def _control(path: Path, member: ArMember, where: str) -> dict[str, bytes]:
    """Every regular file of the control archive, by name."""
    codec = _codec(path, member)
    with path.open("rb") as file:
        file.seek(member.start)
        read = reader(file, member.size)
        pieces = (
            decompressed(read, codec, f"{where}: {member.name}") if codec != "none" else iter(lambda: read(65536), b"")
        )
        data = bytearray()
        for piece in pieces:
            data += piece
            if len(data) > MAX_CONTROL:
                raise SourceError(f"{member.name} holds more than {MAX_CONTROL >> 20} MiB", where=where)
    archive = bytes(data)
    members = parse_members(lambda at, length: archive[at : at + length], 0, len(archive), f"{where}: {member.name}")
    info = {os.fsdecode(m.path): archive[m.start : m.start + m.size] for m in members if stat.S_ISREG(m.mode)}
    if "control" not in info:
        raise SourceError("has no control file", where=where)
    return info


def _codec(path: Path, member: ArMember) -> str:
    with path.open("rb") as file:
        file.seek(member.start)
        return codec_of(file.read(min(HEAD, member.size)))


def _conffiles(data: bytes) -> list[str]:
    """Paths; a line may start with a flag (remove-on-upgrade names files that are NOT in the package)."""
    lines = [line.strip() for line in os.fsdecode(data).splitlines()]
    return [line for line in lines if line.startswith("/")]
