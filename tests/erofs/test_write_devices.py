# SPDX-License-Identifier: Apache-2.0
"""Images of metadata alone: all data, in every layout, is on a blob; and what a device table may say."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from devices import mounted_differences, own_differences
from mutate import seal
from writer_check import kernel_differences, write
from writer_trees import file, noise, rich_tree

from erofs_edge import erofs
from erofs_edge.erofs import ondisk
from erofs_edge.erofs.check import check
from erofs_edge.erofs.read import Image
from erofs_edge.errors import CapacityError, ErofsEdgeError, ErofsFormatError
from erofs_edge.tree import FileTree

WAYS: list[dict[str, Any]] = [
    {"compression": "none"},
    {"compression": "lz4", "pcluster": 65536, "full_index": True},
    {"compression": "lz4", "pcluster": 16384, "dedupe": True, "ztailpacking": True},
    {"compression": "lz4", "fragments": "tails"},
    {"compression": "zstd", "fragments": "all", "pcluster": 65536},
    {"compression": "deflate", "wide": True, "pcluster": 65536},
    {"compression": "none", "block_size": 512, "profile": (b"/sizes", b"/links/1")},
]


def tree() -> FileTree:
    made = rich_tree()
    made.remove("large")
    return made


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_all_data_is_on_the_blob(needs_root: None, tmp_path: Path, way: dict[str, Any]) -> None:
    image, blob = tmp_path / "i", tmp_path / "blob"
    info = write(tree(), image, blob=blob, **way)
    assert info.data_blocks == 0
    assert info.device_blocks * info.block_size == blob.stat().st_size > 10 * info.size
    assert info.devices == (blob,)
    assert own_differences(image, [blob], tree()) == []
    assert mounted_differences(image, [blob], tree()) == []
    joined = tmp_path / "joined"
    joined.write_bytes(image.read_bytes() + blob.read_bytes())
    assert own_differences(joined, [], tree()) == []
    assert kernel_differences(joined, tree()) == []
    with Image(image, devices=[blob]) as opened:
        assert opened.superblock.devices[0].tag.decode() == hashlib.sha256(blob.read_bytes()).hexdigest()


def test_the_blob_does_not_depend_on_names_or_times(tmp_path: Path) -> None:
    """So a store of blobs by hash keeps a single one for both."""
    blobs = []
    for name in ("a", "b"):
        made = FileTree()
        for i in range(20):
            made.add(f"{name}/{i}", file(noise(9_000 + i, i), mtime_ns=len(blobs)))
        write(made, tmp_path / "i", blob=tmp_path / "blob", compression="lz4")
        blobs.append((tmp_path / "blob").read_bytes())
    assert blobs[0] == blobs[1]


def test_a_blob_too_far_for_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erofs_edge.erofs.layers.NULL_ADDR", 20)
    made = FileTree()
    made.add("f", file(noise(100_000, 1)))
    with pytest.raises(CapacityError, match="too many for 32 bits") as caught:
        write(made, tmp_path / "i", blob=tmp_path / "blob", compression="none")
    assert caught.value.hint == "store chunks, which have addresses of their own: --chunksize"
    assert list(tmp_path.iterdir()) == []
    write(made, tmp_path / "i", blob=tmp_path / "blob", compression="none", chunk_size=4096)
    assert own_differences(tmp_path / "i", [tmp_path / "blob"], made) == []


def slot_of(image: Path) -> tuple[bytearray, int]:
    data = bytearray(image.read_bytes())
    raw = ondisk.Superblock(*ondisk.SUPERBLOCK.unpack(data[1024:1152]))
    return data, raw.devt_slotoff * 128


def test_hostile_tables(tmp_path: Path) -> None:
    """Addresses that overlap, wrap or lead nowhere, wrong counts: each gives an error with its place."""
    image, blob, bad = tmp_path / "i", tmp_path / "blob", tmp_path / "bad"
    made = FileTree()
    made.add("f", file(noise(50_000, 1)))
    for i in range(200):
        made.add(f"small{i}", file(noise(50, i)))
    write(made, image, blob=blob, compression="none", chunk_size=4096, wide=True)

    def opened(change: dict[int, bytes], sb: dict[int, bytes] | None = None) -> str:
        data, at = slot_of(image)
        for offset, value in change.items():
            data[at + offset : at + offset + len(value)] = value
        for offset, value in (sb or {}).items():
            data[1024 + offset : 1024 + offset + len(value)] = value
        bad.write_bytes(seal(data))
        with pytest.raises(ErofsEdgeError) as caught, Image(bad, devices=[blob]) as found:
            for _, inode in found.walk():
                found.read(inode, 0, inode.size)
        assert caught.value.where
        assert not check(bad, devices=[blob]).ok
        return str(caught.value)

    assert "overlaps in the flat address space" in opened({68: (1).to_bytes(4, "little")})
    assert "device 1 is truncated" in opened({72: b"\x01\x00"})  # 2**32 blocks more
    assert "device 1 is truncated" in opened({64: b"\xff\xff\xff\xff"})
    assert "lie outside" in opened({64: (1).to_bytes(4, "little")})
    assert "device table" in opened({}, {88: b"\xff\xff"})
    assert "without a device table" in opened({}, {80: bytes([0x84])})


def test_mutated_tables_end_in_errors_or_true_reads(tmp_path: Path) -> None:
    image, blob, bad = tmp_path / "i", tmp_path / "blob", tmp_path / "bad"
    made = FileTree()
    made.add("f", file(noise(50_000, 1)))
    write(made, image, blob=blob, compression="none", chunk_size=4096)
    rng = random.Random(1)
    outcomes = set()
    for _ in range(300):
        data, at = slot_of(image)
        offset = at + rng.choice([*range(64, 76)])
        data[offset] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, data[offset] ^ 1 << rng.randrange(8)])
        bad.write_bytes(seal(data))
        try:
            with Image(bad, devices=[blob]) as found:
                assert found.read(found.lookup("/f"), 0, 50_000) == noise(50_000, 1)
            outcomes.add("read")
        except ErofsFormatError as error:
            assert error.where
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("options", [{"chunk_size": 4096, "compression": "none"}, {"compression": "lz4"}], ids=str)
def test_check_says_once_that_a_device_is_missing(options: dict[str, Any], tmp_path: Path) -> None:
    """Its data is not checked: neither what is compressed, nor what follows the end of a file in its last block."""
    made = FileTree()
    for number in range(10):
        made.root.children[b"%d" % number] = file(random.Random(number).randbytes(6000) + b"text " * 9000)
    erofs.build(made, tmp_path / "image", blob=tmp_path / "blob", **options)
    report = check(tmp_path / "image")
    assert [finding.message for finding in report.findings] == ["device 1 is not given: its data is not checked"]
    assert report.ok and report.files == 10
    assert check(tmp_path / "image", devices=[tmp_path / "blob"]).findings == []
