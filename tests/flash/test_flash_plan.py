# SPDX-License-Identifier: Apache-2.0
"""The plan, before anything is touched."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from erofs_edge.errors import CapacityError, FormatError, SourceError
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Region, plan_flash
from erofs_edge.flash.target import Identity

MIB = 1 << 20


def device(size: int, sector: int = 512) -> Identity:
    return Identity("/dev/x", "block", size, sector)


def test_regions_in_the_order_of_writing(image: Path) -> None:
    plan = plan_flash(image, device(12 * MIB))
    assert [(r.name, r.start, r.end) for r in plan.contents] == [
        ("boot", MIB, 3 * MIB),
        ("unused", 3 * MIB, 4 * MIB),
        ("system", 4 * MIB, 8 * MIB),
        ("data", 8 * MIB, 11 * MIB),
    ]
    assert [(r.name, r.start, r.end) for r in plan.table] == [("gpt backup", 11 * MIB, 12 * MIB), ("gpt", 0, MIB)]
    assert sum(r.size for r in plan.regions) == plan.size == 12 * MIB
    data = {r.name: r.data_bytes for r in plan.regions}
    assert data["data"] == data["unused"] == 0
    assert 8000 <= data["boot"] <= 12_288
    assert len(plan.contents[2].data) == 2


def test_data_and_zeros_cover_a_region() -> None:
    region = Region("r", 10, 100, ((20, 30), (30, 40), (90, 100)))
    assert list(region.zeros()) == [(10, 20), (40, 90)]
    assert region.data_bytes == 30
    assert list(Region("r", 0, 5, ()).zeros()) == [(0, 5)]


def test_a_larger_target_loses_its_old_backup_table(image: Path) -> None:
    plan = plan_flash(image, device(100 * MIB))
    old = plan.contents[-1]
    assert (old.name, old.start, old.end, old.data, old.from_image) == ("old backup", 99 * MIB, 100 * MIB, (), False)
    plan = plan_flash(image, device(12 * MIB + 4096))
    assert plan.contents[-1].start == 12 * MIB


def test_too_small_and_by_how_much(image: Path) -> None:
    with pytest.raises(CapacityError, match="needs 1048576 more"):
        plan_flash(image, device(11 * MIB))
    assert plan_flash(image, Identity("file", "file", 5)).size == 12 * MIB


def test_sectors_must_agree(image: Path, image_4k: Path) -> None:
    with pytest.raises(FormatError, match=r"sectors of 512 bytes, the device has 4096") as caught:
        plan_flash(image, device(12 * MIB, 4096))
    assert caught.value.hint == "set disk.sector: 4096 in the board file and build again"
    with pytest.raises(FormatError):
        plan_flash(image_4k, device(12 * MIB))
    assert [r.name for r in plan_flash(image_4k, device(12 * MIB, 4096)).table] == ["gpt backup", "gpt"]


def test_an_image_without_a_table(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(os.urandom(10_000))
    with pytest.raises(CapacityError) as caught:
        plan_flash(path, device(4096))
    assert caught.value.hint == "use a larger device"
    plan = plan_flash(path, device(MIB))
    assert [(r.name, r.start, r.end) for r in plan.contents] == [("image", 0, 10_000), ("old backup", 10_000, MIB)]
    assert plan.table == ()


@pytest.mark.parametrize("size", [40_000, 10 * MIB])
def test_half_of_an_image_is_refused(size: int, image: Path) -> None:
    """With zeros in place of the missing part, and no backup table, it is a valid image."""
    with Image(image) as source:
        table = source.table()
    assert table is not None
    end = max(end for _, end in table.places().values())
    os.truncate(image, size)
    with pytest.raises(SourceError, match=f"cut off: its partitions need {end} bytes, the file has {size}") as caught:
        plan_flash(image, device(12 * MIB))
    assert caught.value.hint is not None and caught.value.hint.endswith(f"truncate -s {end} {image}")
    os.truncate(image, end)
    assert [r.name for r in plan_flash(image, device(end)).regions] == ["image"]


@pytest.mark.parametrize("kind", ["gzip", "xz", "zstd", "bzip2"])
def test_a_packed_image_is_refused(kind: str, image: Path) -> None:
    raw = image.read_bytes()
    packed: dict[str, Callable[[], bytes]] = {
        "gzip": lambda: gzip.compress(raw),
        "xz": lambda: lzma.compress(raw),
        "zstd": lambda: zstandard.compress(raw),
        "bzip2": lambda: bz2.compress(raw),
    }
    image.write_bytes(packed[kind]())
    with pytest.raises(SourceError, match=f"this is a {kind} file") as caught:
        plan_flash(image, device(12 * MIB))
    assert caught.value.hint == f"unpack it first: {kind} -dk {image}"


def test_a_table_that_cannot_be_believed_is_plain_bytes(image: Path) -> None:
    """Its header is gone, and the backup is not at the image's end."""
    os.truncate(image, 10 * MIB)
    with image.open("r+b") as file:
        file.write(bytes(1024))
    assert [r.name for r in plan_flash(image, device(10 * MIB)).regions] == ["image"]


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        plan_flash(tmp_path / "missing", device(MIB))
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(SourceError, match="empty"):
        plan_flash(tmp_path / "empty", device(MIB))
