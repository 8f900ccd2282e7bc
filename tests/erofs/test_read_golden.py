# SPDX-License-Identifier: Apache-2.0
"""Golden bytes: a whole image of 8 KiB, and cluster indexes, with their meaning worked out by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from struct import pack

import pytest

from erofs_edge.codec.lz4 import FixedOutput, address_of
from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import Backing
from erofs_edge.erofs.extents import Kind
from erofs_edge.erofs.inode import DiskInode, read_inode
from erofs_edge.erofs.mapheader import read_zmap
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.superblock import SuperInfo
from erofs_edge.erofs.zmap import compressed_extents
from erofs_edge.errors import ErofsFormatError

TINY = {
    0x400: "e2e1f5e01e0eaec507000000 0c00 2400 0400000000000000 40420f0000000000 00000000 02000000 00000000 00000000",
    0x430: "00112233445566778899aabbccddeeff",
    0x450: "01000000 ffff",
    0x480: "04000000ed410300 3500000000000000 ffffffff01000000 0000000000000000",
    0x4A0: "240000000000000030000200 240000000000000031000200 270000000000000033000200 2a0000000000000034000700",
    0x4D0: "2e2e2e646c",
    0x4E0: "04000000ed410200 2800000000000000 ffffffff02000000 0000000000000000",
    0x500: "270000000000000024000200 240000000000000025000200 2c0000000000000027000100 2e2e2e66",
    0x540: "04000000ffa10100 0300000000000000 ffffffff03000000 0000000000000000 642f66",
    0x580: "06000300a4810100 0028000000000000 0100000004000000 0000000000000000",
    0x5A0: "ffbfffff00 00000000000000 01010200 6b 7631 00 00000000",
    0x5B8: "0000000001000000 0010012000000000 0008000001000000",
}
"""what mkfs.erofs 1.9.4 writes for d/f (10240 bytes of text, user.k = v1) and l -> d/f, without its last block"""


def tiny() -> bytes:
    data = bytearray(8192)
    for offset, text in TINY.items():
        chunk = bytes.fromhex(text)
        data[offset : offset + len(chunk)] = chunk
    body = content()
    compressor = FixedOutput(9, 4096)
    consumed, produced = compressor.fill(address_of(body), len(body))
    assert consumed == len(body)
    data[8192 - produced :] = compressor.padded(produced, produced)
    return bytes(data)


def content() -> bytes:
    return b"".join(b"line %04d of the sample text\n" % i for i in range(400))[:10240]


def test_the_tiny_image(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(tiny())
    with Image(tmp_path / "image") as image:
        info = image.superblock
        assert (info.block_size, info.size, image.root_nid, info.epoch) == (4096, 8192, 36, 1_000_000)
        assert info.raw.checksum == info.checksum == 0xC5AE0E1E
        tree = image.tree()
        assert [path for path, _ in tree.walk()] == [b"/", b"/d", b"/d/f", b"/l"]
        file = tree.get("d/f")
        assert file is not None
        assert (file.mode, file.mtime_ns, file.xattrs) == (0o100644, 10**15, {b"user.k": b"v1"})
        assert file.read() == content()
        inode = image.inode(44)
        assert [(e.start, e.length, e.kind, e.address, e.size) for e in image.extents(inode)] == [
            (0, 10240, Kind.ENCODED, 4096, 4096)
        ]
        link = tree.get("l")
        assert link is not None
        assert link.target == b"d/f"


def test_data_without_zero_padding(tmp_path: Path) -> None:
    """Before Linux 5.4 the stream was at the start of its block, and the superblock had only the distance."""
    data = bytearray(tiny())
    data[0x450:0x454] = bytes(4)
    stream = bytes(data[4096:]).lstrip(b"\0")
    data[4096:] = stream.ljust(4096, b"\0")
    data[0x404:0x408] = ondisk.super_checksum(bytes(data), 12).to_bytes(4, "little")
    (tmp_path / "image").write_bytes(data)
    with Image(tmp_path / "image") as image:
        assert image.read(image.inode(44), 0, 20000) == content()


def test_a_pcluster_of_zeros_holds_no_stream(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(tiny()[:4096] + bytes(4096))
    with Image(tmp_path / "image") as image, pytest.raises(ErofsFormatError, match="4096 zero bytes") as caught:
        image.read(image.inode(44), 0, 1)
    assert caught.value.where == "offset 0x1000"


INDEX_2B = (
    "0010042801000000 0220032005000000 0420012005000000"
    "7d13012a000e80046001f8a611a002e000480016800620604480128005000000"
    "03200158005e6104a800380012800520ad47800a800320015800068011000000"
    "7115012a000e8004600128c311a002e0004800168006a0c94480128019000000"
    "0320015800fa6504a800380012800520f647800a800320015800068025000000"
    "271a012a000e8004a09c22a7c829721a012a000e80046001680006802d000000"
    "fc1b012a000e8004600168001e80086002a8002e804a1c012a00268038000000"
    "04600168001e80086002a8002e800e1c012a000e8004600168000e8040000000"
    "0820012044000000"
)
"""compact index of a file of 491520 bytes at byte 0x528: 300000 compressible, 30000 not, the rest again"""
EXTENTS_2B = [(0, 1, 4), (25469, 5, 4), (51823, 9, 4), (78208, 13, 4), (104535, 17, 4), (130740, 21, 4)]
"""(first byte, first block, blocks) of the first extents, as dump.erofs prints them"""


def mapped(tmp_path: Path, index: bytes, inode: DiskInode, advise: int = 7) -> tuple[Backing, SuperInfo, DiskInode]:
    """Return an image of 1 MiB in which `index` follows the map header at byte 0x520."""
    data = bytearray(1 << 20)
    data[0x520:0x528] = ondisk.MAP_HEADER.pack(0, advise, 0, 0)
    data[0x528 : 0x528 + len(index)] = index
    (tmp_path / "image").write_bytes(data)
    raw = ondisk.Superblock(blocks_lo=256, feature_incompat=0x3, u1=1)
    return Backing(tmp_path / "image"), SuperInfo(raw, 1, 1 << 20, 0), inode


def inode_of(size: int, layout: int = ondisk.LAYOUT_COMPRESSED_COMPACT) -> DiskInode:
    return DiskInode(40, 0x500, False, layout, 0, 0o100644, 1, size, 0, 0, 0, 0, 1)


def test_a_compact_index_of_two_byte_packs(tmp_path: Path) -> None:
    backing, info, inode = mapped(tmp_path, bytes.fromhex(INDEX_2B), inode_of(491520))
    zmap = read_zmap(backing, info, inode)
    assert (zmap.four_byte, zmap.two_byte, zmap.lclusters, zmap.index_size) == (6, 112, 120, 256)
    extents = list(compressed_extents(backing, info, zmap, 0))
    assert [(e.start, e.address >> 12, e.size >> 12) for e in extents][:6] == EXTENTS_2B
    raw = [e for e in extents if e.kind is Kind.RAW]
    assert [(e.start, e.length, e.address >> 12) for e in raw] == [
        (309874, 4096, 49), (313970, 4096, 50), (318066, 4096, 51)
    ]  # fmt: skip
    assert extents[-1].start + extents[-1].length == 491520
    assert all(a.start + a.length == b.start for a, b in pairwise(extents))
    assert list(compressed_extents(backing, info, zmap, 0, strict=True)) == extents


def test_a_wrong_forward_distance_is_found(tmp_path: Path) -> None:
    index = bytearray.fromhex(INDEX_2B)
    index[10] = 4  # cluster 3 announces a head one cluster too far
    backing, info, inode = mapped(tmp_path, bytes(index), inode_of(491520))
    zmap = read_zmap(backing, info, inode)
    assert list(compressed_extents(backing, info, zmap, 0))
    with pytest.raises(ErofsFormatError, match="announces"):
        list(compressed_extents(backing, info, zmap, 0, strict=True))


def full(*entries: tuple[int, int, int]) -> bytes:
    return bytes(8) + b"".join(pack("<HHI", *entry) for entry in entries)


HEAD, NONHEAD, PLAIN = 1, 2, 0


@pytest.mark.parametrize(
    ("entries", "size", "message"),
    [
        ([(NONHEAD, 0, 1), (HEAD, 0, 1)], 8192, "cluster 0 says its extent starts"),
        ([(HEAD, 1, 1)], 4096, "cluster 0 starts an extent at offset 1"),
        ([(HEAD, 0, 1), (HEAD, 4096, 2)], 8192, "cluster 1 starts an extent at offset 4096"),
        ([(HEAD, 0, 1), (NONHEAD, 0, 0)], 8192, "cluster 1 says its extent starts 0"),
        ([(HEAD, 0, 1), (NONHEAD, 0, 2)], 8192, "cluster 1 says its extent starts 2"),
        ([(HEAD, 0, 1), (NONHEAD, 0, 1)], 8192, "lacks the count"),
        ([(HEAD, 0, 1), (NONHEAD, 0, 0x801), (NONHEAD, 0, 0x801)], 12288, "cluster 2 says its extent starts 1"),
        ([(HEAD, 0, 1), (NONHEAD, 0, 0x800 | 257)], 8192, "over 1 MiB"),
        ([(HEAD, 0, 256)], 4096, "outside the image"),
        ([(HEAD, 0, 255), (NONHEAD, 0, 0x802)], 8192, "outside the image"),
        ([(PLAIN, 0, 1), (NONHEAD, 0, 1)], 8192, "raw bytes in a pcluster"),
        (
            [(HEAD, 0, 1), (NONHEAD, 0, 0x801), *[(NONHEAD, 0, min(n, 2047)) for n in range(2, 3073)]],
            3073 * 4096,
            "12 MiB",
        ),
        ([(3, 0, 1)], 4096, "second head type"),
        ([(HEAD | 0x2000, 0, 1)], 4096, "unknown bits"),
    ],
)
def test_indexes_that_contradict_themselves(
    entries: list[tuple[int, int, int]], size: int, message: str, tmp_path: Path
) -> None:
    backing, info, inode = mapped(tmp_path, full(*entries), inode_of(size, ondisk.LAYOUT_COMPRESSED_FULL), advise=2)
    zmap = read_zmap(backing, info, inode)
    with pytest.raises(ErofsFormatError, match=message) as caught:
        list(compressed_extents(backing, info, zmap, 0))
    assert caught.value.where is not None
    assert caught.value.where.startswith("offset 0x")


def test_a_second_head_type_and_partial_extents(tmp_path: Path) -> None:
    entries = [(HEAD, 0, 5), (3 | 0x8000, 100, 9), (PLAIN, 200, 2)]
    layout = ondisk.LAYOUT_COMPRESSED_FULL
    backing, info, inode = mapped(tmp_path, full(*entries), inode_of(8192 + 300, layout), advise=0)
    raw = info.raw._replace(feature_incompat=info.raw.feature_incompat | ondisk.INCOMPAT_COMPR_HEAD2)
    info = SuperInfo(raw, 0b1001, 4096, 0)
    zmap = read_zmap(backing, info, inode)._replace(algorithms=(0, 3))
    assert [(e.start, e.length, e.kind, e.address, e.algorithm, e.partial) for e in compressed_extents(
        backing, info, zmap, 0
    )] == [
        (0, 4196, Kind.ENCODED, 5 * 4096, 0, False),
        (4196, 4196, Kind.ENCODED, 9 * 4096, 3, True),
        (8392, 100, Kind.RAW, 2 * 4096, -1, False),
    ]  # fmt: skip


def test_holes_of_either_form(tmp_path: Path) -> None:
    """The bit in the head (Linux 7), whatever block and count follow it, and a pcluster of zero blocks."""
    layout = ondisk.LAYOUT_COMPRESSED_FULL
    long = 4000  # clusters: more than an extent of data may have
    first = [(HEAD | 0x4000, 0, 0xFFFFFFFF), (NONHEAD, 0, 0x801)]
    second = [(PLAIN, 8, 0), (NONHEAD, 0, 0x800), *((NONHEAD, 0, min(back, 0x7FF)) for back in range(2, long))]
    entries = [*first, *second, (HEAD, 16, 3)]
    size = (2 + long) * 4096 + 500
    backing, info, inode = mapped(tmp_path, full(*entries), inode_of(size, layout), advise=6)
    zmap = read_zmap(backing, info, inode)
    expected = [
        (0, 8200, Kind.HOLE, 0),
        (8200, long * 4096 + 8, Kind.HOLE, 0),
        ((2 + long) * 4096 + 16, 484, Kind.ENCODED, 3 * 4096),
    ]
    assert [(e.start, e.length, e.kind, e.address) for e in compressed_extents(backing, info, zmap, 0)] == expected
    with pytest.raises(ErofsFormatError, match="both a hole and a fragment"):
        list(compressed_extents(backing, info, zmap._replace(inode=inode_of(8192, layout), fragment=1), 0))
    plain_tail = zmap._replace(inode=inode_of((2 + long) * 4096 + 16, layout), fragment=1)
    with pytest.raises(ErofsFormatError, match="both plain data and a fragment"):  # found with the kernel
        list(compressed_extents(backing, info, plain_tail, 0))


def test_a_fragment_behind_four_gigabytes(tmp_path: Path) -> None:
    """Full indexes keep the upper half of the fragment's offset where other heads have their block."""
    layout = ondisk.LAYOUT_COMPRESSED_FULL
    backing, info, inode = mapped(tmp_path, full((HEAD, 0, 7), (HEAD, 10, 3)), inode_of(8000, layout), advise=0)
    zmap = read_zmap(backing, info, inode)._replace(fragment=0x1234)
    assert [(e.kind, e.address, e.length) for e in compressed_extents(backing, info, zmap, 0)] == [
        (Kind.ENCODED, 7 * 4096, 4106),
        (Kind.FRAGMENT, 3 << 32 | 0x1234, 3894),
    ]


