# SPDX-License-Identifier: Apache-2.0
"""A damaged copy of a partition table is made from the other one, byte for byte, and only where that is safe."""

from __future__ import annotations

import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gpt import MIB, disk_bytes, make_table

from erofs_edge.disk import gpt
from erofs_edge.disk.gpt_copies import Mend, find_damage

SECTORS = pytest.mark.parametrize("sector", [512, 4096])


def damage_of(raw: bytes | bytearray, sector: int = 512, mbr: bytes = b"") -> Mend | None:
    def read(offset: int, length: int) -> bytes:
        return bytes(raw[offset : offset + length])

    return find_damage(gpt.decode(read, len(raw), sector), read, mbr=mbr)


def mended(raw: bytearray, mend: Mend | None) -> bytearray:
    assert mend is not None and mend.writes
    made = bytearray(raw)
    for offset, data in mend.writes:
        made[offset : offset + len(data)] = data
    assert len(made) == len(raw)
    return made


def sealed(raw: bytearray, lba: int, sector: int = 512) -> None:
    """Give the header in a sector the right checksums, of its entries and of itself."""
    at = lba * sector
    entries, count, size = gpt.HEADER.unpack_from(raw, at)[9:12]
    raw[at + 88 : at + 92] = zlib.crc32(raw[entries * sector :][: count * size]).to_bytes(4, "little")
    raw[at + 16 : at + 20] = bytes(4)
    raw[at + 16 : at + 20] = zlib.crc32(raw[at : at + 92]).to_bytes(4, "little")


def damages(sector: int) -> dict[str, tuple[str, list[tuple[int, int]]]]:
    """Name → (which copy, (start, end) of what is wiped)."""
    head, end = sector, 16 * MIB
    return {
        "first header": ("first", [(head, 2 * head)]),
        "first entries": ("first", [(2 * head + 100, 2 * head + 200)]),
        "first": ("first", [(head, 2 * head + 16384)]),
        "second header": ("second", [(end - head, end)]),
        "second entries": ("second", [(end - head - 16384, end - head - 16000)]),
        "second": ("second", [(end - head - 16384, end)]),
    }


@SECTORS
@pytest.mark.parametrize("what", damages(512))
@pytest.mark.parametrize("hybrid", [None, 0])
def test_every_byte_comes_back(what: str, sector: int, hybrid: int | None) -> None:
    good = disk_bytes(make_table(sector, hybrid=hybrid))
    which, wiped = damages(sector)[what]
    raw = bytearray(good)
    for start, end in wiped:
        raw[start:end] = bytes(end - start)
    mend = damage_of(raw, sector, bytes(good[:512]))
    assert mend is not None and mend.damaged == which
    assert mend.region == ("gpt" if which == "first" else "gpt backup")
    assert mended(raw, mend) == good
    assert len(mend.writes) == (2 if what in ("first", "second") else 1)
    assert sum(len(data) for _, data in mend.writes) == mend.size <= sector + 16384


@SECTORS
def test_nothing_is_wrong(sector: int) -> None:
    raw = disk_bytes(make_table(sector))
    assert damage_of(raw, sector, bytes(raw[:512])) is None


def test_golden() -> None:
    """The bytes of a copy, header last."""
    raw = disk_bytes(make_table())
    raw[512 : 34 * 512] = b"\xa5" * (33 * 512)
    mend = damage_of(raw)
    assert mend is not None
    (at_entries, entries), (at_header, header) = mend.writes
    assert (at_entries, len(entries), at_header, len(header)) == (1024, 16384, 512, 512)
    assert header[:96] == bytes.fromhex(
        "4546492050415254 00000100 5c000000" + header[16:20].hex() + "00000000"
        "0100000000000000 ff7f000000000000 2200000000000000 de7f000000000000"
        + make_table().disk_guid.bytes_le.hex()
        + "0200000000000000 80000000 80000000"
        + zlib.crc32(entries).to_bytes(4, "little").hex()
        + "00000000"
    )
    assert header[96:] == bytes(416)
    assert zlib.crc32(header[:16] + bytes(4) + header[20:92]) == int.from_bytes(header[16:20], "little")


