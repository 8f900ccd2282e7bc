# SPDX-License-Identifier: Apache-2.0
"""Disks, FAT volumes, FITs, vbmeta, JSON and folders, and the command itself."""

from __future__ import annotations

import gzip
import json
import os
import struct
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.boot.cpio import write_cpio
from erofs_edge.boot.fdt import DeviceTree, Node, cells, string, write
from erofs_edge.boot.fit import Image, build_fit
from erofs_edge.boot.initramfs import compress
from erofs_edge.cli.diff import diff
from erofs_edge.diff.content import explain
from erofs_edge.diff.page import page
from erofs_edge.diff.paths import compare_paths
from erofs_edge.diff.report import Report
from erofs_edge.disk import gpt
from erofs_edge.disk.fat import build_fat
from erofs_edge.errors import ErofsEdgeError, UsageError
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.trust.avb import Hashtree, Property, VBMeta, write_vbmeta
from erofs_edge.trust.signer import KeySigner

MIB = 1 << 20
FILES: dict[str, bytes | Path] = {"config.txt": b"arm_64bit=1\n", "overlays/a long name.dtbo": b"y" * 9000}


@pytest.fixture(scope="module")
def signer() -> KeySigner:
    return KeySigner("dev", rsa.generate_private_key(65537, 2048))


def told(report: Report) -> list[tuple[str, str, str]]:
    return [(change.layer, change.where, change.what) for change in report.changes]


def fit(
    signer: KeySigner, *, config: bytes = b"ROOT_HASH='00'\n", kernel: bytes = b"kernel" * 99, epoch: int = 7
) -> bytes:
    tree = FileTree()
    tree.add("config", Inode(0o100644, content=BytesContent(config)))
    tree.add("init", Inode(0o100755, content=BytesContent(b"#!/bin/sh\n")))
    images = {
        "kernel": Image("kernel_noload", kernel, "Linux"),
        "ramdisk": Image("ramdisk", compress(write_cpio(tree, epoch=epoch)), "initramfs"),
        "fdt": Image("flat_dt", write(DeviceTree(Node({"model": string("x")}))), "dtb"),
    }
    return build_fit(images, description="board", epoch=epoch, signer=signer)


def pair(folder: Path, one: bytes, other: bytes) -> Report:
    (folder / "old").write_bytes(one)
    (folder / "new").write_bytes(other)
    return compare_paths(folder / "old", folder / "new")


def test_a_file_inside_the_initramfs_of_a_fit(tmp_path: Path, signer: KeySigner) -> None:
    report = pair(tmp_path, fit(signer), fit(signer, config=b"ROOT_HASH='01'\n"))
    (change,) = [c for c in report.changes if c.layer == "initramfs"]
    assert change.where == "/images/ramdisk > /config" and "+ROOT_HASH='01'" in change.detail
    others = {(c.where.rpartition("/")[2], c.why) for c in report.changes if c is not change}
    assert others == {("value", "follows from the data"), ("value", "signature over what changed")}


def test_kernel_and_time_of_a_fit(tmp_path: Path, signer: KeySigner) -> None:
    report = pair(tmp_path, fit(signer), fit(signer, kernel=b"kernel" * 98, epoch=8))
    assert ("FIT", "/timestamp", "property") in told(report)
    assert ("FIT", "/images/kernel", "content") in told(report)
    assert {c.why for c in report.changes if c.where.endswith("timestamp")} == {"timestamp"}


def test_a_fit_whose_bytes_alone_differ(tmp_path: Path) -> None:
    blob = bytearray(write(DeviceTree(Node({"a": cells(1)}))))
    other = bytearray(blob)
    struct.pack_into(">I", other, 24, 15)  # the version that it is compatible with
    report = pair(tmp_path, bytes(blob), bytes(other))
    assert told(report) == [("FIT", "", "bytes")]


