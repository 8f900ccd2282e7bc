# SPDX-License-Identifier: Apache-2.0
"""Partition tables: sgdisk and sfdisk find no fault with ours, and hostile ones are refused."""

from __future__ import annotations

import hashlib
import subprocess
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.disk import gpt
from erofs_edge.disk.gpt import Partition, Table, guid_from
from erofs_edge.errors import FormatError

MIB = 1 << 20
Oracle = Callable[[str], str]


def make_table(sector: int = 512, *, hybrid: int | None = None, size: int = 16 * MIB) -> Table:
    per_mib = MIB // sector
    parts = (
        Partition("firmware", gpt.TYPE_ESP, guid_from(b"s", "firmware"), per_mib, 5 * per_mib - 1),
        Partition("system_a", gpt.TYPE_ROOT_ARM64, guid_from(b"s", "a"), 5 * per_mib, 9 * per_mib - 1, 1 << 60),
        Partition("dätä", gpt.TYPE_LINUX, guid_from(b"s", "d"), 10 * per_mib, 15 * per_mib - 1),
    )
    return Table(guid_from(b"s", ""), size // sector, parts, sector, hybrid)


def disk_bytes(table: Table) -> bytearray:
    head, tail = gpt.encode(table)
    raw = bytearray(table.sectors * table.sector_size)
    raw[: len(head)] = head
    raw[-len(tail) :] = tail
    return raw


def decode(raw: bytes | bytearray, sector: int = 512) -> Table:
    return gpt.decode(lambda offset, length: bytes(raw[offset : offset + length]), len(raw), sector)


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("hybrid", [None, 0])
def test_round_trip(sector: int, hybrid: int | None) -> None:
    table = make_table(sector, hybrid=hybrid)
    assert decode(disk_bytes(table), sector) == table


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("size", [16 * MIB, 64 << 10])
def test_what_its_partitions_need(size: int, sector: int) -> None:
    """Computed from the primary table alone, even if the disk ends too early."""
    raw = bytes(disk_bytes(make_table(sector))[:size])
    assert gpt.needed(lambda offset, length: raw[offset : offset + length]) == 15 * MIB
    assert gpt.needed(lambda offset, length: bytes(length)) is None
    broken = raw[:sector] + bytes(sector) + raw[2 * sector :]
    assert gpt.needed(lambda offset, length: broken[offset : offset + length]) is None


def test_golden() -> None:
    raw = disk_bytes(make_table())
    assert raw[446:462] == bytes.fromhex("00 000200 ee ffffff 01000000 ff7f0000")
    assert raw[510:520] == b"\x55\xaaEFI PART"
    assert hashlib.sha256(raw).hexdigest() == "8cbe8b0722668747707fdef7678c1944c351cdac1694e6c45e9e265011f632f9"
    assert (
        hashlib.sha256(disk_bytes(make_table(4096, hybrid=0))).hexdigest()
        == "25115e415b7548c3667a214900cf19333264edfb63764e22723738c82bc0ba87"
    )


def test_guids_depend_on_seed_and_name_alone() -> None:
    assert guid_from(b"s", "a") == guid_from(b"s", "a")
    assert len({guid_from(b"s", "a"), guid_from(b"s", "b"), guid_from(b"t", "a"), guid_from(b"s", "")}) == 4
    assert guid_from(b"s", "a").version == 8
    assert guid_from(b"s", "a").variant == uuid.RFC_4122


@pytest.mark.oracle
@pytest.mark.parametrize("hybrid", [None, 0])
def test_sgdisk_finds_no_fault(hybrid: int | None, oracle: Oracle, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    table = make_table(hybrid=hybrid)
    image.write_bytes(disk_bytes(table))
    output = _run(oracle("sgdisk"), "-v", image)
    assert "No problems found" in output
    for word in ("caution", "warning", "problem:", "error"):
        assert word not in output.lower()
    info = _run(oracle("sgdisk"), "-i", "2", image)
    assert f"Partition unique GUID: {table.partitions[1].guid}".upper() in info.upper()
    assert f"Partition GUID code: {gpt.TYPE_ROOT_ARM64}".upper() in info.upper()
    assert "Partition name: 'system_a'" in info
    assert "Attribute flags: 1000000000000000" in info


@pytest.mark.oracle
@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("hybrid", [None, 0])
def test_sfdisk_finds_no_fault(sector: int, hybrid: int | None, oracle: Oracle, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(disk_bytes(make_table(sector, hybrid=hybrid)))
    command = [oracle("sfdisk"), "--verify", "--sector-size", str(sector), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "No errors detected" in done.stdout
    dump = _run(oracle("sfdisk"), "--json", "--sector-size", str(sector), image)
    assert '"name": "dätä"' in dump


@pytest.mark.oracle
def test_tables_of_sgdisk_are_read(oracle: Oracle, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(8 * MIB))
    _run(oracle("sgdisk"), "-n", "1:2048:4095", "-c", "1:one", "-t", "1:ef00", "-n", "3:6144:8191", image)
    table = decode(image.read_bytes())
    assert [(p.name, p.first_lba, p.last_lba) for p in table.partitions] == [("one", 2048, 4095), ("", 6144, 8191)]
    assert table.partitions[0].type_guid == gpt.TYPE_ESP


def test_hybrid_mbr_lists_the_firmware() -> None:
    raw = disk_bytes(make_table(hybrid=0))
    assert raw[450] == 0x0C
    assert int.from_bytes(raw[454:458], "little") == 2048
    assert int.from_bytes(raw[458:462], "little") == 4 * 2048
    assert raw[466] == 0xEE
    assert int.from_bytes(raw[470:474], "little") == 1
    assert int.from_bytes(raw[474:478], "little") == 2047


def test_backup_is_used() -> None:
    table = make_table()
    for position in (512, 600, 1024 + 40):
        raw = disk_bytes(table)
        raw[position] ^= 1
        assert decode(raw) == table._replace(backup_used=True)
    raw[-512] ^= 1
    with pytest.raises(FormatError) as caught:
        decode(raw)
    assert caught.value.where == "offset 0x400"  # the entries of the primary are at fault, and that is said


def test_refuses_what_no_disk_can_hold() -> None:
    table = make_table()
    first = table.partitions[0]
    for bad in (
        first._replace(first_lba=33),
        first._replace(last_lba=table.sectors - 33),
        first._replace(first_lba=10, last_lba=9),
        first._replace(last_lba=5 * 2048),
        first._replace(name="x" * 37),
    ):
        with pytest.raises(FormatError):
            gpt.encode(table._replace(partitions=(bad, *table.partitions[1:])))
    with pytest.raises(FormatError, match="room"):
        gpt.encode(table._replace(sectors=60, partitions=()))


def forged(**changes: tuple[int, bytes]) -> bytearray:
    """Return a disk whose primary header was changed and given a correct checksum; no backup."""
    raw = disk_bytes(make_table())
    raw[-512:] = bytes(512)
    for at, value in changes.values():
        raw[512 + at : 512 + at + len(value)] = value
    raw[528:532] = bytes(4)
    raw[528:532] = zlib.crc32(raw[512:604]).to_bytes(4, "little")
    return raw


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (8, b"\0\0\2\0"),  # revision
        (12, (91).to_bytes(4, "little")),  # header size
        (12, (513).to_bytes(4, "little")),
        (24, (2).to_bytes(8, "little")),  # my LBA
        (40, (1 << 40).to_bytes(8, "little")),  # first usable
        (48, (1 << 40).to_bytes(8, "little")),  # last usable
        (72, (1 << 60).to_bytes(8, "little")),  # entries' LBA
        (72, (1).to_bytes(8, "little")),
        (80, (0xFFFFFFFF).to_bytes(4, "little")),  # count
        (80, bytes(4)),
        (84, (127).to_bytes(4, "little")),  # size of an entry
        (84, (0x80000000).to_bytes(4, "little")),
        (88, bytes(4)),  # checksum of the entries
    ],
)
def test_hostile_headers(at: int, value: bytes) -> None:
    asked = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        return bytes(raw[offset : offset + length])

    raw = forged(change=(at, value))
    with pytest.raises(FormatError):
        gpt.decode(read, len(raw), 512)
    assert asked < 1 << 21


def test_hostile_entries() -> None:
    for at, value in ((32, 5), (40, 1 << 50), (32 + 128, 2048)):  # first LBA too small, last too large, overlap
        raw = forged()
        raw[1024 + at : 1024 + at + 8] = value.to_bytes(8, "little")
        crc = zlib.crc32(raw[1024 : 1024 + 128 * 128]).to_bytes(4, "little")
        raw = bytearray(raw)
        raw[512 + 88 : 512 + 92] = crc
        raw[528:532] = bytes(4)
        raw[528:532] = zlib.crc32(raw[512:604]).to_bytes(4, "little")
        with pytest.raises(FormatError, match=r"outside|overlap"):
            decode(raw)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 40_000), junk=st.binary(max_size=92), sector=st.sampled_from([512, 4096]))
def test_junk_never_passes(size: int, junk: bytes, sector: int) -> None:
    raw = bytearray(size)
    raw[sector : sector + len(junk)] = b"EFI PART" + junk
    with pytest.raises(FormatError):
        decode(raw, sector)


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
