# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sources.samples import entry, link_groups, rows, tar_bytes

from erofs_edge.errors import SourceError, VerificationError
from erofs_edge.sources import tarball
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.directory import scan
from erofs_edge.sources.tar import SparseContent, read_tar
from erofs_edge.sources.tarball import parse_members
from erofs_edge.tree import FileContent, FileTree

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "xz": lzma.compress,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": zstandard.ZstdCompressor().compress,
}
TREE = [
    entry("./", kind=tarfile.DIRTYPE, mtime=9),
    entry("./usr/", kind=tarfile.DIRTYPE, mode=0o2755, gid=42),
    entry("./usr/bin", kind=tarfile.DIRTYPE),
    entry("./bin", kind=tarfile.SYMTYPE, linkname="usr/bin"),
    entry("./usr/bin/su", b"suid" * 300, mode=0o4755, uid=0, gid=5, mtime=1_700_000_000),
    entry("./usr/bin/twin", kind=tarfile.LNKTYPE, linkname="./usr/bin/su"),
    entry("./bin/through", b"lands in usr/bin"),
    entry("./empty"),
    entry("./dev/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
    entry("./dev/disk", kind=tarfile.BLKTYPE, devmajor=259, devminor=1000),
    entry("./pipe", kind=tarfile.FIFOTYPE),
    entry("./" + "long" * 30 + "/" + "x" * 255, b"long"),
]


def read(tmp_path: Path, data: bytes, cache: Cache | None = None) -> FileTree:
    path = tmp_path / "archive.tar"
    path.write_bytes(data)
    return read_tar(path, cache or Cache(tmp_path / "cache"))


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("codec", ENCODERS)
def test_every_kind_of_member(tmp_path: Path, codec: str, kind: int) -> None:
    tree = read(tmp_path, ENCODERS[codec](tar_bytes(TREE, kind)))
    found = rows(tree)
    assert found[b"/"] == (0o40755, 0, 0, 9 * 10**9, (0, 0), b"", {}, b"")
    assert found[b"/usr"] == (0o42755, 0, 42, 0, (0, 0), b"", {}, b"")
    assert found[b"/bin"] == (0o120777, 0, 0, 0, (0, 0), b"usr/bin", {}, b"")
    assert found[b"/usr/bin/su"] == (0o104755, 0, 5, 1_700_000_000 * 10**9, (0, 0), b"", {}, b"suid" * 300)
    assert found[b"/usr/bin/through"][7] == b"lands in usr/bin"
    assert found[b"/empty"] == (0o100644, 0, 0, 0, (0, 0), b"", {}, b"")
    assert found[b"/dev"][:4] == (0o40755, 0, 0, 0), "a parent that is not in the archive"
    assert found[b"/dev/null"][:5] == (0o20666, 0, 0, 0, (1, 3))
    assert found[b"/dev/disk"][:5] == (0o60644, 0, 0, 0, (259, 1000))
    assert found[b"/pipe"][0] == 0o10644
    assert found[b"/" + b"long" * 30 + b"/" + b"x" * 255][7] == b"long"
    assert link_groups(tree) == [[b"/usr/bin/su", b"/usr/bin/twin"]]
    assert len(found) == len(TREE) + 2 - 0


def test_a_plain_archive_is_referenced_in_place(tmp_path: Path, cache: Cache) -> None:
    tree = read(tmp_path, tar_bytes(TREE), cache)
    content = tree.get("usr/bin/su").content
    assert isinstance(content, FileContent)
    assert content.path == tmp_path / "archive.tar"
    assert not cache.root.exists()


def test_a_compressed_archive_is_unpacked_once(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(tar_bytes(TREE), mtime=0)
    first = rows(read(tmp_path, packed, cache))
    with monkeypatch.context() as patch:
        patch.setattr("erofs_edge.sources.tar.decompressed", lambda *_: pytest.fail("unpacked again"))
        assert rows(read(tmp_path, packed, Cache(cache.root))) == first
    # both halves of what is kept are made again when they have rotted
    for folder in ("tar-data", "tar-index-1"):
        (kept,) = (path for path in (cache.root / "derived" / folder).rglob("*") if path.is_file())
        data = bytearray(kept.read_bytes())
        data[data.find(b"suid")] ^= 0xFF
        kept.write_bytes(data)
        assert rows(read(tmp_path, packed, Cache(cache.root))) == first


def test_the_hash_of_the_manifest(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(tar_bytes(TREE))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_tar(path, cache, sha256=sha256).get("empty") is not None
    with pytest.raises(VerificationError, match=f"sha256 is {sha256}, the manifest says 0000"):
        read_tar(path, cache, sha256="0" * 64)


def test_times_owners_and_attributes_of_pax_headers(tmp_path: Path) -> None:
    headers = {
        "mtime": "-1.000000001",
        "uid": "4294967294",
        "SCHILY.xattr.user.text": "two\nlines=x",
        "LIBARCHIVE.xattr.user.100%25": "AP8",
        "LIBARCHIVE.xattr.user.text": "AAAA",
        "comment": "nobody reads this",
    }
    tree = read(tmp_path, tar_bytes([entry("file", b"x", pax_headers=headers), entry("next", mtime=3)]))
    file = rows(tree)[b"/file"]
    assert file[1] == 4294967294
    assert file[3] == -1_000_000_001
    assert file[6] == {b"user.text": b"two\nlines=x", b"user.100%": b"\0\xff"}
    assert rows(tree)[b"/next"][1:7] == (0, 0, 3 * 10**9, (0, 0), b"", {}), "a header is for one member"


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("5", 5 * 10**9), ("1.0000000019", 10**9 + 1), ("-0.0000000001", -1), ("9e3", 9000 * 10**9), ("7.5", 75 * 10**8)],
)
def test_times_are_exact_and_rounded_down(tmp_path: Path, text: str, nanoseconds: int) -> None:
    assert rows(read(tmp_path, tar_bytes([entry("x", pax_headers={"mtime": text})])))[b"/x"][3] == nanoseconds


def test_a_global_header_is_for_all_that_follow(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"gid": "77"}) as tar:
        for info, _ in (entry("a"), entry("b", pax_headers={"gid": "78"}), entry("c")):
            tar.addfile(info)
    assert [rows(read(tmp_path, out.getvalue()))[path][2] for path in (b"/a", b"/b", b"/c")] == [77, 78, 77]


