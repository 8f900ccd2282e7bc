# SPDX-License-Identifier: Apache-2.0
"""The boot script, run by a model of U-Boot's shell; the machine tests show that the real shell agrees."""

from __future__ import annotations

import re
import struct

import pytest
from hush import SECTOR, Machine
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.boot import script
from erofs_edge.boot.fit import CONFIGURATION, ROLLBACK_INDEX, Image, build_fit
from erofs_edge.disk import rollback, slots
from erofs_edge.errors import ManifestError
from erofs_edge.manifest.model import Board, Boot, Disk, Partition, UBoot

MISC, BOOT_A, BOOT_B = 64, 512, 640
PARTITIONS = {"misc": (MISC, 320), "boot_a": (BOOT_A, 128), "boot_b": (BOOT_B, 128)}


def board(**boot: object) -> Board:
    partitions = {
        "boot": Partition(size="64K", slots=["a", "b"], content="fit"),
        "misc": Partition(size="160K", content="slot-state"),
    }
    u_boot = UBoot(package="u-boot-qemu", path="/u-boot.bin")
    values: dict[str, object] = {"u_boot": u_boot, "cmdline": ["console=ttyAMA0", "quiet"]} | boot
    return Board(board="lab", disk=Disk(partitions=partitions), boot=Boot(**values))  # type: ignore[arg-type]


def fit(word: bytes, size: int = 1000) -> bytes:
    return (struct.pack(">II", 0xD00DFEED, size) + word).ljust(size, b".")


def machine(state: bytes, *, a: bytes | None = None, b: bytes | None = None, **more: object) -> Machine:
    """A disk with this slot state and these FITs; bootm accepts only FITs that say GOOD and are complete."""
    disk = bytearray(1024 * SECTOR)
    disk[MISC * SECTOR : MISC * SECTOR + len(state)] = state
    for start, data in ((BOOT_A, fit(b"GOOD a") if a is None else a), (BOOT_B, fit(b"GOOD b") if b is None else b)):
        disk[start * SECTOR : start * SECTOR + len(data)] = data

    def starts(loaded: bytes) -> bool:
        size = struct.unpack(">I", loaded[4:8])[0]
        return loaded[8:12] == b"GOOD" and len(loaded) >= size and loaded[size - 1 : size] == b"."

    return Machine(disk, PARTITIONS, starts, **more)  # type: ignore[arg-type]


def state_on(disk: bytearray) -> slots.SlotState:
    return slots.decode_state(bytes(disk[MISC * SECTOR : MISC * SECTOR + slots.STATE_SIZE]))[0]


def slot_of(run: Machine) -> str | None:
    found = re.search(r"erofs_edge\.slot=(\w+)", run.env.get("bootargs", ""))
    return found[1] if found and run.booted else None


FRESH = slots.encode_state(slots.initial(["a", "b"]))


def test_a_fresh_disk_starts_slot_a_and_counts_the_attempt() -> None:
    run = machine(FRESH)
    run.run(script.boot_script(board()))
    assert slot_of(run) == "a"
    assert run.env["bootargs"] == "console=ttyAMA0 quiet erofs_edge.slot=a"
    assert run.said == ["erofs-edge: stage u-boot slot a"]
    assert run.booted == ("50000000#conf", "50000000#conf", "7e66deb0")
    assert state_on(run.disk) == slots.SlotState(("A", "B"), {"A": 2, "B": 3})


def test_both_copies_of_the_state_are_written() -> None:
    run = machine(FRESH)
    run.run(script.boot_script(board()))
    first, second = (
        bytes(run.disk[MISC * SECTOR + at : MISC * SECTOR + at + slots.ENV_SIZE]) for at in slots.ENV_OFFSETS
    )
    assert first == second


def test_only_the_fit_itself_is_read() -> None:
    run = machine(FRESH, a=fit(b"GOOD", 3000))
    run.run(script.boot_script(board()))
    assert run.reads[-2:] == [(BOOT_A * SECTOR, SECTOR), (BOOT_A * SECTOR, 6 * SECTOR)]


def test_with_a_device_tree_in_the_fit_bootm_takes_it() -> None:
    run = machine(FRESH)
    run.run(script.boot_script(board(fdt="bcm2711-rpi-4-b.dtb")))
    assert run.booted == ("50000000#conf",)


def test_on_mmc_the_card_is_where_the_script_was_found() -> None:
    for told in (None, "1"):
        run = machine(FRESH, storage="mmc", device=told or "2")
        run.env |= {"devnum": told} if told else {}
        run.run(script.boot_script(board(storage="mmc", device=2)))
        assert slot_of(run) == "a"


