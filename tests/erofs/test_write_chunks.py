# SPDX-License-Identifier: Apache-2.0
"""Chunk-based files: equal chunks are stored once, holes not at all; tables are as short as possible; an extra
device."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compare import differences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mounts import loop
from treediff import diff
from writer_check import fsck_differences, kernel_differences, write
from writer_trees import file, noise, text

from erofs_edge.erofs.check import check
from erofs_edge.erofs.chunks import HOLE, merge
from erofs_edge.erofs.inode import LAYOUT_NAMES
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.read import Image
from erofs_edge.errors import UsageError
from erofs_edge.tree import BytesContent, FileTree, Inode

BLOCK = 4096
NOISE = noise(40 * BLOCK, 1)


def tree() -> FileTree:
    made = FileTree()
    contents = {
        "whole": NOISE,
        "again": NOISE,
        "shifted": NOISE[BLOCK : 30 * BLOCK] + b"end",
        "mixed": NOISE[:BLOCK] + bytes(3 * BLOCK) + NOISE[5 * BLOCK : 9 * BLOCK] + b"x",
        "zeros": bytes(50 * BLOCK + 7),
        "sparse": bytes(100 * BLOCK) + b"behind the hole",
        "text": text(60_000, 1),
        "small": b"beside its inode",
        "block": NOISE[:BLOCK],
        "short": NOISE[: BLOCK - 1],
        "empty": b"",
    }
    for i, (name, data) in enumerate(contents.items()):
        made.add(f"d{i % 2}/{name}", file(data, xattrs={b"user.k": b"v" * i} if i % 3 else {}))
    made.add("link", Inode(0o120777, target=b"t" * 4000))
    return made


def without_zeros() -> FileTree:
    """fsck.erofs 1.9 extracts a file that is one hole as empty if its table has the longer form, also one by
    mkfs.erofs."""
    made = tree()
    made.remove("d0/zeros")
    return made


OPTIONS: list[dict[str, Any]] = [
    {"chunk_size": 4096, "compression": "none"},
    {"chunk_size": 4096, "compression": "lz4", "pcluster": 16384},
    {"chunk_size": 65536, "compression": "none", "chunk_indexes": True},
    {"chunk_size": 4096, "compression": "lz4hc", "dedupe": True, "chunk_indexes": True},
    {"chunk_size": 1024, "compression": "none", "block_size": 512, "inline_tails": False},
    {"chunk_size": 1 << 20, "compression": "none", "inode_form": "extended"},
]


@pytest.mark.root
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_through_the_kernel_our_reader_and_check(needs_root: None, tmp_path: Path, options: dict[str, Any]) -> None:
    info = write(tree(), image := tmp_path / "i", **options)
    assert info.chunked > 3
    assert kernel_differences(image, tree()) == []
    with Image(image) as opened:
        assert diff(opened.tree(), tree()) == []
    assert check(image).findings == []


@pytest.mark.oracle
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_through_fsck(oracle: Callable[[str], str], tmp_path: Path, options: dict[str, Any]) -> None:
    write(made := without_zeros(), image := tmp_path / "i", **options)
    assert fsck_differences(oracle, image, made) == []


@pytest.mark.root
def test_an_extra_device_through_the_kernel(needs_root: None, tmp_path: Path) -> None:
    image, blob = tmp_path / "i", tmp_path / "blob"
    info = write(tree(), image, compression="lz4", chunk_size=4096, blob=blob)
    assert info.device_blocks * BLOCK == blob.stat().st_size > 40 * BLOCK
    assert info.minimum_kernel == (5, 16)
    (target := tmp_path / "mnt").mkdir()
    with loop(blob, "--read-only") as device:
        argv = ["mount", "-t", "erofs", "-o", f"loop,ro,device={device}", str(image), str(target)]
        subprocess.run(argv, check=True)
        try:
            assert differences(tree(), target) == []
        finally:
            subprocess.run(["umount", str(target)], check=True)
    joined = tmp_path / "joined"
    joined.write_bytes(image.read_bytes() + blob.read_bytes())
    assert kernel_differences(joined, tree()) == []


@pytest.mark.oracle
def test_an_extra_device_through_fsck_and_our_reader(oracle: Callable[[str], str], tmp_path: Path) -> None:
    image, blob = tmp_path / "i", tmp_path / "blob"
    write(made := without_zeros(), image, compression="none", chunk_size=8192, blob=blob)
    argv = [oracle("fsck.erofs-1.9"), "--no-xattrs", f"--device={blob}", f"--extract={tmp_path / 'x'}", str(image)]
    subprocess.run(argv, check=True, capture_output=True)
    assert differences(made, tmp_path / "x", xattrs=False, owners=os.geteuid() == 0, times=os.geteuid() == 0) == []
    with Image(image, devices=[blob]) as opened:
        assert diff(opened.tree(), made) == []
        found = opened.superblock.raw.extra_devices
    assert found == 1


def test_a_device_with_nothing_on_it_can_be_mounted(tmp_path: Path) -> None:
    made = FileTree()
    made.add("small", file(b"beside its inode"))
    assert write(made, tmp_path / "i", chunk_size=4096, blob=tmp_path / "blob").device_blocks == 1
    assert (tmp_path / "blob").read_bytes() == bytes(BLOCK)


def test_the_uuid_follows_the_other_device(tmp_path: Path) -> None:
    """Two trees that differ only there."""
    uuids = set()
    for seed in (1, 2):
        made = FileTree()
        made.add("f", file(noise(BLOCK, seed)))
        uuids.add(write(made, tmp_path / "i", compression="none", chunk_size=4096, blob=tmp_path / "blob").uuid)
    assert len(uuids) == 2


@pytest.mark.oracle
@pytest.mark.parametrize("size", [4096, 16384])
def test_as_few_blocks_as_mkfs(oracle: Callable[[str], str], tmp_path: Path, size: int) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for _, inode in tree().walk():
        if inode.is_file and inode.size > BLOCK:
            (source / str(len(os.listdir(source)))).write_bytes(inode.read())
    from erofs_edge.sources.directory import scan

    ours = write(scan(source), tmp_path / "i", compression="none", chunk_size=size)
    argv = [oracle("mkfs.erofs-1.9"), f"--chunksize={size}", "--quiet", str(tmp_path / "theirs"), str(source)]
    subprocess.run(argv, check=True)
    assert ours.size <= (tmp_path / "theirs").stat().st_size


def test_what_is_shared_and_what_is_not_there(tmp_path: Path) -> None:
    made = FileTree()
    for name, data in {"a": NOISE, "b": NOISE[:BLOCK] + bytes(2 * BLOCK), "c": NOISE[BLOCK : 2 * BLOCK]}.items():
        made.add(name, file(data))
    info = write(made, tmp_path / "i", compression="none", chunk_size=BLOCK)
    assert (info.chunked, info.equal_chunks, info.holes, info.data_blocks) == (3, 2, 2, 40)


def test_a_file_in_one_piece_has_a_table_of_one_entry(tmp_path: Path) -> None:
    made = FileTree()
    made.add("f", file(NOISE))
    write(made, tmp_path / "i", compression="none", chunk_size=BLOCK)
    with Image(tmp_path / "i") as image:
        inode = image.lookup("f")
        assert LAYOUT_NAMES[inode.layout] == "chunk-based"
        assert inode.u == 6  # 64 blocks


@given(st.lists(st.one_of(st.just(HOLE), st.integers(0, 8).map(lambda n: 4 * n)), min_size=1, max_size=20))
def test_merged_tables_say_the_same(table: list[int]) -> None:
    shorter, doublings = merge(table, 4, 3)
    assert doublings <= 3
    step = 1 << doublings
    entries = [shorter[i // step] for i in range(len(table))]
    assert [e if e == HOLE else e + 4 * (i % step) for i, e in enumerate(entries)] == table


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"chunk_size": 2048}, "chunk size 2048"),
        ({"chunk_size": 12288}, "chunk size 12288"),
        ({"chunk_size": 1 << 25}, "chunk size"),
        ({"chunk_indexes": True}, "need chunks"),
        ({"chunk_size": 4096, "fragments": "tails"}, "exclude each other"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        WriteOptions(**options)


def test_the_device_is_not_the_image(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the same file"):
        write(tree(), tmp_path / "i", chunk_size=4096, blob=tmp_path / "i")
    assert not (tmp_path / "i").exists()


pieces = st.sampled_from([bytes(512), bytes(511), NOISE[:512], NOISE[512:1024], NOISE[:1024], b"odd"])


@pytest.mark.root
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    files=st.lists(st.lists(pieces, max_size=12).map(b"".join), min_size=1, max_size=5),
    more=st.integers(0, 2),
    indexes=st.booleans(),
    compression=st.sampled_from(["none", "lz4"]),
)
def test_any_contents_through_the_kernel(
    needs_root: None, files: list[bytes], more: int, indexes: bool, compression: str
) -> None:
    made = FileTree()
    for i, data in enumerate(files):
        made.add(str(i), Inode(0o100644, content=BytesContent(data), xattrs={b"user.k": b"v"} if i % 2 else {}))
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "i"
        write(made, image, block_size=512, chunk_size=512 << more, chunk_indexes=indexes, compression=compression)
        assert kernel_differences(image, made) == []
        assert check(image).findings == []
