# SPDX-License-Identifier: Apache-2.0
"""Images of metadata whose data is an unchanged archive."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from devices import extracted_differences, mounted_differences, own_differences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writer_check import write
from writer_trees import noise, text

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.gate import parse_kernel
from erofs_edge.erofs.layers import TABLE_MAX, sparse_table
from erofs_edge.erofs.read import Image
from erofs_edge.errors import CapacityError, ErofsFormatError, SourceError, UsageError
from erofs_edge.sources.tar_index import index_tars
from erofs_edge.tree import FileContent, SparseContent

FILES = {
    "d/empty": b"",
    "d/short": b"short",
    "d/block": noise(512, 1),
    "d/more": noise(513, 2),
    "d/text": text(300_000, 3),
    "large": noise(1_500_000, 4),
    "d/same": noise(513, 2),
}


def archive(path: Path, files: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    """A tar with a directory, files, a hard link, a symlink and a device."""
    with tarfile.open(path, "w", format=form) as tar:
        made = set()
        for name, data in files.items():
            for folder in name.split("/")[:-1]:
                if folder not in made:
                    made.add(folder)
                    entry = tarfile.TarInfo(folder)
                    entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o750, 7
                    tar.addfile(entry)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.uid, entry.gid = len(data), 1_600_000_000, 1000, 70_000
            tar.addfile(entry, io.BytesIO(data))
        for name, kind, link in (("hard", tarfile.LNKTYPE, list(files)[-1]), ("soft", tarfile.SYMTYPE, "d/short")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = kind, link, 0o777
            tar.addfile(entry)
        entry = tarfile.TarInfo("null")
        entry.type, entry.devmajor, entry.devminor = tarfile.CHRTYPE, 1, 3
        tar.addfile(entry)
    return path


def index(image: Path, *archives: Path, **options: Any) -> Any:
    how = {"block_size": 512, "compression": "none", **options}
    return write(index_tars(archives), image, archives=tuple(archives), **how)


@pytest.mark.root
@pytest.mark.oracle
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_everyone_reads_the_archive_through_it(
    oracle: Callable[[str], str], needs_root: None, tmp_path: Path, form: int
) -> None:
    tar = archive(tmp_path / "t.tar", FILES, form)
    before = tar.read_bytes()
    info = index(image := tmp_path / "i", tar)
    assert (info.lent, info.data_blocks, info.devices) == (len(FILES) - 1, 0, (tar,))
    assert info.size < 4096
    assert info.minimum_kernel == (6, 4)
    tree = index_tars([tar])
    assert own_differences(image, [tar], tree) == []
    assert mounted_differences(image, [tar], tree) == []
    assert extracted_differences(oracle, image, [tar], tree) == []
    assert tar.read_bytes() == before
    joined = tmp_path / "joined"  # one file, in which the device follows the image
    joined.write_bytes(image.read_bytes() + before)
    assert own_differences(joined, [], tree) == []
    assert mounted_differences(joined, [], tree) == []


@pytest.mark.oracle
def test_the_places_are_those_of_mkfs(oracle: Callable[[str], str], tmp_path: Path) -> None:
    tar = archive(tmp_path / "t.tar", FILES)
    index(tmp_path / "ours", tar)
    argv = [oracle("mkfs.erofs-1.9"), "--tar=i", "--quiet", str(tmp_path / "theirs"), str(tar)]
    subprocess.run(argv, check=True)
    found = []
    for name in ("ours", "theirs"):
        with Image(tmp_path / name, devices=[tar]) as image:
            places = {}
            for path, inode in image.walk():
                if inode.size and inode.layout == ondisk.LAYOUT_CHUNK_BASED:
                    places[path] = [(e.start, e.length, e.address) for e in image.extents(inode)]
            found.append(places)
    assert found[0] == found[1]
    assert len(found[0]) == len(FILES)  # one of them is empty, one has a second name
    assert (tmp_path / "ours").stat().st_size <= (tmp_path / "theirs").stat().st_size + 1024


@pytest.mark.root
def test_holes_of_sparse_members(needs_root: None, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        for at in (1 << 20, 3 << 20):
            file.seek(at)
            file.write(noise(70_000, at))
        file.truncate(9 << 20)
    with (source / "odd").open("wb") as file:
        file.seek(100_000)
        file.write(b"end")
    for form in ("posix", "gnu"):
        tar = tmp_path / f"{form}.tar"
        argv = ["tar", f"--format={form}", "--sort=name", "-S", "-cf", str(tar), "-C", str(source), "."]
        subprocess.run(argv, check=True)
        assert tar.stat().st_size < 300_000
        info = index(image := tmp_path / "i", tar)
        assert info.lent == 2
        assert info.size + info.device_blocks * 512 < 250_000
        assert own_differences(image, [tar], index_tars([tar])) == []
        assert mounted_differences(image, [tar], index_tars([tar])) == []


def test_a_sparse_table_is_bounded() -> None:
    def sparse(size: int, *extents: tuple[int, int]) -> SparseContent:
        starts = [sum(length for _, length in extents[:i]) for i in range(len(extents))]
        return SparseContent(FileContent("t", 4096, 512), size, extents, tuple(starts))

    table, chunk = sparse_table(sparse(5 << 30, (1 << 30, 512), ((5 << 30) - 10, 10)), 512, "f") or ([], 0)
    assert chunk == 512 or len(table) <= TABLE_MAX
    assert sparse_table(sparse(10_000, (100, 9_900)), 512, "f") is None
    assert sparse_table(sparse(2048, (512, 512), (1024, 100)), 512, "f") is None, "a piece ends within a block"
    assert sparse_table(sparse(2048, (1024, 1024)), 512, "f") == ([-1, -1, 512, 1024], 512)
    with pytest.raises(CapacityError, match="too many for a table"):
        sparse_table(sparse(TABLE_MAX * 512 + 1, (512, 512)), 512, "f")


def test_layers_with_whiteouts(tmp_path: Path) -> None:
    """Several archives are layers, as in OCI images: later ones hide and replace."""
    one = archive(tmp_path / "1.tar", {"a/x": noise(3_000, 1), "a/y": b"y" * 600, "b/z": b"z" * 600})
    two = tmp_path / "2.tar"
    with tarfile.open(two, "w") as tar:
        for name, data in {"a/.wh.y": b"", "a/x": noise(9_000, 2), "new": b"n" * 700}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    info = index(image := tmp_path / "i", one, two)
    assert info.devices == (one, two)
    with Image(image, devices=[one, two]) as opened:
        assert {name for name, i in opened.tree().walk() if i.is_file} == {b"/a/x", b"/b/z", b"/new", b"/hard"}
        assert opened.read(opened.lookup("/a/x"), 0, 9_000) == noise(9_000, 2)
        assert opened.read(opened.lookup("/b/z"), 0, 9_000) == b"z" * 600
    assert own_differences(image, [one, two], index_tars([one, two])) == []


def test_the_tag_is_the_archive_s_hash(tmp_path: Path) -> None:
    tar = archive(tmp_path / "t.tar", FILES)
    index(image := tmp_path / "i", tar)
    with Image(image, devices=[tar]) as opened:
        (slot,) = opened.superblock.devices
    assert slot.tag.decode() == hashlib.sha256(tar.read_bytes()).hexdigest()
    assert slot.blocks * 512 == tar.stat().st_size


def test_the_same_bytes_whatever_the_name(tmp_path: Path) -> None:
    images = []
    for name in ("a.tar", "b.tar"):
        index(tmp_path / "i", archive(tmp_path / name, FILES), jobs=len(images) * 7 + 1)
        images.append((tmp_path / "i").read_bytes())
    assert images[0] == images[1]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.text("ab/", min_size=1, max_size=6).filter(lambda s: "//" not in s and s.strip("/") == s),
                       st.integers(0, 5_000), min_size=1, max_size=8),
       st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))  # fmt: skip
def test_any_archive(sizes: dict[str, int], form: int) -> None:
    names = set(sizes)
    files = {n: noise(s, s) for n, s in sizes.items() if not any(m.startswith(n + "/") for m in names)}
    files = {"f" + name: data for name, data in files.items()}
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "t.tar"
        with tarfile.open(tar, "w", format=form) as out:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                out.addfile(entry, io.BytesIO(data))
        index(image := Path(folder) / "i", tar)
        assert own_differences(image, [tar], index_tars([tar])) == []
        with Image(image, devices=[tar]) as opened:
            for name, data in files.items():
                assert opened.read(opened.lookup("/" + name), 0, len(data)) == data


def test_what_cannot_be(tmp_path: Path) -> None:
    tar = archive(tmp_path / "t.tar", FILES)
    with pytest.raises(UsageError, match="multiples of 512"):
        index(tmp_path / "i", tar, block_size=4096)
    with pytest.raises(UsageError, match=r"-b below 4096 needs 6.4"):
        index(tmp_path / "i", tar, kernel=parse_kernel("6.1"))
    packed = tmp_path / "t.tar.gz"
    subprocess.run(f"gzip -c {tar} > {packed}", shell=True, check=True)
    with pytest.raises(SourceError, match="the archive is compressed") as caught:
        index(tmp_path / "i", packed)
    assert caught.value.hint == "unpack it first"
    index(tmp_path / "i", tar)
    os.truncate(tar, tar.stat().st_size - 512)
    with pytest.raises(ErofsFormatError, match="device 1 is truncated"):
        Image(tmp_path / "i", devices=[tar])
    with pytest.raises(UsageError, match="are the same file"):
        index(tar, tar)
