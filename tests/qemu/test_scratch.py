# SPDX-License-Identifier: Apache-2.0
"""Changes to a copy of a disk: the slot state, and one flipped bit in each slot."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from erofs_edge.boot.fit import verify_fit
from erofs_edge.disk import slots
from erofs_edge.errors import ErofsEdgeError, FormatError, UsageError, VerificationError
from erofs_edge.manifest.model import Board
from erofs_edge.manifest.verified import Verity
from erofs_edge.qemu.scratch import Scratch, copy_sparse
from erofs_edge.qemu.tamper import TAMPERS

MIB = 1 << 20
PLACES = {"boot_a": 1 * MIB, "boot_b": 2 * MIB, "system_a": 3 * MIB, "system_b": 4 * MIB, "misc": 5 * MIB}


def differences(old: bytes, new: bytes) -> list[int]:
    assert len(old) == len(new)
    return [at for at in range(6 * MIB) if old[at] != new[at]]


def test_a_copy_is_equal_and_sparse(built: Path) -> None:
    source = built / "disk.img"
    copy = copy_sparse(source, built / "copy.img")
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_blocks <= source.stat().st_blocks + 16


def test_a_copy_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ErofsEdgeError, match="cannot copy"):
        copy_sparse(tmp_path / "gone", tmp_path / "copy")


def test_slot_state(built: Path, board: Board) -> None:
    with Scratch(built / "disk.img", board, writable=True) as disk:
        assert disk.next_slot() == "a"
        disk.activate("b")
        assert disk.next_slot() == "b"
        state, _ = slots.decode_state(disk.read("misc", 0, slots.STATE_SIZE))
    assert state == slots.SlotState(("B", "A"), {"A": 3, "B": 3})


def test_slot_state_that_is_damaged_counts_as_new(built: Path, board: Board) -> None:
    with Scratch(built / "disk.img", board, writable=True) as disk:
        disk.activate("b")
        disk.write("misc", 0, b"\xff" * slots.STATE_SIZE)
        assert disk.next_slot() == "a"


def test_no_such_slot(built: Path, board: Board) -> None:
    with Scratch(built / "disk.img", board, writable=True) as disk, pytest.raises(UsageError) as failure:
        disk.activate("c")
    assert failure.value.hint == "slots: a, b"


def test_damage_to_the_system(built: Path, board: Board) -> None:
    plain = msgspec.structs.replace(board, verity=Verity())
    old = (built / "disk.img").read_bytes()
    with Scratch(built / "disk.img", plain, writable=True) as disk:
        assert disk.damage(TAMPERS["system"]) == ["byte 0x0 of system_a", "byte 0x0 of system_b"]
    assert differences(old, (built / "disk.img").read_bytes()) == [PLACES["system_a"], PLACES["system_b"]]


def test_damage_to_a_system_with_parity_takes_the_parity_too(built: Path, board: Board) -> None:
    size = (built / "system.img").stat().st_size
    with Scratch(built / "disk.img", board, writable=True) as disk:
        done = disk.damage(TAMPERS["system"])
        assert [word.partition(" ")[0] for word in done] == ["byte", "parity", "byte", "parity"]
        assert not any(disk.read("system_a", size - 4096, 4096))
        assert any(disk.read("system_a", size - 3 * 4096, 4096))


@pytest.mark.parametrize(("scenario", "message"), [("fit", "hash"), ("signature", "signature")])
def test_damage_to_the_fit(built: Path, board: Board, rsa_key: RSAPrivateKey, scenario: str, message: str) -> None:
    old = (built / "disk.img").read_bytes()
    verify_fit((built / "boot.fit").read_bytes(), rsa_key.public_key())
    with Scratch(built / "disk.img", board, writable=True) as disk:
        disk.damage(TAMPERS[scenario])
        size = (built / "boot.fit").stat().st_size
        for name in ("boot_a", "boot_b"):
            with pytest.raises(VerificationError, match=message):
                verify_fit(disk.read(name, 0, size), rsa_key.public_key())
    changed = differences(old, (built / "disk.img").read_bytes())
    assert [at // MIB * MIB for at in changed] == [PLACES["boot_a"], PLACES["boot_b"]]


def test_an_empty_slot_needs_no_damage(built: Path, board: Board) -> None:
    with Scratch(built / "disk.img", board, writable=True) as disk:
        disk.write("boot_b", 0, bytes(MIB))
        assert len(disk.damage(TAMPERS["fit"])) == 1
        disk.write("boot_a", 0, bytes(MIB))
        with pytest.raises(FormatError, match="this cannot be done to the disk: a flipped bit in the kernel"):
            disk.damage(TAMPERS["fit"])


def test_a_disk_without_a_partition_table(tmp_path: Path, board: Board) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    with pytest.raises(FormatError) as caught:
        Scratch(tmp_path / "disk.img", board)
    assert caught.value.where == f"{tmp_path / 'disk.img'}: offset 0x200"
    with pytest.raises(ErofsEdgeError, match="cannot open"):
        Scratch(tmp_path / "gone.img", board)


def test_nothing_is_read_or_written_beyond_a_partition(built: Path, board: Board) -> None:
    with Scratch(built / "disk.img", board, writable=True) as disk:
        assert len(disk.read("misc", MIB - 10, 100)) == 10
        assert disk.read("misc", 2 * MIB, 100) == b""
        with pytest.raises(FormatError, match="ends before"):
            disk.write("misc", MIB - 1, b"ab")
        with pytest.raises(FormatError, match="no partition 'nowhere'"):
            disk.read("nowhere", 0, 1)


def test_every_scenario_changes_a_whole_build_and_every_slot_alike(built: Path, board: Board) -> None:
    image = (built / "disk.img").read_bytes()
    for name, tamper in TAMPERS.items():
        (built / "disk.img").write_bytes(image)
        if tamper.content == "vbmeta":
            continue  # this board has none: test_vbmeta_script.py
        with Scratch(built / "disk.img", board, writable=True) as disk:
            done = disk.damage(tamper)
        changed = {at // MIB * MIB for at in differences(image, (built / "disk.img").read_bytes())}
        if not tamper.content:
            assert (done, changed, tamper.script is not None) == ([], set(), True)
        elif tamper.content == "slot-state":
            assert changed == {PLACES["misc"]}
        else:
            prefix = {"fit": "boot", "system": "system"}[tamper.content]
            assert changed == {PLACES[f"{prefix}_a"], PLACES[f"{prefix}_b"]}, name
