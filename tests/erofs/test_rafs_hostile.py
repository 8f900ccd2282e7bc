# SPDX-License-Identifier: Apache-2.0
"""Foreign bootstraps: as Nydus's builder writes them, and hostile ones."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from test_rafs import small, write

from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsEdgeError, ErofsFormatError, UsageError
from erofs_edge.rafs.check import check_rafs
from erofs_edge.rafs.read import read_rafs

BLOCK = 4096
NAME = hashlib.sha256(b"a blob").hexdigest().encode()
SECONDS = 20.0  # of CPU, for one case: most take some milliseconds, on a host with other guests more


def from_nydus(*, compression: int = 3) -> bytes:
    """A bootstrap with the layout of nydus-image 2.2 (taken from one that it made): the blob table in block 1, inodes
    from
    block 3 on with the metadata's address one block earlier, the data's size in the superblock, a file of two chunks
    whose EROFS chunk is larger than the image's, a chunk table in block 4, and a device address at 2 MiB."""
    data = bytearray(5 * BLOCK)

    def put(at: int, form: str, *values: object) -> None:
        struct.pack_into("<" + form, data, at, *values)

    put(1024, "II I BBH QQI III", 0xE0F5E1E2, 0, 0x40000000, 12, 0, 128, 2, 0, 0, 3, 2, 0)
    put(1024 + 80, "IHHH", 12, 0, 1, 11)
    flags = {0: 0x01, 3: 0x80}[compression] | 0x04 | 0x10 | 0x100 | 0x0100_0000
    put(1152, "QQIIQQ", flags, BLOCK, 256, BLOCK, 4 * BLOCK, 160)
    put(1408, "64sII", NAME, 3, 512)
    features = 0x7000_0021
    put(BLOCK, "64s6IQQIIQQQ", NAME, 0, BLOCK, 2, compression, 0, features, 20000, 3 * BLOCK, 1024, 0, 9000, 32, 32)
    root = 3 * BLOCK
    names = b"...f"
    put(root, "HHHHI4xIIHH4x", 2 << 1, 0, 0o40755, 2, 36 + len(names), 0, 128, 0, 0)
    put(root + 32, "QHBxQHBxQHBx", 128, 36, 2, 128, 37, 2, 132, 39, 1)
    data[root + 68 : root + 72] = names
    put(root + 128, "HHHHQIIIIqII", 4 << 1 | 1, 0, 0o100644, 0, 5000, 0x21, 132, 1000, 1000, 1_600_000_000, 7, 1)
    for number, block in ((0, 0), (1, 1)):
        put(root + 192 + 8 * number, "HHI", number, 1, block)
        size = (BLOCK, 5000 - BLOCK)[number]
        stored, flag = ((2000, 1), (size, 0))[compression == 0]
        put(4 * BLOCK + 80 * number, "32sIIIIQQQII", bytes(32), 0, flag, stored, size, 2000 * number, block * BLOCK,
            block * BLOCK, number, 0)  # fmt: skip
    return bytes(data)


def test_what_nydus_writes_is_read(tmp_path: Path) -> None:
    (boot := tmp_path / "boot").write_bytes(from_nydus())
    found = read_rafs(boot)
    assert [(blob.id, blob.chunks, blob.compression, blob.ci_offset) for blob in found.blobs] == [(NAME, 2, 3, 9000)]
    assert [(chunk.number, chunk.size, chunk.address) for chunk in found.chunks] == [(0, BLOCK, 0), (1, 904, BLOCK)]
    with Image(boot) as image:
        assert [entry.name for entry in image.listdir(image.inode(image.root_nid))] == [b"f"]
        inode = image.lookup("/f")
        assert (inode.size, inode.uid, inode.mtime_ns) == (5000, 1000, 1_600_000_000_000_000_007)
        with pytest.raises(ErofsFormatError, match=f"device 1 .{NAME.decode()}., which is not given"):
            image.read(inode, 0, 10)
    report = check_rafs(boot)
    assert [str(finding) for finding in report.findings] == [
        "warning: blob 0 (zstd) is no device for Linux: not decoded"
    ]
    boot.write_bytes(from_nydus(compression=0))
    (blob := tmp_path / "blob").write_bytes(b"x" * 20000)
    with Image(boot, devices=[blob]) as image:
        assert image.read(image.lookup("/f"), 0, 9999) == b"x" * 5000