def test_golden_ustar_header() -> None:
    """POSIX ustar as pax(1) describes it, written down field by field: prefix, octal numbers with either end."""
    header = bytearray(512)
    for at, text in (
        (0, b"name"), (100, b"0000640\0"), (108, b"0001750 "), (116, b"0001751\0"), (124, b"00000000003 "),
        (136, b"14524770400\0"), (156, b"0"), (257, b"ustar\0" + b"00"), (329, b"0000000\0"), (345, b"dir/sub"),
    ):  # fmt: skip
        header[at : at + len(text)] = text
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    archive = bytes(header) + b"abc" + bytes(509) + bytes(1024)
    (member,) = parse_members(lambda at, n: archive[at : at + n], 0, len(archive), "x")
    assert member == tarball.Member(b"dir/sub/name", 0o100640, 1000, 1001, 1_700_000_000 * 10**9, 3, 512)


TAR_FORMATS = {
    "v7": ["--format=v7"],
    "ustar": ["--format=ustar"],
    "gnu": ["--format=gnu"],
    "gnu sparse": ["--format=gnu", "--sparse"],
    "pax": ["--format=pax", "--xattrs", "--xattrs-include=*"],
    "pax sparse 0.0": ["--format=pax", "--sparse", "--sparse-version=0.0"],
    "pax sparse 0.1": ["--format=pax", "--sparse", "--sparse-version=0.1"],
    "pax sparse 1.0": ["--format=pax", "--sparse", "--sparse-version=1.0", "--xattrs", "--xattrs-include=*"],
}