def test_vbmeta_fields(tmp_path: Path, signer: KeySigner) -> None:
    tree = Hashtree("system", 4096, 4096, 4096, bytes(32), b"salt")
    metas = [
        VBMeta([tree, Property("a", b"1")], rollback_index=1),
        VBMeta([replace(tree, root_digest=b"\1" * 32), Property("b", b"1")], rollback_index=2),
    ]
    report = pair(tmp_path, *(write_vbmeta(meta, signer) for meta in metas))
    assert told(report) == [
        ("vbmeta", "header", "rollback_index"),
        ("vbmeta", "hashtree system", "root_digest"),
        ("vbmeta", "property a", "removed"),
        ("vbmeta", "property b", "added"),
    ]
    resigned = write_vbmeta(metas[0], KeySigner("other", rsa.generate_private_key(65537, 2048)))
    assert told(pair(tmp_path, write_vbmeta(metas[0], signer), resigned)) == [("vbmeta", "", "signature or key")]


def disk(path: Path, volume: Path, *, start: int = 1, guid: int = 1) -> None:
    parts = (
        gpt.Partition("firmware", gpt.TYPE_ESP, uuid.UUID(int=guid), start * 2048, (start + 8) * 2048 - 1),
        gpt.Partition("data", gpt.TYPE_LINUX, uuid.UUID(int=2), 20 * 2048, 22 * 2048 - 1),
    )
    head, tail = gpt.encode(gpt.Table(uuid.UUID(int=9), 24 * 2048, parts))
    raw = bytearray(24 * MIB)
    raw[: len(head)], raw[-len(tail) :] = head, tail
    content = volume.read_bytes()
    raw[start * MIB : start * MIB + len(content)] = content
    path.write_bytes(raw)


def test_a_file_in_fat_in_a_partition(tmp_path: Path) -> None:
    for name, files in (("one", FILES), ("two", {**FILES, "config.txt": b"arm_64bit=0\n", "x": b""})):
        build_fat(files, tmp_path / name, size=8 * MIB, label="fw", serial=1, epoch=1_700_000_000)
    disk(tmp_path / "old", tmp_path / "one")
    disk(tmp_path / "new", tmp_path / "two")
    report = compare_paths(tmp_path / "old", tmp_path / "new")
    assert told(report) == [("FAT", "firmware > config.txt", "content"), ("FAT", "firmware > x", "added")]
    assert report.changes[0].detail == ["@@ -1 +1 @@", "-arm_64bit=1", "+arm_64bit=0"]
    assert report.compared == ["old", "firmware", "data"]
    disk(tmp_path / "new", tmp_path / "one", start=3, guid=7)
    report = compare_paths(tmp_path / "old", tmp_path / "new")
    assert told(report) == [("partition table", "firmware", "guid"), ("partition table", "firmware", "start")]


def test_the_bytes_of_a_volume_that_no_file_owns(tmp_path: Path) -> None:
    build_fat(FILES, tmp_path / "old", size=8 * MIB, label="fw", serial=1, epoch=1_700_000_000)
    raw = bytearray((tmp_path / "old").read_bytes())
    raw[-100] = 1
    (tmp_path / "new").write_bytes(raw)
    assert told(compare_paths(tmp_path / "old", tmp_path / "new")) == [("FAT", "", "bytes")]


