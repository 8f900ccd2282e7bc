# SPDX-License-Identifier: Apache-2.0
"""Features added after the first releases: 48-bit addresses, encoded extents, metabox, extra devices, large
clusters."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from mutate import seal
from reader_trees import make_tree, mkfs, text
from treediff import diff, scan

from erofs_edge.codec import lz4
from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import METABOX, Backing
from erofs_edge.erofs.check import check
from erofs_edge.erofs.device_table import attach
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.mapheader import read_zmap
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.superblock import SuperInfo, read_superblock
from erofs_edge.erofs.zmap import compressed_extents
from erofs_edge.errors import ErofsEdgeError, ErofsFormatError, UsageError
from erofs_edge.tree import FileTree

Oracle = Callable[[str], str]
NEWEST = [
    "-E48bit",
    "-zlz4 -E48bit",
    "-zlz4 -E48bit,ztailpacking",
    "-zlz4hc,9 -C65536 -E48bit,fragments",
    "-zlz4 -C16384 -E48bit,all-fragments,dedupe",
    "-zlz4 -E48bit,dot-omitted",
    "-zlz4 -C4096 --max-extent-bytes=4096 -E48bit",
    "-zzstd -C65536 -E48bit,ztailpacking",
    "--chunksize=8192 -E48bit",
    "-zlz4 -m4096",
    "-zlz4 -C65536 -m16384 --zD=1 --xattr-prefix=user.sh -x1",
    "-zlz4 -C16384 -m4096 -Eall-fragments,dedupe",
    "-zlz4 -m4096 --xattr-prefix=user.sh -Eplain-xattr-prefixes -x1",
    "-zlz4 -m4096:zstd",
    "-zlz4 -C16384 --zD=1 -Efragments",
    "-zlzma,6 -C65536",
    "-zdeflate,9 -C16384 -Eztailpacking",
    "-Ededupe",
    "-Ededupe,48bit",
    "-zlz4:zstd -C16384",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("newer") / "tree")


@pytest.fixture(scope="module")
def expected(source: Path) -> FileTree:
    return scan(source)


@pytest.mark.parametrize("options", NEWEST)
def test_reads_the_newest_forms(options: str, source: Path, expected: FileTree, tmp_path: Path, oracle: Oracle) -> None:
    """Compact inodes of 48-bit images keep only the seconds of a time, and mkfs.erofs wraps those before 1970."""
    path = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, options.split())
    with Image(path) as image:
        tree = image.tree()
        assert diff(tree, expected, times=False) == []
        wanted = {name: inode.mtime_ns for name, inode in expected.walk()}
        times = {name: inode.mtime_ns for name, inode in tree.walk()}
        assert all(times[name] in (time, time // 10**9 * 10**9) for name, time in wanted.items() if time >= 0)
        assert image.superblock.incompat(ondisk.INCOMPAT_METABOX) == ("-m4096" in options or "-m16384" in options)
    assert check(path).errors == []


@pytest.mark.parametrize("version", ["1.8", "1.9"])
@pytest.mark.parametrize("options", ["", "-E48bit"])
def test_data_on_another_device(
    version: str, options: str, source: Path, expected: FileTree, tmp_path: Path, oracle: Oracle
) -> None:
    if options and version == "1.8":
        return
    blob = tmp_path / "blob"
    blob.touch()
    more = [*options.split(), "--chunksize=4096", f"--blobdev={blob}"]
    path = mkfs(oracle(f"mkfs.erofs-{version}"), tmp_path / "image", source, more)
    with Image(path, devices=[blob]) as image:
        assert diff(image.tree(), expected, times=not options) == []
        assert image.missing_devices == []
    report = check(path, devices=[blob])
    assert (report.errors, any("not given" in str(finding) for finding in report.findings)) == ([], False)
    with Image(path) as image:  # metadata can be read without
        assert {name for name, _ in image.tree().walk()} == {name for name, _ in expected.walk()}
        with pytest.raises(ErofsFormatError, match=r"lies on device 1.*which is not given") as caught:
            image.read(image.lookup("long"), 0, 10)
        assert caught.value.hint == "name the devices in order: --device FILE"
    assert any("device 1 is not given" in finding.message for finding in check(path).findings)
    with pytest.raises(UsageError, match="1 extra devices, 2 are given"):
        Image(path, devices=[blob, blob])
    os.truncate(blob, blob.stat().st_size - 1)
    with pytest.raises(ErofsEdgeError, match="device 1 is truncated"):
        Image(path, devices=[blob])


def test_devices_behind_the_image_itself(source: Path, expected: FileTree, tmp_path: Path, oracle: Oracle) -> None:
    """As kernels read an image that is given without its devices: everything is one device."""
    blob = tmp_path / "blob"
    blob.touch()
    path = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, ["--chunksize=4096", f"--blobdev={blob}"])
    with Image(path) as image:
        (slot,) = image.superblock.devices
        start = slot.uniaddr * 4096
    whole = path.read_bytes()
    (tmp_path / "one").write_bytes(whole[:start].ljust(start, b"\0") + blob.read_bytes())
    with Image(tmp_path / "one") as image:
        assert diff(image.tree(), expected) == []
    assert check(tmp_path / "one").errors == []


def test_devices_that_overlap_are_refused(source: Path, tmp_path: Path, oracle: Oracle) -> None:
    blob = tmp_path / "blob"
    blob.touch()
    path = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, ["--chunksize=4096", f"--blobdev={blob}"])
    data = bytearray(path.read_bytes())
    table = int.from_bytes(data[1024 + 88 : 1024 + 90], "little") * 128
    data[table + 68 : table + 72] = (1).to_bytes(4, "little")
    path.write_bytes(seal(data))
    with pytest.raises(ErofsFormatError, match="device 1 overlaps"):
        Image(path)


def tabled(tmp_path: Path, record: int, table: bytes, size: int, *, advise: int = 0, bits: int = 0) -> list[Extent]:
    """Return the extents of a file whose table follows the map header at byte 0x520, checked from any byte of each."""
    data = bytearray(1 << 20)
    count = len(table) // record
    form = {4: 0, 8: 2, 16: 4, 32: 6}[record]
    head = count.to_bytes(4, "little") + (1 | form | advise).to_bytes(2, "little")
    data[0x520:0x528] = head + (bytes(2) if record > 8 else bytes([0, bits]))
    at = -(-0x528 // record) * record
    data[at : at + len(table)] = table
    (tmp_path / "image").write_bytes(data)
    raw = ondisk.Superblock(blocks_lo=256, feature_incompat=0xA3, u1=1)
    backing, info = Backing(tmp_path / "image"), SuperInfo(raw, 1, 1 << 20, 0)
    inode = DiskInode(40, 0x500, False, ondisk.LAYOUT_COMPRESSED_FULL, 0, 0o100644, 1, size, 0, 0, 0, 0, 1)
    zmap = read_zmap(backing, info, inode)
    extents = list(compressed_extents(backing, info, zmap, 0))
    for number, extent in enumerate(extents):
        for byte in (extent.start, extent.start + extent.length - 1):
            assert list(compressed_extents(backing, info, zmap, byte)) == extents[number:]
    return extents


LZ4 = 1 << 28


def test_extent_records_of_four_bytes(tmp_path: Path) -> None:
    """One start, then encoded sizes: the pclusters are contiguous."""
    table = (0x3001).to_bytes(8, "little") + b"".join((LZ4 | n).to_bytes(4, "little") for n in (700, 4096, 33))
    assert [tuple(extent)[:5] for extent in tabled(tmp_path, 4, table, 20_000, bits=1)] == [
        (0, 8192, Kind.ENCODED, 0x3001, 700),
        (8192, 8192, Kind.ENCODED, 0x3001 + 700, 4096),
        (16384, 3616, Kind.ENCODED, 0x3001 + 4796, 33),
    ]


def test_extent_records_of_eight_bytes(tmp_path: Path) -> None:
    """Each with an address; a size of 0 is a hole, and raw data needs no alignment."""
    records = [(LZ4 | 1 << 27 | 700, 0x9000), (0, 0), (4096, 0x777)]
    table = b"".join(a.to_bytes(4, "little") + b.to_bytes(4, "little") for a, b in records)
    first, hole, last = tabled(tmp_path, 8, table, 10_000, advise=ondisk.ADVISE_INTERLACED_PCLUSTER)
    assert (first.address, first.size, first.partial, first.length) == (0x9000, 700, True, 4096)
    assert (hole.kind, hole.length) == (Kind.HOLE, 4096)
    assert (last.kind, last.address, last.length) == (Kind.RAW, 0x777, 10_000 - 8192)


def large(start: int, plen: int, address: int) -> bytes:
    fields = (plen, address & 0xFFFFFFFF, address >> 32, start & 0xFFFFFFFF, start >> 32)
    return b"".join(field.to_bytes(4, "little") for field in fields).ljust(32, b"\0")


def test_extent_records_of_32_bytes(tmp_path: Path) -> None:
    """Starts of 64 bits; the last one is a fragment whose offset has 64 bits."""
    far = 5 << 32
    table = large(0, 0, 0) + large(far, LZ4 | 4096, 0x2000) + large(far + 9000, 77, 1)
    extents = tabled(tmp_path, 32, table, far + 10_000, advise=ondisk.ADVISE_FRAGMENT_PCLUSTER)
    assert [tuple(extent)[:4] for extent in extents] == [
        (0, far, Kind.HOLE, 0),
        (far, 9000, Kind.ENCODED, 0x2000),
        (far + 9000, 1000, Kind.FRAGMENT, 77 | 1 << 32),
    ]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([(5, LZ4 | 9, 0)], "extent 0 starts at 5"),
        ([(0, LZ4 | 9, 0), (0, LZ4 | 9, 0)], "extent 1 starts at 0"),
        ([(0, LZ4 | 9, 0), (99_999, LZ4 | 9, 0)], "starts at 99999"),
        ([(0, LZ4 | 9, 1 << 20)], "outside the image"),
        ([(0, LZ4 | (1 << 20) + 1, 0)], "over 1 MiB"),
        ([(0, 2 * LZ4 | 9, 0)], "uses lzma"),
        ([(0, 9 * LZ4 | 9, 0)], "uses algorithm 8"),
        ([(0, 9, 0)], "has 10000 raw bytes in a pcluster of 9"),
        ([], "0 extents"),
    ],
)
def test_extent_tables_that_lie(records: list[tuple[int, int, int]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ErofsFormatError, match=message) as caught:
        tabled(tmp_path, 32, b"".join(large(*record) for record in records), 10_000)
    assert caught.value.where is not None


def test_clusters_larger_than_a_block(tmp_path: Path) -> None:
    """A full index of 16 KiB clusters on 4 KiB blocks, with data to decode."""
    content = text(3000)[:70_000]
    image = bytearray(64 << 10)
    index, start, position, block = b"", 0, 0x530, 2
    compressor = lz4.FixedOutput(9, 4096, 4096)
    heads: dict[int, tuple[int, int]] = {}
    while start < len(content):
        piece = content[start:]
        consumed, produced = compressor.fill(lz4.address_of(piece), len(piece))
        image[block * 4096 : (block + 1) * 4096] = compressor.padded(produced, 4096)
        assert start >> 14 not in heads
        heads[start >> 14] = start & 0x3FFF, block
        start, block = start + consumed, block + 1
    count = -(-len(content) // 16384)
    last = 0
    for lcn in range(count):
        if lcn in heads:
            offset, number = heads[lcn]
            last, index = lcn, index + ondisk.FULL_INDEX.pack(ondisk.LCLUSTER_HEAD1, offset, number)
        elif lcn == count - 1:
            index += ondisk.FULL_INDEX.pack(ondisk.LCLUSTER_PLAIN, len(content) & 0x3FFF, 0)
        else:
            ahead = next((n for n in range(lcn + 1, count) if n in heads), count - 1) - lcn
            index += ondisk.FULL_INDEX.pack(ondisk.LCLUSTER_NONHEAD, 0, lcn - last | ahead << 16)
    image[0x520:0x528] = ondisk.MAP_HEADER.pack(0, 0, 0, 2)
    image[position : position + len(index)] = index
    (tmp_path / "image").write_bytes(image)
    raw = ondisk.Superblock(blocks_lo=16, feature_incompat=1, u1=65535)
    info, backing = SuperInfo(raw, 1, 4096, 0), Backing(tmp_path / "image")
    inode = DiskInode(40, 0x500, False, ondisk.LAYOUT_COMPRESSED_FULL, 0, 0o100644, 1, len(content), 0, 0, 0, 0, 1)
    extents = list(compressed_extents(backing, info, read_zmap(backing, info, inode), 0))
    assert len(extents) == len(heads) > 1
    data = b"".join(lz4.decompress(backing.read(e.address, e.size, "").lstrip(b"\0"), e.length) for e in extents)
    assert data == content


def test_a_metabox_that_is_none(source: Path, tmp_path: Path, oracle: Oracle) -> None:
    path = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, ["-zlz4", "-m4096"])
    clean = path.read_bytes()
    with Image(path) as image:
        assert image.root_nid >> 63 == 1
        assert image.inode(image.root_nid).offset >= METABOX
        metabox = image.metabox
    for change, message in [
        ((1024 + 13, b"\0"), "without the superblock's extension slot"),
        ((1024 + 128 + 7, b"\x80"), "impossible number"),
        ((metabox.offset + 4, b"\xff\xa1"), "has mode 0o120777"),
    ]:
        data = bytearray(clean)
        data[change[0] : change[0] + len(change[1])] = change[1]
        path.write_bytes(seal(data))
        with pytest.raises(ErofsFormatError, match=message):
            Image(path)
        assert not check(path).ok


def test_sizes_of_48_bits(tmp_path: Path) -> None:
    """With a 64-bit root number, the field of the 16-bit one holds the upper bits of the block count."""
    raw = ondisk.Superblock(feature_incompat=0x80, rootnid_8b=70_000, rootnid_2b=1, blocks_lo=1)
    data = bytearray(4096)
    data[1024 : 1024 + 128] = ondisk.SUPERBLOCK.pack(*raw)
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(ErofsFormatError, match=f"superblock says {(1 << 32 | 1) * 4096}"):
        read_superblock(Backing(tmp_path / "image"))
    narrow = raw._replace(rootnid_8b=0)
    data[1024 : 1024 + 128] = ondisk.SUPERBLOCK.pack(*narrow)
    (tmp_path / "image").write_bytes(data)
    info = read_superblock(Backing(tmp_path / "image"))
    assert (info.root_nid, info.blocks) == (1, 1)


def test_very_many_devices_are_found_fast(tmp_path: Path) -> None:
    """65535 devices that do not exist: a read must not look at each of them."""
    count = 65535
    slot = [(ondisk.DEVICE_SLOT.pack(b"", 1, 1000 + 2 * number, 0, 0)) for number in range(count)]
    table = b"".join(slot)
    blocks = -(-(4096 + len(table)) // 4096)
    raw = ondisk.Superblock(
        feature_incompat=ondisk.INCOMPAT_DEVICE_TABLE, extra_devices=count, devt_slotoff=32, blocks_lo=100
    )
    data = bytearray(blocks * 4096)
    data[1024 : 1024 + 128] = ondisk.SUPERBLOCK.pack(*raw)
    data[4096 : 4096 + len(table)] = table
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(ErofsFormatError, match=r"device table.*outside the image"):
        read_superblock(Backing(tmp_path / "image"))
    data[1024 + 36 : 1024 + 40] = (999).to_bytes(4, "little")
    data = data.ljust(999 * 4096, b"\0")[: 999 * 4096]
    small = 999 * 4096 // 128 - 32
    data[1024 + 86 : 1024 + 88] = small.to_bytes(2, "little")
    (tmp_path / "image").write_bytes(data)
    backing = Backing(tmp_path / "image")
    info = read_superblock(backing)
    opened, missing = attach(backing, info.devices, [], 12)
    assert (len(info.devices), opened, len(missing)) == (small, [], small)
    assert all(backing.resolve((1000 + 2 * n) << 12) == (n + 1) << 72 for n in range(small))  # 30,000 times
    assert all(backing.resolve((1001 + 2 * n) << 12) == (1001 + 2 * n) << 12 for n in range(100))
