# SPDX-License-Identifier: Apache-2.0
"""The tar format: parse the headers of an uncompressed archive into `Member` values. Nothing is extracted.

ustar and pax: POSIX.1-2017 pax(1), "ustar Interchange Format" and "pax Extended Header"; long names, base-256 numbers,
sparse files and dumps of directories: GNU tar manual, "Basic Tar Format", "Storing Sparse Files" and "Dumpdir";
extended attributes: SCHILY.xattr.NAME and SCHILY.acl.KIND of star(5), LIBARCHIVE.xattr.NAME of libarchive-formats(5),
RHT.security.selinux of GNU tar.

Strict where a mistake could go unnoticed: absolute names, names that climb out, a missing end marker, wrong checksums
and unknown types are errors.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import urllib.parse
import zlib
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path

from msgspec import Struct

from erofs_edge.errors import SourceError
from erofs_edge.names import fsdecode
from erofs_edge.positions import READ, pread
from erofs_edge.sources.posix_acl import acl_attribute

BLOCK = 512
MAX_HEADER = 1 << 20  # bytes of one extended header or long name
MAX_PATH = 4096  # bytes, the kernel's PATH_MAX
MAX_MEMBERS = 4_000_000
MAX_TOTAL = 64 << 30  # total bytes of all files, including holes

KINDS = {
    b"0": stat.S_IFREG, b"\0": stat.S_IFREG, b"7": stat.S_IFREG, b"S": stat.S_IFREG, b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR, b"4": stat.S_IFBLK, b"5": stat.S_IFDIR, b"D": stat.S_IFDIR, b"6": stat.S_IFIFO,
}  # fmt: skip
_ZERO = bytes(BLOCK)
_OCTAL = re.compile(rb"[0-7]+").fullmatch
_DECIMAL = re.compile(rb"[0-9]{1,19}").fullmatch
_ACLS = {
    b"SCHILY.acl.access": b"system.posix_acl_access",
    b"SCHILY.acl.default": b"system.posix_acl_default",
}
"""lists as text (star(5), GNU tar --acls) → the attribute in which Linux stores them"""


class Member(Struct, array_like=True):
    """One entry of an archive.

    path     b"usr/bin/x": no leading "/" or "./"; b"" is the root
    mode     type and permission bits; 0 for a hard link
    link     target of a symlink, unchanged; of a hard link, an earlier member's path
    start    byte offset of the content in the archive; size is the file's size in bytes
    extents  of a sparse file: (offset in the file, length) of what is stored, consecutively; else None
    """

    path: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    start: int = 0
    link: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = {}
    extents: list[tuple[int, int]] | None = None


class _BadMemberError(Exception):
    """What is wrong with the current member."""


def read_members(path: Path, where: str, *, start: int = 0, size: int | None = None) -> list[Member]:
    """All members of an uncompressed archive: `size` bytes at byte `start` of a file.

    Raises SourceError naming the archive (`where`) and the member.
    """
    try:
        descriptor = os.open(path, READ)
        try:
            end = os.fstat(descriptor).st_size if size is None else start + size
            return parse_members(lambda offset, length: pread(descriptor, length, offset), start, end, where)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=where) from error


def parse_members(pread: Callable[[int, int], bytes], start: int, end: int, where: str) -> list[Member]:
    """The same for bytes [start, end) supplied by `pread(offset, length)`."""
    return _Reader(pread, start, end, where).run()


class _Reader:
    def __init__(self, pread: Callable[[int, int], bytes], start: int, end: int, where: str) -> None:
        self.pread = pread
        self.at = start
        self.end = end
        self.where = where
        self.members: list[Member] = []
        self.total = 0
        self.common: dict[bytes, bytes] = {}

    def run(self) -> list[Member]:
        name = b""
        offset = self.at
        try:
            while True:
                name = b""
                offset = self.at
                extra: dict[bytes, bytes] = {}
                header = self._header()
                while header is not None and header[156:157] in b"xgLKXV":
                    self._extend(header, extra)
                    header = self._header()
                if header is None:
                    if extra:
                        raise _BadMemberError("an extended header belongs to no member")
                    return self.members
                name = extra.get(b"path") or _name(header)
                self._member(header, {**self.common, **extra} if self.common else extra)
        except (_BadMemberError, ValueError) as error:
            what = f"member {fsdecode(name[:MAX_PATH])!r}: {error}" if name else str(error)
            raise SourceError(what, where=f"{self.where}: offset {offset:#x}") from error

    def _header(self) -> bytes | None:
        """The next header block, or None at the end marker."""
        header = self.pread(self.at, BLOCK) if self.at + BLOCK <= self.end else b""
        if len(header) < BLOCK:
            raise _BadMemberError("archive is truncated: no end marker")
        self.at += BLOCK
        if header == _ZERO:
            return None
        if not _sum_is_right(header):
            raise _BadMemberError("not a tar archive, or a damaged header (the check sum is off)")
        return header

    def _body(self, size: int) -> bytes:
        """The content that follows, for a header's own kind."""
        if size > MAX_HEADER:
            raise _BadMemberError(f"an extended header of {size} bytes")
        start = self._skip(size)
        data = self.pread(start, size)
        if len(data) != size:
            raise _BadMemberError("archive is truncated")
        return data

    def _skip(self, size: int) -> int:
        """Skip a content; return its start."""
        start = self.at
        if size < 0 or size > self.end - start:
            raise _BadMemberError(f"archive is truncated: {size} bytes are announced, {self.end - start} are left")
        self.at += (size + BLOCK - 1) & -BLOCK
        return start

    def _extend(self, header: bytes, extra: dict[bytes, bytes]) -> None:
        kind = header[156:157]
        data = self._body(_number(header[124:136]))
        if kind == b"L":
            extra[b"path"] = data.split(b"\0", 1)[0]
        elif kind == b"K":
            extra[b"linkpath"] = data.split(b"\0", 1)[0]
        elif kind in b"xX":
            _pax_records(data, extra)
        elif kind == b"g":
            _pax_records(data, self.common)

    def _member(self, header: bytes, extra: dict[bytes, bytes]) -> None:
        kind = header[156:157]
        name = extra.get(b"GNU.sparse.name") or extra.get(b"path") or _name(header)
        if kind == b"\0" and name.endswith(b"/"):
            kind = b"5"
        if kind != b"1" and kind not in KINDS:
            raise _BadMemberError(f"unknown kind of member {kind!r}")
        member = Member(
            path=clean_path(name),
            mode=0 if kind == b"1" else KINDS[kind] | (_number(header[100:108]) & 0o7777),
            uid=_owner(extra.get(b"uid"), header[108:116]),
            gid=_owner(extra.get(b"gid"), header[116:124]),
            mtime_ns=_nanoseconds(extra[b"mtime"]) if b"mtime" in extra else _number(header[136:148]) * 1_000_000_000,
        )
        size = _decimal(extra[b"size"]) if extra.get(b"size") else _number(header[124:136])
        if kind in b"12":
            member.link = extra.get(b"linkpath") or header[157:257].split(b"\0", 1)[0]
            if kind == b"1":
                member.link = clean_path(member.link)
            _check_link(member, size)
        elif kind in b"34":
            member.rdev = (_number(header[329:337]), _number(header[337:345]))
            if not (0 <= member.rdev[0] < 1 << 12 and 0 <= member.rdev[1] < 1 << 20):
                raise _BadMemberError(f"device number {member.rdev[0]}:{member.rdev[1]}")
        elif kind == b"D":
            self._skip(size)  # the names that GNU tar --listed-incremental found in a directory
        elif kind in b"0\x007S":
            self._content(member, kind, size, header, extra)
        if extra:
            member.xattrs = _xattrs(extra)
        self.total += member.size
        if self.total > MAX_TOTAL:
            raise _BadMemberError(f"the files are more than {MAX_TOTAL >> 30} GiB in all")
        if len(self.members) >= MAX_MEMBERS:
            raise _BadMemberError(f"more than {MAX_MEMBERS} members")
        self.members.append(member)

    def _content(self, member: Member, kind: bytes, size: int, header: bytes, extra: dict[bytes, bytes]) -> None:
        if kind == b"S":
            extents, member.size = self._old_sparse(header)
        elif extra.get(b"GNU.sparse.major") == b"1":
            data_start = self.at
            data_end = self._skip(size) + size
            extents, map_size = self._sparse_map(data_start, data_end)
            member.size = _decimal(extra.get(b"GNU.sparse.realsize", b""))
            member.start, size = data_start + map_size, size - map_size
            member.extents = _checked(extents, member.size, size)
            return
        elif b"GNU.sparse.map" in extra:
            member.size = _decimal(extra.get(b"GNU.sparse.size", b""))
            extents = _pairs([_decimal(word) for word in extra[b"GNU.sparse.map"].split(b",") if word])
        else:
            member.size = size
            member.start = self._skip(size)
            return
        member.start = self._skip(size)
        member.extents = _checked(extents, member.size, size)

    def _old_sparse(self, header: bytes) -> tuple[list[tuple[int, int]], int]:
        """The map of GNU's first format: four entries in the header, 21 in each block that follows."""
        fields = header[386:482]
        more = header[482]
        while more:
            block = self.pread(self.at, BLOCK) if self.at + BLOCK <= self.end else b""
            if len(block) < BLOCK or len(fields) > MAX_HEADER:
                raise _BadMemberError("the map of a sparse file has no end")
            self.at += BLOCK
            fields += block[:504]
            more = block[504]
        words = [fields[i : i + 12] for i in range(0, len(fields), 12)]
        values = [_number(word) for word in words if word.strip(b" \0")]
        return _pairs(values), _number(header[483:495])

    def _sparse_map(self, start: int, end: int) -> tuple[list[tuple[int, int]], int]:
        """The map of GNU's format 1.0: decimal lines before the content, padded to a block."""
        text = b""
        lines: list[bytes] = []
        while True:
            block = self.pread(start + len(text), BLOCK)
            if start + len(text) + BLOCK > end or len(block) < BLOCK or len(text) > MAX_HEADER:
                raise _BadMemberError("the map of a sparse file has no end")
            text += block
            lines = text.split(b"\n", 1)
            if len(lines) == 2:
                count = _decimal(lines[0])
                if 2 * count > MAX_HEADER:
                    raise _BadMemberError(f"the map of a sparse file has {count} entries")
                if text.count(b"\n") > 2 * count:
                    words = text.split(b"\n")[1 : 1 + 2 * count]
                    return _pairs([_decimal(word) for word in words]), len(text)


