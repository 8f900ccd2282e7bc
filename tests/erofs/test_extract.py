# SPDX-License-Identifier: Apache-2.0
"""Extraction: everything is kept, nothing leaves the destination, a failure leaves nothing behind."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from mutate import seal
from reader_trees import make_tree, mkfs, text
from treediff import diff, scan

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.check import check
from erofs_edge.erofs.extract import extract
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.write import write_image
from erofs_edge.errors import CapacityError, ErofsEdgeError, ErofsFormatError
from erofs_edge.tree import BytesContent, FileTree, Inode

Oracle = Callable[[str], str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("source") / "tree")


@pytest.fixture(scope="module")
def path(source: Path, tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Path:
    options = ["-zlz4", "-C16384", "-Efragments,ztailpacking"]
    return mkfs(oracle("mkfs.erofs-1.9"), tmp_path_factory.mktemp("images") / "image", source, options)


@pytest.mark.parametrize("jobs", [1, 4])
def test_everything_is_kept(jobs: int, path: Path, source: Path, tmp_path: Path) -> None:
    with Image(path) as image:
        report = extract(image, tmp_path / "out", jobs=jobs)
    assert report.skipped == []
    assert diff(scan(tmp_path / "out"), scan(source)) == []
    assert (report.hard_links, report.symlinks, report.special) == (2, 3, 4 if os.geteuid() == 0 else 2)
    assert os.listdir(tmp_path) == ["out"]


def test_holes_and_zeros_take_no_room(source: Path, tmp_path: Path, oracle: Oracle) -> None:
    image_path = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, ["--chunksize=4096"])
    with Image(image_path) as image:
        extract(image, tmp_path / "out")
    for name, most in (("sparse", 100 * 1024), ("zeros", 0)):
        st = (tmp_path / "out" / name).stat()
        assert st.st_size == (source / name).stat().st_size
        assert st.st_blocks * 512 <= most


def test_a_directory_of_the_image(path: Path, source: Path, tmp_path: Path) -> None:
    with Image(path) as image:
        extract(image, tmp_path / "out", path="link/est")
        assert diff(scan(tmp_path / "out"), scan(source / "deep/er/est")) == []
        with pytest.raises(ErofsEdgeError, match="not a directory inside the image"):
            extract(image, tmp_path / "file", path="long")


def test_the_destination_is_new_or_empty(path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious").touch()
    (tmp_path / "link").symlink_to("elsewhere")
    with Image(path) as image:
        extract(image, tmp_path / "empty", path="deep")
        assert (tmp_path / "empty/er/est/leaf").exists()
        for name in ("full", "link", "full/precious"):
            with pytest.raises(ErofsEdgeError, match="destination is not"):
                extract(image, tmp_path / name)
    assert os.listdir(tmp_path / "full") == ["precious"]
    assert sorted(os.listdir(tmp_path)) == ["empty", "full", "link"]


def test_a_link_to_an_empty_directory_is_a_destination(path: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with Image(path) as image:
        assert extract(image, tmp_path / "link").files
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path / "real")) == sorted(os.listdir(source))


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_nothing(exists: bool, path: Path, tmp_path: Path) -> None:
    if exists:
        (tmp_path / "out").mkdir()
    with Image(path) as image, pytest.raises(ErofsFormatError, match="more data than the limit"):
        extract(image, tmp_path / "out", limit=1_000_000)
    assert [sorted(os.listdir(tmp_path)), exists and os.listdir(tmp_path / "out")] == [["out"] * exists, exists and []]


def test_a_full_disk_is_told_as_such(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with Image(path) as image, pytest.raises(CapacityError, match="No space left"):
        extract(image, tmp_path / "out")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_extraction_left_is_swept_away(path: Path, tmp_path: Path) -> None:
    dead = tmp_path / ".out.erofs-edge-dead"
    (dead / "folder").mkdir(parents=True)
    with Image(path) as image:
        extract(image, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_nodes_that_the_host_does_not_know_are_reported(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise NotImplementedError("dir_fd unavailable on this platform")

    monkeypatch.setattr(os, "mkfifo", unknown)
    with Image(path) as image:
        report = extract(image, tmp_path / "out")
    assert dict(report.skipped)["/fifo"] == "device node: not on this system"


def test_what_the_host_refuses_is_reported(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    for name in ("setxattr", "mknod", "mkfifo", "fchown", "chown"):
        monkeypatch.setattr(os, name, refuse)
    with Image(path) as image:
        report = extract(image, tmp_path / "out", owners=True)
    told = dict(report.skipped)
    assert told["/fifo"] == "device node: needs root"
    assert told["/mixed"] == "xattr user.big: Operation not permitted"
    assert ("/link", "owner: Operation not permitted") in report.skipped
    assert report.files == len({i.nid for i in walked(path) if stat.S_ISREG(i.mode)})


def walked(path: Path) -> list[DiskInode]:
    with Image(path) as image:
        return [inode for _, inode in image.walk()]


def test_owners_are_left_alone_on_request(path: Path, tmp_path: Path) -> None:
    with Image(path) as image:
        extract(image, tmp_path / "out", owners=False)
    assert {p.lstat().st_uid for p in (tmp_path / "out").rglob("*")} == {os.geteuid()}


def hostile(tmp_path: Path, oracle: Oracle, patch: Callable[[bytearray], None]) -> Path:
    """An image with a symlink "aa" to the directory beside the destination, and with aa2/victim; patched."""
    source = tmp_path / "source"
    (source / "aa2").mkdir(parents=True)
    (source / "aa2/victim").write_bytes(b"written through a symlink")
    (source / "aa1").symlink_to(tmp_path / "outside")
    (source / "zz").write_bytes(text(3))
    image = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, ["-T1"])
    data = bytearray(image.read_bytes())
    patch(data)
    image.write_bytes(seal(data))
    (tmp_path / "outside").mkdir()
    return image


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"aa1aa2zz", b"aa1aa1zz"),  # two entries of one name: a symlink, then a directory
        (b"aa1aa2zz", b"aa1../zz"),
        (b"aa1aa2zz", b"aa1/xxzz"),
        (b"victim", b"../../"),
        (b"victim", b"/../up"),
        (b"aa1aa2zz", b"aa1aa2.."),
    ],
)
def test_names_cannot_lead_out(old: bytes, new: bytes, tmp_path: Path, oracle: Oracle) -> None:
    def rename(data: bytearray) -> None:
        assert data.count(old) == 1
        data[:] = data.replace(old, new)

    image_path = hostile(tmp_path, oracle, rename)
    (tmp_path / "in").mkdir()
    with Image(image_path) as image, pytest.raises(ErofsFormatError):
        extract(image, tmp_path / "in/out")
    assert list((tmp_path / "in").iterdir()) == []
    assert list((tmp_path / "outside").iterdir()) == []


def test_the_type_of_every_name_must_be_that_of_its_inode(tmp_path: Path, oracle: Oracle) -> None:
    """Also that of further names of a file, which are only linked."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "first").write_bytes(b"content")
    (source / "second").hardlink_to(source / "first")
    path = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, ["-T1"])
    with Image(path) as image:
        second = next(entry for entry in image.listdir(image.inode(image.root_nid)) if entry.name == b"second")
    data = bytearray(path.read_bytes())
    at = data.rindex(second.nid.to_bytes(8, "little"))
    assert data[at + 10] == second.file_type
    data[at + 10] = 5
    path.write_bytes(seal(data))
    with Image(path) as image, pytest.raises(ErofsFormatError, match="b'second' has type 5"):
        extract(image, tmp_path / "out")