def images(word: bytes) -> bytes:
    """Return a FIT as we build it, its kernel starting with a given word."""
    parts = {
        "fdt": Image("flat_dt", b"tree", "tree"),
        "ramdisk": Image("ramdisk", b"ramdisk!", "ramdisk"),
        "kernel": Image("kernel_noload", word + bytes(2000), "kernel"),
    }
    return build_fit(parts, description="lab", epoch=0, signer=None)


def test_without_fit_support_the_images_are_taken_out() -> None:
    chain = {"chain": "u-boot-booti", "fdt": "bcm2711-rpi-4-b.dtb", "storage": "mmc"}
    run = machine(FRESH, a=images(b"EVIL"), b=images(b"GOOD"), storage="mmc")
    run.env["fdt_addr_r"] = "2600000"
    run.run(script.boot_script(board(**chain)))
    assert slot_of(run) == "b"
    assert run.booted is not None
    assert run.booted[1:] == ("ramdisk!", "tree")
    assert run.said[-2:] == ["erofs-edge: slot does not start: a", "erofs-edge: stage u-boot slot b"]


def test_without_fit_support_and_with_the_control_tree() -> None:
    run = machine(FRESH, a=images(b"GOOD"))
    run.memory[0x7E66DEB0] = b"control"
    run.run(script.boot_script(board(chain="u-boot-booti")))
    assert run.booted is not None
    assert run.booted[1:] == ("ramdisk!", "control")


def test_the_load_address_is_the_boards() -> None:
    run = machine(FRESH)
    run.run(script.boot_script(board(load_address=0x501FF000)))
    assert run.booted is not None
    assert run.booted[0] == "501ff000#conf"


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(fit(b"EVIL"), id="refused by bootm"),
        pytest.param(bytes(SECTOR), id="empty"),
        pytest.param(fit(b"GOOD")[:4] + b"\x00\x01\x00\x01" + fit(b"GOOD")[8:], id="longer than its partition"),
        pytest.param(fit(b"GOOD")[:4] + b"\xff\xff\xff\xff" + fit(b"GOOD")[8:], id="4 GiB long"),
    ],
)
def test_a_slot_that_does_not_start_falls_through_to_the_other(broken: bytes) -> None:
    run = machine(FRESH, a=broken)
    run.run(script.boot_script(board()))
    assert slot_of(run) == "b"
    assert "erofs-edge: slot does not start: a" in run.said
    assert state_on(run.disk).left == {"A": 2, "B": 2}
    assert all(length <= 128 * SECTOR for _, length in run.reads), "read over the end of the partition"


def test_nothing_starts() -> None:
    run = machine(FRESH, a=fit(b"EVIL"), b=fit(b"EVIL"))
    run.run(script.boot_script(board()))
    assert run.booted is None
    assert run.said[-1] == "erofs-edge: no slot boots"


def test_a_disk_without_slot_state_still_boots() -> None:
    run = machine(b"")
    run.partitions = {name: place for name, place in run.partitions.items() if name != "misc"}
    run.run(script.boot_script(board()))
    assert slot_of(run) == "a"


def versioned(version: int) -> bytes:
    parts = {
        "ramdisk": Image("ramdisk", b"ramdisk!", "ramdisk"),
        "kernel": Image("kernel_noload", b"GOOD", "kernel"),
    }
    return build_fit(parts, description="lab", epoch=0, signer=None, rollback_index=version)


def start(a: int, b: int, state: bytes) -> Machine:
    """Run the script on a machine that starts every FIT, with these versions in its slots. Return the machine."""
    run = machine(state, a=versioned(a), b=versioned(b))
    run.starts = lambda loaded: True
    run.run(script.boot_script(board()))
    return run


@pytest.mark.parametrize(
    ("a", "b", "minimum", "slot"),
    [(3, 3, 0, "a"), (3, 3, 3, "a"), (3, 3, 4, None), (2, 3, 3, "b"), (10, 9, 9, "a"), (9, 10, 10, "b")],
)
def test_what_is_older_than_the_minimum_does_not_start(a: int, b: int, minimum: int, slot: str | None) -> None:
    run = start(a, b, rollback.with_minimum(FRESH, minimum))
    assert slot_of(run) == slot
    if a < minimum:
        assert f"erofs-edge: slot is too old: a has version {a}, the minimum is {minimum}" in run.said


def test_the_higher_of_two_records_counts_and_a_damaged_one_does_not() -> None:
    state = bytearray(rollback.with_minimum(FRESH, 5))
    first, second = (slice(at, at + rollback.SIZE) for at in rollback.OFFSETS)
    state[first] = rollback.encode(4)
    for damaged, expected in ((None, None), (second, "a"), (first, None)):
        raw = bytearray(state)
        if damaged is not None:
            raw[damaged.start + 9] ^= 0xFF
        assert slot_of(start(4, 4, bytes(raw))) == expected
    for at in (first, second):
        state[at.start] ^= 0xFF
    assert slot_of(start(0, 0, bytes(state))) == "a", "no record, no minimum"