def test_an_image_of_erofs_is_no_bootstrap(tmp_path: Path) -> None:
    raw = bytearray(from_nydus())
    raw[1024 + 11] = 0
    (boot := tmp_path / "boot").write_bytes(raw)
    with pytest.raises((UsageError, ErofsFormatError)):
        read_rafs(boot)


WRONG = [
    (1024 + 4, "I", 5, "a bootstrap with a checksum"),
    (1024 + 12, "B", 9, r"blocks of 2\*\*9 bytes|does not fit|lies outside"),
    (1024 + 16, "Q", 0, "without inodes"),
    (1024 + 44, "I", 1, "shared attributes"),
    (1024 + 80, "I", 0x4, "features 0x4, not 0xc|without a device table"),
    (1024 + 88, "H", 12, "device slots at byte 1536, not 1408|overlaps"),
    (1152, "Q", 0x03, "name not one compression"),
    (1152, "Q", 0x01, "name not one digest"),
    (1152, "Q", 0x1_0000_0009, "unknown flags"),
    (1152 + 20, "I", 5000, "chunks of 5000 bytes"),
    (1152 + 20, "I", 1 << 25, "chunks of 33554432 bytes"),
    (1152 + 8, "Q", 100, "blob table of 256 bytes at byte 100"),
    (1152 + 8, "Q", 1 << 63, "blob table"),
    (1152 + 16, "I", 512, "1 devices, a blob table of 512 bytes|overlap"),
    (1152 + 24, "Q", 4096, "overlap"),
    (1152 + 32, "Q", 81, "chunk table of 81 bytes"),
    (1408, "B", 0x41, "another name than its device"),
    (1408 + 64, "I", 9, "its device 9 blocks|is truncated"),
    (4096, "B", 0x2F, "impossible id"),
    (4096 + 64, "I", 7, "has the index 7"),
    (4096 + 72, "I", 1 << 25, "has 33554432 chunks"),
    (4096 + 76, "I", 9, "unknown compression"),
    (4096 + 80, "I", 2, "unknown compression or digest"),
    (4096 + 84, "I", 0x8001, "unknown features"),
    (4096 + 84, "I", 0, "the first does not fit the image"),
    (4096 + 88, "Q", 1 << 50, "has 1125899906842624 bytes"),
    (4096 + 128, "Q", 17, "has a table of"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """Return (a bootstrap of ours, its blob)."""
    folder = tmp_path_factory.mktemp("rafs")
    info, (blob,) = write(small(), folder, chunk_size=4096)
    return info.path.read_bytes(), blob


@pytest.mark.parametrize(("at", "form", "value", "message"), WRONG)
def test_every_rule_is_held(
    made: tuple[bytes, Path], tmp_path: Path, at: int, form: str, value: int, message: str
) -> None:
    raw = bytearray(made[0])
    struct.pack_into("<" + form, raw, at, value)
    (boot := tmp_path / "boot").write_bytes(raw)
    with pytest.raises(ErofsFormatError, match=message):
        read_rafs(boot)
    assert not check_rafs(boot, [made[1]]).ok


def chunk_fields(boot: Path) -> Iterator[tuple[int, str, int, str]]:
    at = read_rafs(boot).chunk_table
    yield at, "B", 0xEE, "chunk 0 of blob 0 does not match its digest"
    yield at + 32, "I", 1, "is in blob 1, which does not exist"
    yield at + 36, "I", 0x20, "has unknown flags 0x20"
    yield at + 40, "I", 1, "is not compressed, and has 1 bytes"
    yield at + 44, "I", 0, "has 0 bytes at byte"
    yield at + 44, "I", 5000, "has 5000 bytes at byte"
    yield at + 48, "Q", 1 << 40, "bytes at byte 1099511627776 of a blob"
    yield at + 48, "Q", 1 << 63, "of a blob of"
    yield at + 56, "Q", 512, "does not start on a block"
    yield at + 56, "Q", 4096, "is not in the chunk table"
    yield at + 72, "I", 99, "has the number 99 in a blob of"


def test_chunks_are_what_files_and_blobs_say(made: tuple[bytes, Path], tmp_path: Path) -> None:
    (boot := tmp_path / "boot").write_bytes(made[0])
    for at, form, value, message in list(chunk_fields(boot)):
        raw = bytearray(made[0])
        struct.pack_into("<" + form, raw, at, value)
        boot.write_bytes(raw)
        found = [finding.message for finding in check_rafs(boot, [made[1]]).errors]
        assert any(message in text for text in found), (message, found)


def test_files_name_chunks_that_are_there(made: tuple[bytes, Path], tmp_path: Path) -> None:
    (boot := tmp_path / "boot").write_bytes(made[0])
    with Image(boot) as image:
        at = -(-image.lookup("/b").body // 8) * 8
    for offset, form, value, message in (
        (at, "H", 77, "chunk 0 is not in the chunk table"),
        (at + 2, "H", 0x0101, "chunk 0 is not in the chunk table"),
        (at + 2, "H", 0, "chunk 0 is not in the chunk table"),
        (at + 2, "H", 9, "chunk on device 9, which does not exist"),
        (at + 4, "I", 1, "is not in the chunk table"),
    ):
        raw = bytearray(made[0])
        struct.pack_into("<" + form, raw, offset, value)
        boot.write_bytes(raw)
        found = [finding.message for finding in check_rafs(boot, [made[1]]).errors]
        assert any(message in text for text in found), (message, found)


def test_what_a_blob_says_of_itself(made: tuple[bytes, Path], tmp_path: Path) -> None:
    boot, blob = tmp_path / "boot", tmp_path / "blob"
    boot.write_bytes(made[0])
    entry = read_rafs(boot).blobs[0]
    for at, message in (
        (entry.ci_offset, "blob 0 says something else of chunk 0"),
        (entry.ci_offset + entry.ci_stored, "the header in blob 0 is not what the bootstrap says of it"),
    ):
        raw = bytearray(made[1].read_bytes())
        raw[at] ^= 1
        blob.write_bytes(raw)
        found = [finding.message for finding in check_rafs(boot, [blob]).errors]
        assert message in found


def test_whatever_the_bytes_say(made: tuple[bytes, Path], tmp_path: Path) -> None:
    """Every 32-bit word of the superblocks, slots and tables gets harmful values: the result is a report or an error,
    soon."""
    boot = tmp_path / "boot"
    table = len(made[0]) - BLOCK
    places = [*range(1024, 1540, 4), *range(BLOCK, BLOCK + 256, 4), *range(2 * BLOCK, 2 * BLOCK + 640, 4)]
    for at in [*places, *range(table, table + 160, 4)]:
        for value in (1, 0xFFFFFFFF):
            raw = bytearray(made[0])
            struct.pack_into("<I", raw, at, value)
            boot.write_bytes(raw)
            started = time.process_time()
            with suppress(ErofsEdgeError):
                check_rafs(boot, [made[1]], jobs=1)
            assert time.process_time() - started < SECONDS, hex(at)


@pytest.mark.parametrize("size", [0, 1000, 1100, 1300, 1500, 4096, 5000])
def test_bootstraps_that_are_cut_off(made: tuple[bytes, Path], tmp_path: Path, size: int) -> None:
    (boot := tmp_path / "boot").write_bytes(made[0][:size])
    with pytest.raises(ErofsFormatError):
        read_rafs(boot)
