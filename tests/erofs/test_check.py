# SPDX-License-Identifier: Apache-2.0
"""The check's findings: one defect at a time in a clean image, each named with its place."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mutate import seal
from reader_trees import mkfs, noise, text

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.check import Report, check
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsEdgeError, ErofsFormatError

Oracle = Callable[[str], str]
Patch = Callable[["Patient"], None]


class Patient:
    """An image to damage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = bytearray(path.read_bytes())
        with Image(path) as image:
            self.inodes: dict[str, DiskInode] = {name.decode(): inode for name, inode in image.walk()}
            self.addresses = {
                name: next(image.extents(inode)).address for name, inode in self.inodes.items() if inode.size
            }
            self.maps = {name: image.zmap(inode) for name, inode in self.inodes.items() if inode.is_compressed}
            self.dirents = {name: list(image.dirents(i)) for name, i in self.inodes.items() if i.is_dir}

    def put(self, offset: int, value: int, size: int) -> None:
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def add(self, offset: int, value: int, size: int) -> None:
        old = int.from_bytes(self.data[offset : offset + size], "little")
        self.put(offset, (old + value) % (1 << 8 * size), size)

    def dirent(self, directory: str, name: str) -> int:
        """Return the byte address of an entry."""
        index = [entry.name.decode() for entry in self.dirents[directory]].index(name)
        return self.addresses[directory] + index * ondisk.DIRENT_SIZE

    def check(self, *, sealed: bool = True) -> Report:
        self.path.write_bytes(seal(self.data) if sealed else self.data)
        return check(self.path)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> bytes:
    root = tmp_path_factory.mktemp("check")
    source = root / "source"
    (source / "d/e").mkdir(parents=True)
    (source / "d/f").write_bytes(text(2000))
    (source / "d/g").hardlink_to(source / "d/f")
    os.setxattr(source / "d/f", "user.k", b"v1")
    (source / "plain").write_bytes(noise(8192 + 3000))
    (source / "other").write_bytes(noise(12288, 5))
    (source / "more").write_bytes(text(4000, "more"))
    (source / "link").symlink_to("d")
    return mkfs(
        oracle("mkfs.erofs-1.9"), root / "image", source, ["-zlz4", "-C8192", "-T1", "-Enoinline_data"]
    ).read_bytes()


@pytest.fixture
def patient(clean: bytes, tmp_path: Path) -> Patient:
    (tmp_path / "image").write_bytes(clean)
    return Patient(tmp_path / "image")


def test_a_clean_image_has_no_findings(patient: Patient) -> None:
    report = patient.check()
    assert report.findings == []
    assert (report.files, report.directories, report.inodes) == (4, 3, 8)
    assert report.data_bytes == sum(i.size for i in {i.nid: i for i in patient.inodes.values()}.values())


def test_a_wrong_checksum_is_an_error(patient: Patient) -> None:
    patient.data[ondisk.SUPER_OFFSET + 48] ^= 1
    report = patient.check(sealed=False)
    assert [f.message.split(" is ")[0] for f in report.errors] == ["superblock checksum"]
    assert report.errors[0].where == "offset 0x404"


def swap_entries(p: Patient) -> None:
    """Exchange the nids and types of "." and "..", which differ in d."""
    one, two = p.dirent("d", "."), p.dirent("d", "..")
    p.data[one : one + 8], p.data[two : two + 8] = p.data[two : two + 8], p.data[one : one + 8]


def unsort(p: Patient) -> None:
    names = p.addresses["d"] + len(p.dirents["d"]) * ondisk.DIRENT_SIZE
    at = p.data.index(b"fg", names)
    p.data[at : at + 2] = b"gf"