def clean_path(name: bytes) -> bytes:
    """A member's name without "./" and doubled slashes. Raises _BadMemberError if it is absolute or climbs out."""
    if name.startswith(b"/"):
        raise _BadMemberError("its name is absolute" if name.strip(b"/") else "its name is '/'")
    if b"\0" in name:
        raise _BadMemberError("its name holds a NUL")
    if len(name) > MAX_PATH:
        raise _BadMemberError(f"its name has {len(name)} bytes")
    parts = [part for part in name.split(b"/") if part and part != b"."]
    for part in parts:
        if part == b"..":
            raise _BadMemberError("its name climbs out of the archive with '..'")
        if len(part) > 255:
            raise _BadMemberError("a part of its name has more than 255 bytes")
    return b"/".join(parts)


def _check_link(member: Member, size: int) -> None:
    if size and not member.mode:
        raise _BadMemberError("a hard link with a content of its own")
    if not member.link or b"\0" in member.link or len(member.link) > MAX_PATH:
        raise _BadMemberError("a link without a usable target")


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345] and header[156:157] != b"S":
        return header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _number(field: bytes) -> int:
    """Octal text, or base-256 if the first bit is set (the second is the sign). Raises _BadMemberError."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = len(field) * 8
        return value - (1 << bits) if field[0] & 0x40 else value - (1 << (bits - 1))
    text = field.split(b"\0", 1)[0].strip()
    if not text:
        return 0
    if not _OCTAL(text):
        raise _BadMemberError(f"{field!r} is no number")
    return int(text, 8)


def _sum_is_right(header: bytes) -> bool:
    """Check the sum of all bytes, with its own field as spaces; some old writers added signed characters."""
    try:
        told = _number(header[148:156])
    except _BadMemberError:
        return False
    # Adler's first sum is 1 + the bytes, modulo 65521 (RFC 1950 §9): exact for 256 bytes, and runs in C
    plain = (zlib.adler32(header[:256]) & 0xFFFF) + (zlib.adler32(header[256:]) & 0xFFFF) - 2
    plain += 8 * 0x20 - sum(header[148:156])
    return told == plain or told == plain - 256 * sum(byte > 127 for byte in header[:148] + header[156:])


def _decimal(text: bytes) -> int:
    if not _DECIMAL(text):
        raise _BadMemberError(f"{text[:40]!r} is no number")
    return int(text)


def _owner(text: bytes | None, field: bytes) -> int:
    value = _decimal(text) if text else _number(field)
    if not 0 <= value < 1 << 32:
        raise _BadMemberError(f"{value} is no user or group id")
    return value


def _nanoseconds(text: bytes) -> int:
    try:
        value = Decimal(text.decode("ascii"))
        if not value.is_finite() or abs(value) >= 1 << 63:
            raise _BadMemberError(f"{text[:40]!r} is no time")
        return int((value * 1_000_000_000).to_integral_value(rounding="ROUND_FLOOR"))
    except (InvalidOperation, UnicodeDecodeError):
        raise _BadMemberError(f"{text[:40]!r} is no time") from None


def _pax_records(data: bytes, into: dict[bytes, bytes]) -> None:
    """Records "LENGTH KEY=VALUE\\n"; an empty value removes an earlier one."""
    at = 0
    pairs: list[bytes] = []
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        length = _decimal(data[at:space]) if space > 0 else 0
        record = data[space + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if not length or at + length > len(data) or not equals or not record.endswith(b"\n"):
            raise _BadMemberError("a damaged extended header")
        at += length
        value = value[:-1]
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pairs.append(value)
        elif value or key.startswith((b"SCHILY.xattr.", b"LIBARCHIVE.xattr.")):
            into[key] = value
        else:
            into.pop(key, None)
    if pairs:
        into[b"GNU.sparse.map"] = b",".join(pairs)


def _xattrs(extra: dict[bytes, bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for key, value in extra.items():
        if key.startswith(b"LIBARCHIVE.xattr."):
            name = urllib.parse.unquote_to_bytes(key.removeprefix(b"LIBARCHIVE.xattr."))
            try:
                found.setdefault(name, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True))
            except binascii.Error:
                raise _BadMemberError(f"attribute {fsdecode(name)} is not base64") from None
    for key, value in extra.items():
        if key.startswith(b"SCHILY.xattr."):
            found[key.removeprefix(b"SCHILY.xattr.")] = value
        elif key == b"RHT.security.selinux":
            found.setdefault(b"security.selinux", value.rstrip(b"\0") + b"\0")
        elif key in _ACLS:
            _add_acl(found, key, value)
        elif key.startswith(b"SCHILY.acl."):
            raise _BadMemberError("an access control list of a kind that Linux does not have")
    if not all(0 < len(name) <= 255 and b"\0" not in name and len(value) <= 65536 for name, value in found.items()):
        raise _BadMemberError("an extended attribute that Linux cannot hold")
    return found


def _add_acl(found: dict[bytes, bytes], key: bytes, text: bytes) -> None:
    try:
        value = acl_attribute(text.decode("utf-8", "replace"), default=key.endswith(b"default"))
    except ValueError as error:
        raise _BadMemberError(f"{error} (write the archive with --xattrs, or --acls and --numeric-owner)") from None
    if value is not None:
        found.setdefault(_ACLS[key], value)


def _pairs(values: list[int]) -> list[tuple[int, int]]:
    if len(values) % 2:
        raise _BadMemberError("half an entry in the map of a sparse file")
    return list(zip(values[::2], values[1::2], strict=True))


def _checked(extents: list[tuple[int, int]], size: int, stored: int) -> list[tuple[int, int]]:
    at = 0
    for offset, length in extents:
        if offset < at or length < 0:
            raise _BadMemberError("the map of a sparse file is not in order")
        at = offset + length
    if at > size or sum(length for _, length in extents) != stored:
        raise _BadMemberError("the map of a sparse file does not fit its content")
    return [extent for extent in extents if extent[1]]
