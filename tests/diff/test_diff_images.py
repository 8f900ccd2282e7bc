# SPDX-License-Identifier: Apache-2.0
"""Two EROFS images: every kind of difference is found, named and explained, and nothing else is reported."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erofs_edge.diff.paths import compare_paths
from erofs_edge.diff.report import Change, Report
from erofs_edge.erofs import build
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.verity.fec import Places, write_parity
from erofs_edge.verity.tree import append

NS = 1_000_000_000
LINES = b"".join(b"option %d = %d\n" % (i, i * i) for i in range(3000))
NOISE = random.Random(1).randbytes(50_000)
STATUS = (
    b"Package: tool\nStatus: install ok installed\nVersion: %s\n\n"
    b"Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n"
    b"Package: other\nStatus: install ok installed\nVersion: 7\n"
)


def plain(data: bytes, mode: int = 0o644, **fields: Any) -> Inode:
    return Inode(stat.S_IFREG | mode, content=BytesContent(data), **fields)


def tree(version: bytes = b"1.0") -> FileTree:
    made = FileTree()
    made.add("etc/tool.conf", plain(LINES))
    made.add("usr/bin/tool", plain(NOISE, 0o755))
    made.add("usr/lib/x", plain(LINES * 9))
    made.add("lib", Inode(stat.S_IFLNK | 0o777, target=b"usr/lib"))
    made.add("dev/null", Inode(stat.S_IFCHR | 0o666, rdev=(1, 3)))
    twin = plain(b"twin")
    made.add("twin/a", twin)
    made.add("twin/b", twin)
    made.add("var/lib/dpkg/status", plain(STATUS % version))
    made.add("var/lib/dpkg/info/tool.list", plain(b"/.\n/etc/tool.conf\n/usr/bin/tool\n"))
    made.add("var/lib/dpkg/info/other:arm64.list", plain(b"/lib/x\n"))
    return made


def compared(one: FileTree, other: FileTree, folder: Path, **options: object) -> Report:
    for name, content, more in (("old", one, {}), ("new", other, options)):
        build(content, folder / name, **({"compression": "lz4hc", "epoch": 5} | more))
    return compare_paths(folder / "old", folder / "new")


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EROFS_EDGE_CACHE", str(tmp_path / "cache"))


def told(report: Report) -> list[tuple[str, str, str | None, str | None]]:
    """Return the reported changes of files, without mere consequences of others."""
    return [(c.where, c.what, c.old, c.new) for c in report.changes if c.layer in ("file", "inode", "content")]


def node(content: FileTree, path: str) -> Inode:
    found = content.get(path)
    assert found is not None
    return found


def replaced(path: str, inode: Inode) -> Callable[[FileTree], None]:
    def change(content: FileTree) -> None:
        content.remove(path)
        content.add(path, inode)

    return change


def set_field(path: str, name: str, value: object) -> Callable[[FileTree], None]:
    return lambda content: setattr(node(content, path), name, value)


def test_equal_images_are_equal(tmp_path: Path) -> None:
    report = compared(tree(), tree(), tmp_path)
    assert report.equal and not report.changes and report.compared == ["old"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_field("usr/bin/tool", "mode", stat.S_IFREG | 0o4755), [("/usr/bin/tool", "mode", "0755", "4755")]),
        (set_field("usr/bin/tool", "uid", 5), [("/usr/bin/tool", "owner", "0:0", "5:0")]),
        (set_field("usr/bin/tool", "gid", 1 << 20), [("/usr/bin/tool", "owner", "0:0", "0:1048576")]),
        (set_field("dev/null", "rdev", (1, 5)), [("/dev/null", "device", "(1, 3)", "(1, 5)")]),
        (set_field("lib", "target", b"usr/lib64"), [("/lib", "target", "usr/lib", "usr/lib64")]),
        (set_field("etc/tool.conf", "mtime_ns", 9 * NS + 1), [("/etc/tool.conf", "mtime", "0", "9.000000001")]),
        (set_field("etc", "xattrs", {b"user.a": b"\1\2"}), [("/etc", "xattr user.a", None, "0102")]),
        (
            set_field("usr/bin/tool", "xattrs", {b"security.selinux": b"x" * 300}),
            [("/usr/bin/tool", "xattr security.selinux", None, f"{'78' * 90}… (600 characters)")],
        ),
        (replaced("twin/b", plain(b"twin")), [("/twin/a", "links", "2", "1"), ("/twin/b", "links", "2", "1")]),
        (replaced("dev/null", plain(b"")), [("/dev/null", "type", "c", "-")]),
        (lambda t: t.add("new", plain(b"n", uid=3)), [("/new", "added", None, "-rw-r--r-- 3:0 1 bytes")]),
        (lambda t: t.remove("lib"), [("/lib", "removed", "lrwxrwxrwx 0:0 7 bytes", None)]),
        (replaced("usr/lib/x", plain(b"z")), [("/usr/lib/x", "content", f"{len(LINES * 9)} bytes", "1 bytes")]),
    ],
)  # fmt: skip
def test_each_field_is_named(
    tmp_path: Path, change: Callable[[FileTree], None], expected: list[tuple[str, str, str | None, str | None]]
) -> None:
    other = tree()
    change(other)
    assert told(compared(tree(), other, tmp_path)) == expected


def test_one_byte_in_a_text_is_told_as_the_line(tmp_path: Path) -> None:
    other = tree()
    replaced("etc/tool.conf", plain(LINES.replace(b"option 77 =", b"option LXXVII =")))(other)
    (change,) = [c for c in compared(tree(), other, tmp_path).changes if c.layer == "content"]
    assert (change.where, change.package, change.why) == ("/etc/tool.conf", "tool", "text: 1 line(s) gone, 1 new")
    assert "-option 77 = 5929" in change.detail and "+option LXXVII = 5929" in change.detail
    assert change.blocks is not None and change.blocks > 0


def test_packages_are_named_with_versions_and_nothing_else(tmp_path: Path) -> None:
    other = tree(b"1.1")
    replaced("usr/bin/tool", plain(NOISE[::-1], 0o755))(other)
    report = compared(tree(), other, tmp_path)
    assert [(p.text, p.files) for p in report.packages] == [("tool 1.0 → 1.1", 1)]
    assert report.packages[0].blocks >= len(NOISE) // 4096
    assert any(line.startswith("2 of ") for line in report.summary), "the tool and dpkg's status"
    replaced("usr/lib/x", plain(b"y"))(other)
    names = [p.name for p in compared(tree(), other, tmp_path).packages]
    assert sorted(names) == ["other", "tool"], "listed below /lib, which is a link to /usr/lib"


def test_placement_alone_is_told_once(tmp_path: Path) -> None:
    """Only the placement of data differs: a baseline with holes."""
    other = tree()
    for i, folder in enumerate(("bin", "etc", "usr/bin", "zz")):
        other.add(f"{folder}/0{i}", plain(random.Random(i).randbytes(90_000 << i)))
    build(other, tmp_path / "first", compression="lz4hc", epoch=5)
    report = compared(tree(), tree(), tmp_path, baseline=tmp_path / "first")
    assert told(report) == []
    (moved,) = [c for c in report.changes if c.layer == "placement"]
    assert "same content" in (moved.new or "") and moved.blocks and "/usr/bin/tool" in moved.detail
    assert not [c for c in report.changes if c.layer == "encoding"]


@pytest.mark.parametrize(
    "options", [{"pcluster": 65536}, {"compression": "zstd"}, {"compression": "none"}, {"fragments": "all"}]
)
def test_another_encoding_is_no_other_content(tmp_path: Path, options: dict[str, object]) -> None:
    report = compared(tree(), tree(), tmp_path, **options)
    assert told(report) == [] and not report.packages
    (encoded,) = [c for c in report.changes if c.layer == "encoding"]
    assert "/usr/lib/x" in encoded.detail
    assert {c.what for c in report.changes if c.layer == "superblock"} >= {"uuid"}


def test_tree_and_parity(tmp_path: Path) -> None:
    for name in ("old", "new"):
        build(tree(), tmp_path / name, compression="lz4hc", epoch=5)
        append(tmp_path / name)
    assert compare_paths(tmp_path / "old", tmp_path / "new").equal
    with (tmp_path / "new").open("r+b") as handle:
        handle.seek(-5000, 2)  # the tree's last block
        handle.write(b"\xff")
    (change,) = compare_paths(tmp_path / "old", tmp_path / "new").changes
    assert (change.layer, change.where) == ("verity", "hash tree") and "damaged" in change.why
    build(tree(), tmp_path / "new", compression="lz4hc", epoch=5)
    append(tmp_path / "new", salt=b"another")
    found = {(c.where, c.what) for c in compare_paths(tmp_path / "old", tmp_path / "new").changes}
    assert found == {("verity superblock", "salt"), ("hash tree", "root hash")}
    build(tree(), tmp_path / "new", compression="lz4hc", epoch=5)
    (change,) = compare_paths(tmp_path / "old", tmp_path / "new").changes
    assert (change.layer, change.what) == ("verity", "removed")
    for name, salt in (("old", b"one"), ("new", b"two")):  # as builds have it: with parity behind the tree
        build(tree(), tmp_path / name, compression="lz4hc", epoch=5)
        info = append(tmp_path / name, salt=salt)
        write_parity(Places(tmp_path / name, tmp_path / name), info.superblock)
    changes = compare_paths(tmp_path / "old", tmp_path / "new").changes
    assert {(c.where, c.what) for c in changes} == {("verity superblock", "salt"), ("hash tree", "root hash")}
    assert "manifests and locks" in next(c.why for c in changes if c.what == "salt")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "image"
    build(tree(), path, compression="lz4hc", pcluster=16384, epoch=5)
    info = append(path)
    write_parity(Places(path, path, roots=2), info.superblock)
    return path


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_found(sealed: Path, tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(sealed.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    flipped = tmp_path / "flipped"
    flipped.write_bytes(raw)
    for pair in ((sealed, flipped), (flipped, sealed)):
        report = compare_paths(*pair)
        assert not report.equal, f"byte {at:#x}"
        assert all(isinstance(change, Change) for change in report.changes)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 40_000))
def test_truncated_images_end_in_a_change(sealed: Path, tmp_path: Path, cut: int) -> None:
    short = tmp_path / "short"
    short.write_bytes(sealed.read_bytes()[:cut])
    assert not compare_paths(sealed, short).equal