def test_a_fit_without_a_version_is_version_0() -> None:
    run = machine(rollback.with_minimum(FRESH, 1))
    run.env["ee_version"] = "9"
    run.run(script.boot_script(board()))
    assert slot_of(run) is None


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_foreign_values_of_the_minimum_run_nothing(value: str) -> None:
    state = bytearray(rollback.with_minimum(FRESH, 0))
    state[rollback.OFFSETS[0] : rollback.OFFSETS[0] + rollback.SIZE] = slots.encode(
        {rollback.NAME: value, "bootargs": "init=/bin/sh", "ee_min": "0"}, rollback.SIZE
    )
    run = start(999_999_999, 0, bytes(state))
    assert slot_of(run) in ("a", None)
    assert run.env.get("bootargs", "console").startswith("console")


STATES = st.builds(
    lambda order, a, b: slots.SlotState(tuple(order), {"A": a, "B": b}),
    st.sampled_from([("A", "B"), ("B", "A"), ("A",), ("B",)]),
    st.integers(0, 9),
    st.integers(0, 9),
)


@given(STATES)
def test_the_script_chooses_as_slots_choose_does(state: slots.SlotState) -> None:
    chosen, after = slots.choose(state)
    run = machine(slots.encode_state(state))
    run.run(script.boot_script(board()))
    assert slot_of(run) == chosen.lower()
    assert state_on(run.disk) == after


@given(STATES, st.integers(0, 1), st.integers(0, 4))
def test_a_power_cut_at_any_write_leaves_a_state(state: slots.SlotState, damaged: int, power: int) -> None:
    """Whichever copy was damaged before, whichever write is cut short: the old state or a new one is there."""
    raw = bytearray(slots.encode_state(state))
    raw[slots.ENV_OFFSETS[damaged]] ^= 0xFF
    run = machine(bytes(raw), power=power, a=fit(b"EVIL"), b=fit(b"EVIL"))
    run.run(script.boot_script(board()))
    left = state_on(run.disk)
    assert left == state or left.order in (state.order, ("A", "B"))


@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40), st.text("0123456789*;$ab ", max_size=8)
)
def test_foreign_values_in_the_state_run_nothing(order: str, left: str) -> None:
    block = slots.encode({"BOOT_ORDER": order, "BOOT_A_LEFT": left, "BOOT_B_LEFT": left, "bootargs": "init=/bin/sh"})
    run = machine(block)
    run.run(script.boot_script(board()))
    assert slot_of(run) in ("a", "b")
    assert run.env["bootargs"].startswith("console=ttyAMA0 quiet erofs_edge.slot=")


@pytest.mark.parametrize("word", ["a'b", 'a"b', "a$b", "a\\b"])
def test_a_command_line_that_the_shell_would_change_is_refused(word: str) -> None:
    with pytest.raises(ManifestError, match=r"boot\.cmdline"):
        script.boot_script(board(cmdline=[word]))


def test_the_board_must_have_slots_and_slot_state() -> None:
    whole = board()
    u_boot = whole.boot
    for name, hint in (("misc", "slot-state"), ("boot", "fit")):
        partitions = {key: value for key, value in whole.disk.partitions.items() if key != name}
        with pytest.raises(ManifestError) as failure:
            script.boot_script(Board(board="lab", disk=Disk(partitions=partitions), boot=u_boot))
        assert hint in (failure.value.hint or "")
    unslotted = whole.disk.partitions | {"boot": Partition(size="64K", content="fit")}
    with pytest.raises(ManifestError, match="has no slots"):
        script.boot_script(Board(board="lab", disk=Disk(partitions=unslotted), boot=u_boot))


def test_what_the_parts_agree_on() -> None:
    assert script.CONFIGURATION == CONFIGURATION
    assert script.ROLLBACK_INDEX == ROLLBACK_INDEX


def test_variables_of_an_earlier_environment_change_nothing() -> None:
    stale = {"ee_tried": "1", "ee_save": "true", "BOOT_ORDER": "B", "BOOT_A_LEFT": "0", "BOOT_B_LEFT": "9"}
    run = machine(slots.encode_state(slots.SlotState(("A", "B"), {"A": 0, "B": 0})))
    run.env |= stale
    run.run(script.boot_script(board()))
    assert slot_of(run) == "a"
    assert state_on(run.disk) == slots.SlotState(("A", "B"), {"A": 2, "B": 3})
