# SPDX-License-Identifier: Apache-2.0
"""The initramfs's reader of the minimum version, compared with the writer of the records and with U-Boot's reader."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

import erofs_edge.boot.initramfs
from erofs_edge.disk import rollback, slots

SCRIPT = Path(erofs_edge.boot.initramfs.__file__).with_name("rollback.sh")
STATE = slots.encode_state(slots.initial(["a", "b"]))


def read(path: Path, state: bytes) -> int:
    path.write_bytes(state)
    command = ["/bin/sh", "-c", f". {SCRIPT}; read_minimum {path}; echo $minimum"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return int(done.stdout)


@pytest.mark.parametrize("minimum", [0, 1, 7, 10, 999_999_999])
def test_it_reads_what_is_recorded(tmp_path: Path, minimum: int) -> None:
    assert read(tmp_path / "misc", rollback.with_minimum(STATE, minimum)) == minimum


def test_the_higher_of_the_records_that_are_whole_counts(tmp_path: Path) -> None:
    raw = bytearray(rollback.with_minimum(STATE, 5))
    first, second = rollback.OFFSETS
    raw[second : second + rollback.SIZE] = rollback.encode(12)
    assert read(tmp_path / "misc", bytes(raw)) == 12
    raw[second + 20] ^= 1
    assert read(tmp_path / "misc", bytes(raw)) == 5, "a damaged one does not count"
    raw[first + 2] ^= 1
    assert read(tmp_path / "misc", bytes(raw)) == 0
    assert read(tmp_path / "misc", bytes(256 << 10)) == 0 and read(tmp_path / "misc", b"") == 0
    assert read(tmp_path / "misc", rollback.with_minimum(STATE, 9)[: second + 100]) == 9, "cut off in the second"


@pytest.mark.parametrize("value", ["", "-1", "12x", "1 2", "9999999999", "$(reboot)", "0x10"])
def test_a_record_that_holds_no_version(tmp_path: Path, value: str) -> None:
    raw = bytearray(rollback.with_minimum(STATE, 3))
    at = rollback.OFFSETS[0]
    raw[at : at + rollback.SIZE] = slots.encode({rollback.NAME: value}, rollback.SIZE)
    assert read(tmp_path / "misc", bytes(raw)) == 3


def test_damage_anywhere_is_read_as_our_own_decoder_reads_it(tmp_path: Path) -> None:
    rng = random.Random(11)
    for _ in range(25):
        raw = bytearray(rollback.with_minimum(STATE, rng.choice([1, 44, 123456789])))
        for _ in range(rng.randint(1, 3)):
            at = rng.choice(rollback.OFFSETS) + rng.randrange(rollback.SIZE if rng.random() < 0.3 else 24)
            raw[at] ^= 1 << rng.randrange(8)
        assert read(tmp_path / "misc", bytes(raw)) == (rollback.decode(bytes(raw)) or 0)