def test_what_the_intact_copy_has_besides_is_kept() -> None:
    """Fields that nobody here knows, a longer header, and entries with attributes of their own."""
    raw = disk_bytes(make_table())
    for lba in (1, len(raw) // 512 - 1):
        at = lba * 512
        raw[at + 8 : at + 12] = (0x00010003).to_bytes(4, "little")
        entries = gpt.HEADER.unpack_from(raw, at)[9] * 512
        raw[entries + 48 : entries + 56] = b"\x04\0\0\0\0\0\x34\x12"
        raw[entries + 127 * 128 : entries + 128 * 128] = bytes(range(128))
        raw[entries + 127 * 128 : entries + 127 * 128 + 16] = bytes(16)
        raw[at + 12 : at + 16] = (100).to_bytes(4, "little")
        raw[at + 92 : at + 100] = b"whatever"
        sealed_long(raw, lba)
    good = bytes(raw)
    for start in (512, len(raw) - 33 * 512):
        raw = bytearray(good)
        raw[start : start + 33 * 512] = bytes(33 * 512)
        assert mended(raw, damage_of(raw)) == good


def sealed_long(raw: bytearray, lba: int) -> None:
    sealed(raw, lba)
    at = lba * 512
    raw[at + 16 : at + 20] = bytes(4)
    raw[at + 16 : at + 20] = zlib.crc32(raw[at : at + 100]).to_bytes(4, "little")


def test_the_second_copy_of_a_larger_disk_stays_where_it_is() -> None:
    table = make_table()
    good = disk_bytes(table) + bytes(8 * MIB)
    assert damage_of(good) is None
    raw = bytearray(good)
    raw[16 * MIB - 512] ^= 1
    mend = damage_of(raw)
    assert mend is not None and mend.damaged == "second"
    assert mended(raw, mend) == good
    # a table at the end of the disk: it was about to be enlarged, or is an older one
    grown = disk_bytes(make_table(size=24 * MIB))
    good[-33 * 512 :] = grown[-33 * 512 :]
    assert damage_of(good) is None
    good[16 * MIB - 512] ^= 1
    assert damage_of(good) == Mend("second")


def test_a_first_copy_for_a_larger_disk_is_left_alone() -> None:
    """Written to a smaller disk that had a table before: neither copy is damaged."""
    raw = disk_bytes(make_table())
    larger = disk_bytes(make_table(size=24 * MIB))
    raw[: 34 * 512] = larger[: 34 * 512]
    assert damage_of(raw) == Mend("first")
    raw[600] ^= 1  # now it is
    assert mended(raw, damage_of(raw))[512 : 34 * 512] == disk_bytes(make_table())[512 : 34 * 512]


def test_a_second_copy_that_differs_is_left_alone() -> None:
    raw = disk_bytes(make_table())
    last = len(raw) // 512 - 1
    raw[-33 * 512 + 56] ^= 0x20  # a letter of a name
    assert damage_of(raw) is not None
    sealed(raw, last)
    assert damage_of(raw) is None


@pytest.mark.parametrize("lba", [1, -1])
def test_a_header_that_was_written_half(lba: int) -> None:
    """A valid copy with an older sector's second half: not the bytes that it was made with."""
    good = disk_bytes(make_table())
    at = 512 if lba == 1 else len(good) - 512
    raw = bytearray(good)
    raw[at + 256 : at + 512] = b"\xa5" * 256
    mend = damage_of(raw)
    assert mend == Mend("first" if lba == 1 else "second", ((at, bytes(good[at : at + 512])),))
    other = len(good) - 512 if lba == 1 else 512
    raw[other + 60] ^= 1  # the half is not copied to the other one
    assert mended(raw, damage_of(raw))[other : other + 512] == good[other : other + 512]


@pytest.mark.parametrize("lost", ["header", "entries"])
def test_entries_that_a_board_has_elsewhere(lost: str) -> None:
    """Behind the boot loader, as `sgdisk -j` puts them; without the header, nothing tells where they are."""
    raw = disk_bytes(make_table())
    last = len(raw) // 512 - 1
    raw[100 * 512 : 132 * 512] = raw[1024 : 34 * 512]
    raw[1024 : 34 * 512] = b"boot loader ".ljust(32, b".") * 512
    for lba in (1, last):
        raw[lba * 512 + 40 : lba * 512 + 48] = (132).to_bytes(8, "little")
    raw[512 + 72 : 512 + 80] = (100).to_bytes(8, "little")
    sealed(raw, 1)
    sealed(raw, last)
    good = bytes(raw)
    assert damage_of(raw) is None
    if lost == "entries":
        raw[100 * 512 : 101 * 512] = bytes(512)
        assert mended(raw, damage_of(raw)) == good
    else:
        raw[512:1024] = bytes(512)
        mend = damage_of(raw)
        assert mend is not None
        assert [offset for offset, _ in mend.writes] == [1024, 512]


def test_no_copy_is_written_over_what_may_be_used() -> None:
    """Headers that leave no room for the other copy: with right checksums, so somebody made them like that."""
    for lba, field, value in (
        (1, 32, 20000),  # the second copy would lie among the partitions
        (1, 32, 1 << 50),
        (1, 32, 0),
        (1, 48, 32767 - 32),  # the usable area reaches into it
        (-1, 40, 33),  # as does that of the second copy into the first
        (-1, 32, 5),  # the first copy is not in sector 1
    ):
        raw = disk_bytes(make_table())
        last = len(raw) // 512 - 1
        intact, other = (1, last) if lba == 1 else (last, 1)
        raw[intact * 512 + field : intact * 512 + field + 8] = value.to_bytes(8, "little")
        sealed(raw, intact)
        raw[other * 512 : other * 512 + 8] = bytes(8)
        mend = damage_of(raw)
        assert mend == Mend("second" if lba == 1 else "first"), (lba, field, value)


@SECTORS
@pytest.mark.parametrize("hybrid", [None, 0])
def test_sector_0(sector: int, hybrid: int | None) -> None:
    good = disk_bytes(make_table(sector, hybrid=hybrid))
    mbr = bytes(good[:512])
    raw = bytearray(good)
    raw[: sector // 2] = bytes(sector // 2)
    raw[510:512] = bytes(2)
    assert damage_of(raw, sector) is None  # nobody knows whether it should be there
    mend = damage_of(raw, sector, mbr)
    assert mend is not None and mend.damaged == "mbr"
    assert mended(raw, mend) == good
    assert (mend.start, mend.size) == (0, sector)
    last = len(raw) - 1
    raw[last - sector + 1] ^= 1
    both = damage_of(raw, sector, mbr)
    assert both is not None and (both.damaged, both.start, both.size) == ("second", len(raw) - sector, 2 * sector)
    assert mended(raw, both) == good
    raw[last - sector + 1] ^= 1
    raw[sector] ^= 1
    assert [offset for offset, _ in mended_order(raw, sector, mbr)] == [sector, 0]
    # code of a boot loader is none of our business
    good[:440] = b"\xeb" * 440
    assert damage_of(good, sector, mbr) is None


def mended_order(raw: bytearray, sector: int, mbr: bytes) -> tuple[tuple[int, bytes], ...]:
    mend = damage_of(raw, sector, mbr)
    assert mend is not None and mend.damaged == "first"
    return mend.writes


def test_sector_0_of_a_disk_that_has_grown() -> None:
    """It covers the whole disk; a partition that it lists as well must be where the image has it."""
    image = disk_bytes(make_table())
    raw = disk_bytes(make_table(size=24 * MIB))
    good = bytes(raw)
    raw[:512] = bytes(512)
    assert mended(raw, damage_of(raw, 512, bytes(image[:512]))) == good
    hybrid = bytes(disk_bytes(make_table(hybrid=0))[:512])
    moved = make_table()
    first = moved.partitions[0]
    raw = disk_bytes(moved._replace(partitions=(first._replace(first_lba=first.first_lba + 8), *moved.partitions[1:])))
    raw[:512] = bytes(512)
    assert damage_of(raw, 512, hybrid) is None


@settings(max_examples=80, deadline=None)
@given(
    damage=st.dictionaries(st.integers(0, 92 + 16384 - 1), st.integers(1, 255), min_size=1, max_size=6),
    second=st.booleans(),
)
def test_any_damage_to_one_copy(damage: dict[int, int], second: bool) -> None:
    """`damage`: what is flipped, by its place in the header or behind it in the entries."""
    raw = disk_bytes(make_table())
    header, entries = (len(raw) - 512, len(raw) - 33 * 512) if second else (512, 1024)
    for at, flip in damage.items():
        raw[header + at if at < 92 else entries + at - 92] ^= flip
    mend = damage_of(raw)
    assert mend is not None and mend.damaged == ("second" if second else "first")
    mended_now = mended(raw, mend)
    assert damage_of(mended_now) is None
    assert gpt.decode(lambda offset, length: bytes(mended_now[offset : offset + length]), len(raw), 512) == make_table()


@pytest.mark.oracle
@SECTORS
@pytest.mark.parametrize("what", damages(512))
def test_other_tools_agree(what: str, sector: int, oracle: Callable[[str], str], tmp_path: Path) -> None:
    """sfdisk (and sgdisk, which knows only sectors of 512 bytes in a file) find fault before, and none after."""
    disk = tmp_path / "disk"

    def verdicts() -> list[bool]:
        found = _said(oracle("sfdisk"), "--verify", "--sector-size", str(sector), disk)
        told = ["No errors detected" in found and "corrupt" not in found]
        if sector == 512:
            found = _said(oracle("sgdisk"), "-v", disk)
            told.append("No problems found" in found and "invalid" not in found and "damaged" not in found)
        return told

    raw = disk_bytes(make_table(sector))
    for start, end in damages(sector)[what][1]:
        raw[start:end] = bytes(end - start)
    disk.write_bytes(raw)
    assert not any(verdicts())
    disk.write_bytes(mended(raw, damage_of(raw, sector)))
    assert all(verdicts())


def _said(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