def test_a_symlink_put_in_the_way_is_not_followed(
    tmp_path: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory is replaced by a symlink between its creation and its filling."""
    image_path = hostile(tmp_path, oracle, lambda data: None)
    mkdir = os.mkdir

    def replaced(name: bytes, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        if name == b"aa2":
            os.rmdir(name, dir_fd=dir_fd)
            os.symlink(tmp_path / "outside", name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", replaced)
    with Image(image_path) as image, pytest.raises(ErofsEdgeError, match="cannot write"):
        extract(image, tmp_path / "out")
    assert list((tmp_path / "outside").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_a_file_put_in_the_way_is_not_written(tmp_path: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file from elsewhere is linked to the name of a file that is about to be written."""
    image_path = hostile(tmp_path, oracle, lambda data: None)
    (tmp_path / "precious").write_bytes(b"precious")
    mkdir = os.mkdir

    def planted(name: bytes, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        if name == b"aa2":
            os.link(tmp_path / "precious", b"aa2/victim", dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", planted)
    with Image(image_path) as image, pytest.raises(ErofsEdgeError, match="cannot write"):
        extract(image, tmp_path / "out")
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_symlinks_out_of_the_tree_stay_symlinks(tmp_path: Path, oracle: Oracle) -> None:
    image_path = hostile(tmp_path, oracle, lambda data: None)
    with Image(image_path) as image:
        extract(image, tmp_path / "out")
    assert (tmp_path / "out/aa1").readlink() == tmp_path / "outside"
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_bomb_of_shared_data_is_stopped(tmp_path: Path, oracle: Oracle) -> None:
    """Two hundred files of 40 MB each from one packed file of zeros."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "zeros").write_bytes(bytes(40 << 20))
    for number in range(200):
        (source / f"{number:03d}").write_bytes(text(200, str(number)))
    image_path = mkfs(
        oracle("mkfs.erofs-1.9"),
        tmp_path / "image",
        source,
        ["-zlz4", "-Eall-fragments,force-inode-extended", "-C65536"],
    )
    data = bytearray(image_path.read_bytes())
    with Image(image_path) as image:
        inodes = [inode for _, inode in image.walk() if inode.is_compressed and inode.extended]
        assert len(inodes) >= 100
        assert image.packed.size >= 40 << 20
    for inode in inodes:
        start = -(-inode.body // 8) * 8
        data[inode.offset + 8 : inode.offset + 16] = (40 << 20).to_bytes(8, "little")
        data[start : start + 8] = (1 << 63).to_bytes(8, "little")
    image_path.write_bytes(seal(data))
    with Image(image_path) as image, pytest.raises(ErofsFormatError, match="more data than the limit"):
        extract(image, tmp_path / "out", limit=200 << 20)
    assert not (tmp_path / "out").exists()
    assert image_path.stat().st_size < ondisk.PCLUSTER_MAX


def test_data_on_extra_devices_counts_as_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of metadata alone is small, whatever is on its devices."""
    made = FileTree()
    made.add("file", Inode(0o100644, content=BytesContent(random.Random(1).randbytes(300_000))))
    blob = tmp_path / "blob"
    write_image(made, tmp_path / "image", WriteOptions(compression="none", blob=blob))
    monkeypatch.setattr("erofs_edge.erofs.output_limit.output_limit", lambda size: size)
    with Image(tmp_path / "image", devices=[blob]) as image:
        assert extract(image, tmp_path / "out").data_bytes == 300_000 > image.superblock.size
    assert not check(tmp_path / "image", devices=[blob]).findings