def test_a_size_of_64_bits(tmp_path: Path) -> None:
    data = bytearray(4096)
    data[1152:1216] = ondisk.EXTENDED_INODE.pack(1, 0, 0o100644, 0, 1 << 63, 0, 1, 0, 0, 0, 0, 1)
    (tmp_path / "image").write_bytes(data)
    info = SuperInfo(ondisk.Superblock(blocks_lo=1), 1, 4096, 0)
    with pytest.raises(ErofsFormatError, match="does not fit in 63 bits"):
        read_inode(Backing(tmp_path / "image"), info, 36)


def test_a_walk_back_always_ends(tmp_path: Path) -> None:
    """Distances of 2047 may be hops; a chain of them to before the file must not be followed for ever."""
    entries = [(NONHEAD, 0, 2047)] * 5000
    layout = ondisk.LAYOUT_COMPRESSED_FULL
    backing, info, inode = mapped(tmp_path, full(*entries), inode_of(5000 * 4096, layout), advise=0)
    zmap = read_zmap(backing, info, inode)
    with pytest.raises(ErofsFormatError, match="starts before the file"):
        list(compressed_extents(backing, info, zmap, 4999 * 4096))


@pytest.mark.parametrize(
    ("advise", "size", "message"),
    [
        (0x40, 8192, "unknown bits in h_advise"),
        (0x02, 8192, "one head type only"),
        (0x08, 8192, "inline tails in an image without"),
        (0x20, 8192, "fragments in an image without"),
        (0x07, 1 << 40, "ends outside the image"),
    ],
)
def test_map_headers_that_cannot_be(advise: int, size: int, message: str, tmp_path: Path) -> None:
    backing, info, inode = mapped(tmp_path, b"", inode_of(size), advise)
    with pytest.raises(ErofsFormatError, match=message):
        read_zmap(backing, info, inode)