@pytest.mark.parametrize("options", TAR_FORMATS.values(), ids=list(TAR_FORMATS))
def test_what_gnu_tar_writes(tmp_path: Path, options: list[str]) -> None:
    """Every format of the real tool against the directory that it packed."""
    top = tmp_path / "top"
    (top / "sub/x").mkdir(parents=True)
    (top / "sub/file").write_bytes(os.urandom(5000))
    os.link(top / "sub/file", top / "twin")
    (top / "link").symlink_to("sub/../nowhere")
    Path(os.fsdecode(os.fsencode(top) + b"/\xff\xc0")).write_bytes(b"not UTF-8")
    if "v7" not in options[0]:
        os.mkfifo(top / "fifo")
        deep = top / ("d" * 60) / ("e" * 60)
        deep.mkdir(parents=True)
        (deep / ("f" * 90)).write_bytes(b"deep")
    if options[0] in ("--format=gnu", "--format=pax"):
        (top / ("n" * 255)).symlink_to("t" * 4000)
    with (top / "sparse").open("wb") as file:
        for i in range(30):
            file.seek(1_000_000 * i + (i % 2) * 12345)
            file.write(os.urandom(20_000 + i))
        file.truncate(40_000_000)
    with (top / "hole").open("wb") as file:
        file.truncate(3_000_001)
    if "--xattrs" in options:
        os.setxattr(top / "sub/file", "user.binary", bytes(range(256)))
        os.setxattr(top / "sub", "user.empty", b"")
    nanoseconds = "pax" in options[0]
    for folder, folders, files in os.walk(os.fsencode(top), topdown=False):
        for name in [*folders, *files]:
            stamp = 1_600_000_000_123_456_789 if nanoseconds else 1_600_000_000_000_000_000
            os.utime(os.path.join(folder, name), ns=(0, stamp), follow_symlinks=False)
    os.utime(top, ns=(0, 1_500_000_000_000_000_000))
    subprocess.run(
        ["tar", "-C", top, "--numeric-owner", "--sort=name", *options, "-cf", tmp_path / "a.tar", "."], check=True
    )
    tree = read_tar(tmp_path / "a.tar", Cache(tmp_path / "cache"))
    assert rows(tree) == rows(scan(top))
    assert link_groups(tree) == link_groups(scan(top)) == [[b"/sub/file", b"/twin"]]
    if "--sparse" in options:
        assert (tmp_path / "a.tar").stat().st_size < 2_000_000
        assert isinstance(tree.get("sparse").content, SparseContent)


NAME = st.binary(min_size=1, max_size=255).filter(lambda name: not set(name) & {0, 0x2F} and name not in (b".", b".."))
FILE = st.fixed_dictionaries(
    {
        "kind": st.sampled_from("file dir symlink fifo char".split()),
        "mode": st.integers(0, 0o7777),
        "uid": st.integers(0, 2**32 - 1),
        "gid": st.integers(0, 2**32 - 1),
        "mtime": st.integers(-(2**40), 2**40),
        "data": st.binary(max_size=1500),
        "rdev": st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)),
    }
)


@given(
    st.dictionaries(st.lists(NAME, min_size=1, max_size=3).map(tuple), FILE, max_size=8),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_whatever_tarfile_writes(tmp_path: Path, files: dict[tuple[bytes, ...], dict], kind: int) -> None:
    entries, expected = [], {}
    taken: set[tuple[bytes, ...]] = set()
    kinds = {
        "file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "fifo": tarfile.FIFOTYPE,
        "char": tarfile.CHRTYPE,
    }  # fmt: skip
    for parts, file in sorted(files.items()):
        if any(parts[:i] in taken for i in range(1, len(parts))):
            continue
        if file["kind"] != "dir":
            taken.add(parts)
        path = b"/".join(parts)
        data = file["data"] if file["kind"] == "file" else b""
        target = b"to" + file["data"].replace(b"\0", b"") if file["kind"] == "symlink" else b""
        major, minor = file["rdev"] if file["kind"] == "char" else (0, 0)
        info, _ = entry(
            os.fsdecode(path), data, kinds[file["kind"]], mode=file["mode"], uid=file["uid"], gid=file["gid"],
            mtime=file["mtime"], linkname=os.fsdecode(target), devmajor=major, devminor=minor,
        )  # fmt: skip
        entries.append((info, data))
        fields = (file["uid"], file["gid"], file["mtime"] * 10**9, (major, minor), target, {}, data)
        expected[b"/" + path] = (tarball.KINDS[kinds[file["kind"]]] | file["mode"], *fields)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind, encoding="utf-8", errors="surrogateescape") as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    found = rows(read(tmp_path, out.getvalue()))
    assert {path: found[path] for path in expected} == expected


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=6), st.integers(0, 40), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_range_of_a_sparse_file(
    tmp_path: Path, gaps: list[tuple[int, int]], tail: int, data: st.DataObject
) -> None:
    whole, stored, extents, starts = b"", b"", [], []
    for number, (gap, length) in enumerate(gaps):
        whole += bytes(gap)
        extents.append((len(whole), length))
        starts.append(len(stored))
        piece = bytes([number + 1]) * length
        whole, stored = whole + piece, stored + piece
    whole += bytes(tail)
    (tmp_path / "stored").write_bytes(b"head" + stored)
    content = SparseContent(FileContent(tmp_path / "stored", len(stored), 4), len(whole), tuple(extents), tuple(starts))
    offset, length = data.draw(st.integers(0, len(whole) + 5)), data.draw(st.integers(0, len(whole) + 5))
    assert content.read(offset, length) == whole[offset : offset + length]
    assert content.read(0, len(whole)) == whole


