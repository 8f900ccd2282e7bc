# SPDX-License-Identifier: Apache-2.0
"""The packed inode: its content, its order, no repetition, and bytes that depend on content alone."""

from __future__ import annotations

import stat
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packing_check import ours_agree
from test_write_same import shuffled
from writer_check import write, written
from writer_trees import file, mixed, noise, rich_tree, text

from erofs_edge.erofs import pipeline
from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.extents import Kind
from erofs_edge.erofs.index import Extent, Site, build_index, layout_for
from erofs_edge.erofs.ondisk import INCOMPAT_FRAGMENTS, LAYOUT_COMPRESSED_COMPACT, LAYOUT_COMPRESSED_FULL
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.packed import PackedContent, Packer, Part
from erofs_edge.erofs.read import Image
from erofs_edge.errors import SourceError, UsageError
from erofs_edge.tree import BytesContent, FileTree, Inode

HC: dict[str, Any] = {"compression": "lz4hc", "level": 3, "pcluster": 16384}
PACKINGS: list[dict[str, Any]] = [
    {"ztailpacking": True},
    {"dedupe": True},
    {"fragments": "tails", "ztailpacking": True},
    {"fragments": "all"},
]


def fragment_of(image: Image, path: str) -> tuple[int, int]:
    """Return (offset in the packed inode, length) of a file's last extent."""
    *_, last = image.extents(image.lookup(path))
    assert last.kind is Kind.FRAGMENT
    return last.address, last.length


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_threads_order_and_cache_change_nothing(
    tmp_path: Path, packing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = rich_tree()
    tree.remove("large")
    first = written(tree, tmp_path, jobs=3, **HC, **packing)
    for jobs in (1, 8):
        again = FileTree(shuffled(tree.root, jobs))
        assert written(again, tmp_path, jobs=jobs, **HC, **packing) == first
    monkeypatch.setattr(pipeline, "BATCH", 10_000)
    for hits in (False, True):
        with CompressionCache(tmp_path / "cache") as cache:
            assert written(tree, tmp_path, cache=cache, **HC, **packing) == first
            assert bool(cache.hits) == hits
            assert bool(cache.misses) != hits


def test_cached_tails_do_not_mix(tmp_path: Path) -> None:
    """The same content is cut differently if its tail goes elsewhere."""
    tree = rich_tree()
    tree.remove("large")
    cold = [written(tree, tmp_path, **HC, **packing) for packing in PACKINGS]
    with CompressionCache(tmp_path / "cache") as cache:
        for packing, image in zip(PACKINGS, cold, strict=True):
            assert written(tree, tmp_path, cache=cache, **HC, **packing) == image


def test_equal_tails_and_files_are_there_once(tmp_path: Path) -> None:
    tree = FileTree()
    tail = mixed(3000, 7)
    for i in range(5):
        tree.add(f"small/{i}", file(mixed(5000, 1), mtime_ns=i))
        tree.add(f"odd/{i}", file(noise(16384, i) + tail))
    info = write(tree, tmp_path / "i", fragments="tails", **HC)
    with Image(tmp_path / "i") as image:
        assert len({fragment_of(image, f"small/{i}") for i in range(5)}) == 1
        assert image.packed.size == info.packed < 5000 + 5 * 20_000
    assert ours_agree(tmp_path / "i", tree) == []


def test_what_does_not_compress_stands_behind(tmp_path: Path) -> None:
    """In separate whole blocks, uncompressed: reading it decodes nothing."""
    tree = FileTree()
    for i in range(6):
        tree.add(f"{i}-soft", file(text(9001, i)))
        tree.add(f"{i}-hard", file(b"\xfd7zXZ\0" + noise(9001, i)))
    write(tree, tmp_path / "i", fragments="tails", **HC)
    with Image(tmp_path / "i") as image:
        soft = [fragment_of(image, f"{i}-soft")[0] for i in range(6)]
        hard = [fragment_of(image, f"{i}-hard")[0] for i in range(6)]
        assert soft == sorted(soft) and hard == sorted(hard)
        assert soft[-1] < hard[0] and hard[0] % 4096 == 0
        kinds = [e.kind for e in image.extents(image.packed) if e.start >= hard[0]]
        assert set(kinds) == {Kind.RAW}
    assert ours_agree(tmp_path / "i", tree) == []


def test_packed_inode_that_gains_nothing_is_flat(tmp_path: Path) -> None:
    tree = FileTree()
    for i in range(3):
        tree.add(f"{i}", file(b"\xfd7zXZ\0" + noise(9001, i)))
    write(tree, tmp_path / "i", fragments="all", **HC)
    with Image(tmp_path / "i") as image:
        assert not image.packed.is_compressed
    assert ours_agree(tmp_path / "i", tree) == []


def test_tiny_files_stay_beside_their_inodes(tmp_path: Path) -> None:
    """They would not be smaller as fragments; if nothing is packed, there is neither the inode nor the bit."""
    tree = FileTree()
    tree.add("tiny", file(b"x" * 32))
    for fragments in ("tails", "all"):
        info = write(tree, tmp_path / "i", fragments=fragments, **HC)
        with Image(tmp_path / "i") as image:
            assert image.superblock.raw.packed_nid == 0
            assert not image.superblock.raw.feature_incompat & INCOMPAT_FRAGMENTS
        assert info.fragments == 0
    tree.add("small", file(b"y" * 33))
    info = write(tree, tmp_path / "i", fragments="all", **HC)
    assert (info.fragments, info.packed) == (1, 33)
    with Image(tmp_path / "i") as image:
        assert stat.S_ISREG(image.packed.mode)


def test_no_tail_is_inline_where_it_is_also_a_fragment(tmp_path: Path) -> None:
    tree = rich_tree()
    tree.remove("large")
    write(tree, tmp_path / "i", fragments="tails", ztailpacking=True, **HC)
    with Image(tmp_path / "i") as image:
        for _, inode in image.walk():
            if inode.is_compressed:
                assert not any(e.inline for e in image.extents(inode))
        assert any(e.inline for e in image.extents(image.packed))


@pytest.mark.parametrize("tail", [5000, 100])
def test_offsets_of_more_than_32_bits_need_a_full_index(tail: int) -> None:
    """The upper bits are where the block of the tail's head would be; a tail may end in the cluster where it starts."""
    extents = [Extent(20_000 - tail, 2, False), Extent(tail, 0, False)]
    offset = (5 << 32) + 77
    assert layout_for(12, offset) == LAYOUT_COMPRESSED_FULL
    assert layout_for(12, offset & 0xFFFFFFFF) == LAYOUT_COMPRESSED_COMPACT
    raw = build_index(extents, 20_000, Site(12, first_block=9, position=0, fragment=offset), big=True)
    assert len(raw) == 16 + 5 * 8
    assert int.from_bytes(raw[:4], "little") == 77
    lcluster = (20_000 - tail) // 4096
    assert int.from_bytes(raw[16 + 8 * lcluster :][4:8], "little") == 5


def test_parts_are_read_again_and_checked(tmp_path: Path) -> None:
    class Changing:
        size = 6000
        reads = 0

        def read(self, offset: int, length: int) -> bytes:
            self.reads += 1
            return (b"a" if self.reads < 2 else b"b") * min(length, self.size - offset)

    tree = FileTree()
    tree.add("f", Inode(stat.S_IFREG | 0o644, content=Changing()))
    with pytest.raises(SourceError, match="changed while it was being read") as error:
        write(tree, tmp_path / "i", fragments="tails", **HC)
    assert error.value.where == "/f"
    assert not list(tmp_path.iterdir())


def test_packed_content_reads_any_range() -> None:
    data = {3: b"abc", 6: b"defgh", 7: b"efg", 11: b"i", 15: b"jk"}
    content = PackedContent([(at, Part(BytesContent(b"--" + part), 2, len(part), "")) for at, part in data.items()], 19)
    whole = b"\0\0\0abcdefghi\0\0\0jk\0\0"
    for start in range(len(whole) + 2):
        for length in range(len(whole) + 2):
            assert content.read(start, length) == whole[start : start + length]


def test_packed_content_is_there_once_while_it_is_read() -> None:
    """Each thread reads 16 MiB of it at a time."""
    part, count = 1 << 16, 128
    source = BytesContent(noise(part + 1))
    content = PackedContent(((at * part, Part(source, 1, part, "")) for at in range(count)), count * part)
    tracemalloc.start()
    try:
        data = content.read(0, count * part)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert data == source.data[1:] * count and peak < 1.25 * len(data)


def test_packer_pads_only_between_its_areas() -> None:
    packer = Packer(4096)
    for dense in (True, False):
        packer.add(Part(BytesContent(b"x" * 10), 0, 10, ""), dense=dense)
    packer.close()
    assert packer.offsets == [4096, 0]
    assert packer.content.size == 4106


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "none", "fragments": "tails"}, "compressed"),
        ({"compression": "none", "ztailpacking": True}, "compressed"),
        ({"packed_pcluster": 65536}, "needs fragments"),
        ({"block_size": 512, "pcluster": 257 * 512}, "at most 256 blocks"),
        ({"block_size": 512, "pcluster": 512, "fragments": "all", "packed_pcluster": 1 << 18}, "at most 256 blocks"),
        ({"fragments": "all", "packed_pcluster": 5000}, "multiple of the block size"),
        ({"fragments": "all", "packed_pcluster": 2 << 20}, "up to 1 MiB"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        WriteOptions(**options)


@pytest.mark.oracle
@pytest.mark.parametrize("extended", ["fragments", "all-fragments"])
def test_as_small_as_mkfs(oracle: Callable[[str], str], tmp_path: Path, extended: str) -> None:
    """The same rule for what is packed: a difference of only a few blocks."""
    source = tmp_path / "src"
    source.mkdir()
    tree = FileTree()
    for seed in range(60):
        for kind in (text, mixed):
            data = kind(1000 + seed * seed * 97, seed)
            (source / f"{kind.__name__}-{seed}").write_bytes(data)
            tree.add(f"{kind.__name__}-{seed}", file(data))
    theirs = tmp_path / "theirs"
    argv = [oracle("mkfs.erofs-1.9"), "-zlz4hc,3", "-C65536", f"-E{extended}", "-T0", str(theirs), str(source)]
    subprocess.run(argv, check=True, capture_output=True)
    fragments = "tails" if extended == "fragments" else "all"
    info = write(tree, tmp_path / "i", compression="lz4hc", level=3, pcluster=65536, fragments=fragments)
    assert info.size <= theirs.stat().st_size + 4 * 4096