def test_folders_and_json(tmp_path: Path) -> None:
    for name, record in (("old", {"a": [1, {"b": 2}], "c": 1}), ("new", {"a": [1, {"b": 3}], "d": 1})):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub/release.json").write_text(json.dumps(record))
        (tmp_path / name / "same").write_bytes(b"x")
        (tmp_path / name / f"only-{name}").write_bytes(b"")
        (tmp_path / name / ".state").write_text(name)
    report = compare_paths(tmp_path / "old", tmp_path / "new")
    assert told(report) == [
        ("file", "only-new", "added"),
        ("file", "only-old", "removed"),
        ("JSON", "sub > release.json > /a/1/b", "value"),
        ("JSON", "sub > release.json > /c", "removed"),
        ("JSON", "sub > release.json > /d", "added"),
    ]
    assert "same" in report.compared


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"a\nb\n", b"b\na\n", "text: the same lines in another order"),
        (b"a\n", b"a", "text: only line ends"),
        (b'{"a": 1}', b'{"a":1}', "JSON: the same values, written otherwise"),
        (b'{"a": 1}', b'{"a": 2, "b": 1}', "JSON: a, b"),
        (b"\0\1", b"\0\2", "bytes differ from 0x1 on"),
        (b"\0\1", b"\0\1\2", "2 bytes → 3 bytes"),
        (gzip.compress(b"t", mtime=1), gzip.compress(b"t", mtime=2), "gzip: same content, other timestamp"),
        (gzip.compress(b"t\n", mtime=1), gzip.compress(b"u\n", mtime=1), "gzip, text: 1 line(s) gone, 1 new"),
        (b"\x1f\x8b\x08broken", b"\x1f\x8b\x08other!", "bytes differ from 0x3 on"),
        (b"\x7fELF\x02\x01" + b"\xf0" * 99, b"\x7fELF\x02\x01" + b"\xf1" * 99, "bytes differ from 0x6 on"),
    ],
)
def test_why_contents_differ(old: bytes, new: bytes, why: str) -> None:
    assert explain(old, new)[0] == why


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300), st.binary(max_size=300), st.sampled_from([b"", b"\x7fELF\x02\x01", b"\x1f\x8b\x08", b"{"])
)
def test_any_two_contents_have_a_reason(old: bytes, new: bytes, head: bytes) -> None:
    if old != new:
        why, detail = explain(head + old, head + new)
        assert why and len(detail) <= 61


def test_elf_by_section(tmp_path: Path) -> None:
    program = Path("/proc/self/exe").resolve().read_bytes()
    at = program.index(b".note.gnu.build-id")
    changed = bytearray(program)
    changed[at] = ord("_")  # a name in the table of names
    why, detail = explain(program, bytes(changed))
    assert why.startswith("ELF sections") and any(line.startswith(".shstrtab") for line in detail)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\n<b>")
    (tmp_path / "b").write_text("two\n<b>")
    run = CliRunner().invoke
    same = run(diff, [str(tmp_path / "a"), str(tmp_path / "a")])
    assert (same.exit_code, same.stdout) == (0, "no differences in 1 compared: a\n")
    result = run(diff, [str(tmp_path / "a"), str(tmp_path / "b"), "--json"], standalone_mode=False)
    assert result.return_value == 5
    record = json.loads(result.stdout)
    assert not record["equal"] and record["changes"][0]["detail"] == ["@@ -1,2 +1,2 @@", "-one", "+two", " <b>"]
    detailed = run(diff, [str(tmp_path / "a"), str(tmp_path / "b"), "--detail", "--html", str(tmp_path / "p.html")])
    assert "    +two" in detailed.stdout
    text = (tmp_path / "p.html").read_text()
    assert "&lt;b&gt;" in text and "<b>" not in text and "<script" not in text
    filtered = run(
        diff, [str(tmp_path / "a"), str(tmp_path / "b"), "--path", "nothing*", "--json"], standalone_mode=False
    )
    assert json.loads(filtered.stdout)["changes"] == [] and filtered.return_value == 5


def test_names_cannot_leave_the_page() -> None:
    report = Report("<a>", "b\udcff")
    report.say("x & y")
    assert "<a>" not in page(report) and "x &amp; y" in page(report)


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ErofsEdgeError, match="no such file"):
        compare_paths(tmp_path / "file", tmp_path / "none")
    with pytest.raises(UsageError, match="a folder with a file"):
        compare_paths(tmp_path, tmp_path / "file")


def test_pipes_and_devices_have_no_size_that_could_be_compared(tmp_path: Path) -> None:
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    file.write_bytes(b"")
    for old, new in ((pipe, pipe), (pipe, file), (file, pipe), (pipe, tmp_path), (Path("/dev/null"), file)):
        with pytest.raises(UsageError, match="neither a file nor a folder"):
            compare_paths(old, new)