def overlap_flat(p: Patient) -> None:
    p.put(p.inodes["plain"].offset + 16, p.addresses["other"] // 4096 + 1, 4)


def overlap_pcluster(p: Patient) -> None:
    p.put(p.inodes["plain"].offset + 16, p.addresses["more"] // 4096, 4)


def data_on_metadata(p: Patient) -> None:
    p.put(p.inodes["plain"].offset + 16, 0, 4)


def pad_last_block(p: Patient) -> None:
    inode = p.inodes["plain"]
    assert inode.layout == ondisk.LAYOUT_FLAT_PLAIN
    p.data[p.addresses["plain"] + inode.size] = 1


def flip_data(p: Patient) -> None:
    zeros = len(p.data[p.addresses["more"] :]) - len(p.data[p.addresses["more"] :].lstrip(b"\0"))
    at = p.addresses["more"] + zeros
    p.data[at : at + 40] = b"\xff" * 40


DEFECTS: dict[str, tuple[Patch, str, str | None]] = {
    "nlink of a file": (lambda p: p.add(p.inodes["d/f"].offset + 6, 1, 2), "link count is 3, there are 2", "/d/f"),
    "nlink of a directory": (lambda p: p.add(p.inodes["d"].offset + 6, -1, 2), "link count is 2, there are 3", "/d"),
    "type": (lambda p: p.put(p.dirent("d", "f") + 10, 3, 1), "entry has type 3", "/d/f"),
    "dot": (swap_entries, r"entry b'\.' is nid", "/d"),
    "order": (unsort, "out of order: b'f' after b'g'", "/d"),
    "loop": (lambda p: p.put(p.dirent("d", "e"), p.inodes["d"].nid, 8), "is reached twice", "/d/e"),
    "nid": (lambda p: p.put(p.dirent("d", "e"), 1 << 40, 8), "lies outside the image", "/d/e"),
    "overlap of files": (overlap_flat, "data overlaps with data of a flat file", None),
    "overlap of a pcluster": (overlap_pcluster, "data overlaps with (a pcluster|data of a flat file)", None),
    "metadata as data": (data_on_metadata, "data overlaps with metadata", "/plain"),
    "block": (lambda p: p.put(p.inodes["plain"].offset + 16, 1 << 20, 4), "lie outside the image", "/plain"),
    "padding": (pad_last_block, "non-zero bytes behind the data", "/plain"),
    "data": (flip_data, "LZ4 block", "/more"),
    "size": (lambda p: p.put(p.inodes["more"].offset + 8, 1 << 31, 4), "ends outside the image", "/more"),
    "symlink": (lambda p: p.put(p.inodes["link"].offset + 8, 0, 4), "symlink target of 0 bytes", "/link"),
    "symlink NUL": (lambda p: p.put(p.addresses["link"], 0, 1), "NUL", "/link"),
    "name": (lambda p: p.put(p.addresses["d/e"] + 2 * 12, ord("/"), 1), "impossible name", "/d/e"),
    "first name": (lambda p: p.put(p.dirent("d", ".") + 8, 37, 2), "first name at byte 37", "/d"),
    "compact index": (lambda p: p.put(p.maps["more"].position, 1, 2), "cluster 0 starts", "/more"),
    "algorithm": (lambda p: p.put(p.maps["more"].position - 2, 1, 1), "lzma", "/more"),
    "truncated": (lambda p: p.data.__delitem__(slice(len(p.data) - 1, None)), "truncated", None),
    "root": (lambda p: p.put(ondisk.SUPER_OFFSET + 14, p.inodes["link"].nid, 2), "not a directory", None),
    "feature": (lambda p: p.put(ondisk.SUPER_OFFSET + 82, 1, 1), "unknown features", None),
    "directory blocks": (lambda p: p.put(ondisk.SUPER_OFFSET + 90, 1, 1), "directory blocks of", None),
    "xattr slot": (lambda p: p.put(p.inodes["d/f"].offset + 2, 1, 2), "one slot", "/d/f"),
    "xattr shared": (lambda p: p.put(p.inodes["d/f"].offset + 36, 255, 1), "255 shared xattrs do not fit", "/d/f"),
    "xattr value": (lambda p: p.put(p.inodes["d/f"].offset + 46, 0xFFF0, 2), "does not fit in its area", "/d/f"),
    "xattr index": (lambda p: p.put(p.inodes["d/f"].offset + 45, 5, 1), "name index 5 is not defined", "/d/f"),
    "xattr prefix": (lambda p: p.put(p.inodes["d/f"].offset + 45, 0x80, 1), "prefix 0, the image has 0", "/d/f"),
    "inline tail of nothing": (
        lambda p: p.put(p.inodes["other"].offset, 2 << 1, 1),
        "12288 bytes has no tail",
        "/other",
    ),
    "inline tail over a border": (lambda p: p.put(p.inodes["d/e"].offset + 8, 4095, 4), "crosses a block", "/d/e"),
    "format": (lambda p: p.put(p.inodes["d/e"].offset, 0x24, 1), "unknown bits in i_format", "/d/e"),
    "layout": (lambda p: p.put(p.inodes["d/e"].offset, 5 << 1, 1), "data layout 5", "/d/e"),
    "mode": (lambda p: p.put(p.inodes["d/e"].offset + 4, 0o755, 2), "no file type", "/d/e"),
    "chunks": (
        lambda p: (p.put(p.inodes["other"].offset, 4 << 1, 1), p.put(p.inodes["other"].offset + 16, 0x8000, 4)),
        "unknown bits in chunk format 0x8000",
        "/other",
    ),
    "packed": (lambda p: p.put(ondisk.SUPER_OFFSET + 96, 40, 1), "packed inode without the feature", None),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_finds_one_defect(name: str, patient: Patient) -> None:
    patch, message, path = DEFECTS[name]
    patch(patient)
    report = patient.check()
    found = [finding for finding in report.errors if re.search(message, finding.message)]
    assert found, report.findings
    assert not report.ok
    if path is not None:
        assert found[0].path == path


@pytest.mark.parametrize(
    "name", ["type", "order", "loop", "nid", "symlink", "symlink NUL", "name", "first name", "mode", "xattr value"]
)
def test_a_tree_is_not_made_of_it(name: str, patient: Patient) -> None:
    patch, message, _ = DEFECTS[name]
    patch(patient)
    patient.check()
    reason = "has type 3" if name == "type" else message
    with Image(patient.path) as image, pytest.raises(ErofsFormatError, match=reason):
        image.tree()


def test_stray_bytes_are_a_warning_only(patient: Patient) -> None:
    patient.data[ondisk.SUPER_OFFSET + 152] = 1
    report = patient.check()
    assert report.ok
    assert [(f.severity, f.where) for f in report.findings] == [("warning", "offset 0x498")]


def test_the_rest_is_checked_after_a_defect(patient: Patient) -> None:
    flip_data(patient)
    pad_last_block(patient)
    patient.add(patient.inodes["d/f"].offset + 6, 1, 2)
    assert len(patient.check().errors) == 3


def test_the_result_does_not_depend_on_threads(patient: Patient) -> None:
    flip_data(patient)
    pad_last_block(patient)
    patient.check()
    assert check(patient.path, jobs=1).findings == check(patient.path, jobs=4).findings


def test_blocks_may_be_shared_where_the_image_says_so(tmp_path: Path, oracle: Oracle) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in "abc":
        (source / name).write_bytes(noise(100_000) + text(2000) + name.encode())
    for options in (["-zlz4", "-Ededupe"], ["--chunksize=4096"]):
        image = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, options)
        assert image.stat().st_size < 200_000
        report = check(image)
        assert report.findings == []
        if "-zlz4" in options:
            assert report.data_bytes < 250_000, "shared data is decoded once"
        image.unlink()


def test_an_image_that_decodes_to_too_much(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erofs_edge.erofs.output_limit.output_limit", lambda size: 100_000)
    assert any("far more data" in finding.message for finding in patient.check().errors)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ErofsEdgeError, match="cannot open"):
        check(tmp_path / "nothing")


def test_agrees_with_fsck_on_what_both_check(patient: Patient, oracle: Oracle) -> None:
    """Whichever of the defects above fsck.erofs rejects, we reject too: it is run for each."""
    fsck = oracle("fsck.erofs-1.9")
    clean = bytes(patient.data)
    rejected = 0
    for patch, _, _ in DEFECTS.values():
        patient.data[:] = clean
        patch(patient)
        ours = patient.check()
        theirs = subprocess.run([fsck, "--extract", patient.path], capture_output=True, timeout=120, check=False)
        rejected += bool(theirs.returncode)
        assert ours.errors
    assert rejected >= 10