HOSTILE = {
    "absolute name": ([entry("/etc/passwd", b"x")], "'/etc/passwd': its name is absolute"),
    "climbing name": ([entry("a/../../etc/passwd", b"x")], "'a/../../etc/passwd': its name climbs out"),
    "hard link out": (
        [entry("a", kind=tarfile.LNKTYPE, linkname="../../etc/shadow")], "'a': its name climbs out",
    ),
    "absolute hard link": ([entry("a", kind=tarfile.LNKTYPE, linkname="/etc/shadow")], "'a': its name is absolute"),
    "hard link to nothing": ([entry("a", kind=tarfile.LNKTYPE, linkname="b")], "'a': hard link to 'b', which is no"),
    "hard link to itself": ([entry("a", kind=tarfile.LNKTYPE, linkname="a")], "'a': hard link to 'a', which is no"),
    "hard link to a directory": (
        [entry("d", kind=tarfile.DIRTYPE), entry("a", kind=tarfile.LNKTYPE, linkname="d")], "hard link to 'd'",
    ),
    "through a link out": (
        [entry("up", kind=tarfile.SYMTYPE, linkname="/etc"), entry("up/passwd", b"x")],
        "'up/passwd': /up is no directory",
    ),
    "through a loop": (
        [entry("up", kind=tarfile.SYMTYPE, linkname="up"), entry("up/x", b"x")], "'up/x': /up is no directory",
    ),
    "through a file": ([entry("f", b"x"), entry("f/x", b"x")], "'f/x': /f is no directory"),
    "twice": ([entry("a", b"1"), entry("a", b"2")], "'a': comes twice"),
    "twice in other words": ([entry("d/a", b"1"), entry("./d//a", b"2")], "'d/a': comes twice"),
    "file over directory": ([entry("d/a", b"1"), entry("d", b"2")], "'d': comes twice"),
    "directory over link": (
        [entry("d", kind=tarfile.SYMTYPE, linkname="e"), entry("d", kind=tarfile.DIRTYPE)], "'d': comes twice",
    ),
    "the root as a file": ([entry("./", kind=tarfile.SYMTYPE, linkname="x")], "the root is no directory"),
    "long part": ([entry("x" * 256, b"1")], "more than 255 bytes"),
    "long name": ([entry("/".join(["x" * 200] * 25), b"1")], "its name has 50"),
    "no target": ([entry("a", kind=tarfile.SYMTYPE)], "'a': a link without"),
    "unknown kind": ([entry("a", kind=b"Z")], "'a': unknown kind of member b'Z'"),
    "device number": ([entry("a", kind=tarfile.CHRTYPE, devmajor=9999)], "device number 9999:0"),
    "owner": ([entry("a", pax_headers={"uid": "4294967296"})], "4294967296 is no user or group id"),
    "time": ([entry("a", pax_headers={"mtime": "soon"})], "b'soon' is no time"),
    "infinite time": ([entry("a", pax_headers={"mtime": "inf"})], "is no time"),
    "attribute": ([entry("a", pax_headers={"LIBARCHIVE.xattr.user.a": "%%%"})], "user.a is not base64"),
    "attribute name": ([entry("a", pax_headers={"SCHILY.xattr." + "n" * 300: "1"})], "that Linux cannot hold"),
    "access control list": (
        [entry("a", pax_headers={"SCHILY.acl.access": "user::rwx"})], "access control list without all of its parts",
    ),
    "access control list of NFS": ([entry("a", pax_headers={"SCHILY.acl.ace": "owner@:r"})], "Linux does not have"),
    "access of a name": (
        [entry("a", pax_headers={"SCHILY.acl.access": "user::rwx,user:joe:r--,group::r--,mask::r--,other::r--"})],
        "has a name and no number",
    ),
    "sparse map out of order": (
        [entry("a", b"xy", pax_headers={"GNU.sparse.size": "9", "GNU.sparse.map": "5,1,3,1"})], "not in order",
    ),
    "sparse map too short": (
        [entry("a", b"xy", pax_headers={"GNU.sparse.size": "9", "GNU.sparse.map": "5,1"})], "does not fit",
    ),
    "sparse map beyond the end": (
        [entry("a", b"xy", pax_headers={"GNU.sparse.size": "4", "GNU.sparse.map": "3,2"})], "does not fit",
    ),
    "sparse map in halves": (
        [entry("a", b"xy", pax_headers={"GNU.sparse.size": "4", "GNU.sparse.map": "3"})], "half an entry",
    ),
    "sparse of absurd size": (
        [entry("a", b"", pax_headers={"GNU.sparse.size": "999999999999999", "GNU.sparse.map": "0,0"})],
        "more than 64 GiB",
    ),
    "sparse map without an end": (
        [entry("a", b"7\n1\n2\n", pax_headers={
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "4", "GNU.sparse.name": "b"})],
        "'b': the map of a sparse file has no end|'a': the map of a sparse file has no end",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "message"), HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_members(tmp_path: Path, entries: list, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        read(tmp_path, tar_bytes(entries))
    assert str(tmp_path / "archive.tar") in str(caught.value)
    assert not (tmp_path / "passwd").exists()


def damaged(at: int, text: bytes) -> bytes:
    """The first header of an archive with other bytes, its sum made right again."""
    data = bytearray(tar_bytes([entry("a", b"x" * 700), entry("b")], tarfile.USTAR_FORMAT))
    data[at : at + len(text)] = text
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated: no end marker"),
        (b"x" * 5000, "offset 0x0: not a tar archive"),
        (bytes(100), "truncated"),
        (damaged(124, b"77777777777\0"), "'a': archive is truncated: 8589934591 bytes are announced"),
        (damaged(124, b"\x80" + b"\xff" * 11), "archive is truncated"),
        (damaged(124, b"\xff" * 12), "archive is truncated"),
        (damaged(124, b"9999\0"), "is no number"),
        (damaged(108, b"\xff" * 8), "-1 is no user or group id"),
        (damaged(156, b"x"), "damaged extended header"),
        (damaged(156, b"L"), r"offset 0x0: member '(x+)': a part of its name"),
        (damaged(156, b"S"), "the map of a sparse file does not fit"),
        (damaged(156, b"1"), "a hard link with a content"),
        (
            tar_bytes([entry("a", pax_headers={"k": "v"})])[:1024] + bytes(1024),
            "an extended header belongs to no member",
        ),
    ],
)
def test_damaged_headers(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(tmp_path, data)


def test_an_extended_header_of_absurd_size(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"an extended header of 30000\d\d bytes"):
        read(tmp_path, tar_bytes([entry("a", pax_headers={"comment": "x" * 2_999_000 + "y" * 986})]))


def test_a_bomb_in_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    monkeypatch.setattr("erofs_edge.sources.decompress.BOMB_FREE", 1 << 20)
    bomb = lzma.compress(tar_bytes([entry("zeros", bytes(8 << 20))]), preset=0)
    with pytest.raises(SourceError, match=r"archive\.tar: decompression bomb"):
        read(tmp_path, bomb, cache)
    assert [path for path in cache.root.rglob("*") if path.is_file()] == []


def test_a_hostile_archive_leaves_nothing_in_the_cache(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(SourceError, match="absolute"):
        read(tmp_path, gzip.compress(tar_bytes([entry("/x", b"1")])), cache)
    assert [path for path in cache.root.rglob("*") if path.is_file()] == []


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
def test_damage_anywhere_is_an_error_or_another_tree(tmp_path: Path, data: st.DataObject) -> None:
    whole = tar_bytes(TREE)
    end = len(whole.rstrip(b"\0"))
    if data.draw(st.booleans()):
        broken = whole[: data.draw(st.integers(0, end))]
        with pytest.raises(SourceError):
            read(tmp_path, broken)
        return
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    try:
        rows(read(tmp_path, bytes(broken)))
    except SourceError as error:
        assert "archive.tar" in str(error)


def test_a_missing_archive(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(SourceError, match=r"none\.tar: cannot read: No such file"):
        read_tar(tmp_path / "none.tar", cache)


def test_kinds_are_those_of_stat() -> None:
    assert all(stat.S_IFMT(kind) == kind for kind in tarball.KINDS.values())
