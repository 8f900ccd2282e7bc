# SPDX-License-Identifier: Apache-2.0
"""A U-Boot that hashes its disk for us: only what differs is sent, and all of it is proved. Its `oem run` is simulated
here; the real one is in tests/flash/test_fastboot_qemu.py."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner
from sweep import quiet, started

from erofs_edge.cli.main import cli
from erofs_edge.disk import journal
from erofs_edge.errors import DeviceRefusedError, ErofsEdgeError, ProtocolError, VerificationError
from erofs_edge.flash import slot_state
from erofs_edge.flash.execute import flash
from erofs_edge.flash.fastboot_uboot import UBootTarget
from erofs_edge.flash.image import Image
from erofs_edge.flash.prepare import Wish, prepare, prepare_check, prepare_repair
from erofs_edge.flash.target import Ability
from erofs_edge.simulator.disk import Cache, SimulatedDisk
from erofs_edge.simulator.fastboot import FastbootDevice, MemoryLink, serve_udp
from erofs_edge.simulator.fastboot_uboot import UBootFastboot
from erofs_edge.simulator.images import disk_image
from erofs_edge.simulator.partitions import DiskPartitions
from erofs_edge.simulator.power import cut
from erofs_edge.transport.fastboot.link import Device
from erofs_edge.transport.fastboot.uboot import PIECE_MAX, consents

QUIRKS = frozenset({"no-fetch", "no-slots"})


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    return disk_image(tmp_path / "v1.img", 1)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    return disk_image(tmp_path / "v2.img", 2)


def device(disk: SimulatedDisk, **more: object) -> UBootFastboot:
    return UBootFastboot(DiskPartitions(disk), quirks=QUIRKS, **more)  # type: ignore[arg-type]


def target(fake: FastbootDevice, image: Path) -> UBootTarget:
    with Image(image) as source:
        table = source.table()
    assert table is not None
    link = Device(MemoryLink(fake))
    uboot = link.run(consents())
    assert uboot is not None
    return UBootTarget(link, uboot, table.places(), image.stat().st_size)


def run(fake: FastbootDevice, image: Path) -> int:
    """Flash; the bytes that were written."""
    there = target(fake, image)
    prepared = prepare(image, there, Wish(), quiet)
    results = flash(prepared.plan, there, quiet, found=prepared.found)
    proved = [result.verified == result.size for result in results if not result.name.startswith("gpt")]
    assert all(proved), "all but the table, which is the device's own"
    return sum(result.written + result.zeroed for result in results)


class Slow(UBootFastboot):
    """Its card does not answer in time, once of three, for reads and for writes, and then not before it is looked for
    again; that does not help, `for_good`."""

    asked, lost, for_good = 0, False, False

    def _mmc(self, verb: str, *words: str) -> bool:
        self.lost &= verb != "rescan"
        return (verb != "read" or self.answers()) and super()._mmc(verb, *words)

    def answers(self) -> bool:
        """This time."""
        self.asked += 1
        self.lost |= self.for_good or self.asked % 3 == 0
        return not self.lost

    def _actions(self) -> Mapping[str, Callable[[str], list[bytes]]]:
        actions = super()._actions()
        return {**actions, "flash": lambda text: actions["flash"](text) if self.answers() else [b"FAILslow"]}


def test_a_card_that_is_slow_is_asked_again(v1: Path, v2: Path) -> None:
    disk = SimulatedDisk.of_size(v1.stat().st_size)
    fake = Slow(DiskPartitions(disk), quirks=QUIRKS)
    run(fake, v1)
    assert bytes(disk.memory) == v1.read_bytes()
    run(fake, v2)
    begun = started(disk.memory)
    assert begun is not None and begun.slot == "B"
    fake.for_good = True
    with pytest.raises(DeviceRefusedError):
        run(fake, v1)


def test_blank_then_an_update_then_nothing(v1: Path, v2: Path) -> None:
    disk = SimulatedDisk.of_size(v1.stat().st_size)
    fake = device(disk)
    run(fake, v1)
    assert bytes(disk.memory) == v1.read_bytes()
    assert not [entry for entry in fake.log if entry == "flash:data"], "zeros that are there are not written"
    fake.log.clear()
    assert run(fake, v2) > 0
    assert {e for e in fake.log if e.startswith("flash:")} == {"flash:misc", "flash:boot_b", "flash:system_b"}
    begun = started(disk.memory)
    assert begun is not None and begun.slot == "B"
    before = bytes(disk.memory)
    assert run(fake, v2) == 0
    assert bytes(disk.memory) == before
    assert all(len(word) <= 64 for word in fake.log)


def test_what_it_reads_is_what_is_there(v1: Path) -> None:
    disk = SimulatedDisk(bytearray(v1.read_bytes()))
    there = target(device(disk), v1)
    assert Ability.READ | Ability.HASH | Ability.TABLE in there.abilities
    content, random = v1.read_bytes(), Random(3)
    places = there.partitions()
    for _ in range(20):
        start, end = random.choice(list(places.values()))
        at = random.randrange(start, end)
        length = random.randrange(1, min(3000, end - at) + 1)
        assert there.read(at, length) == content[at : at + length]
    assert there.read(places["data"][0], 8192) == bytes(8192)
    with pytest.raises(OSError, match="several partitions") as caught:
        there.digests([(places["boot_a"][0], places["boot_a"][1] - places["boot_a"][0] + 4096)])
    assert caught.value.errno == errno.EINVAL


def test_a_byte_that_rots_is_found(v1: Path) -> None:
    disk = SimulatedDisk(bytearray(v1.read_bytes()))
    disk.rot(Random(1), [20480 + 100])
    there = target(device(disk), v1)
    wrong = [found for found in prepare_check(v1, there, "a", quiet).todo.values() if not found.right]
    assert [found.write for found in wrong] == [[(20480, 20480 + 8192)]]


def test_a_medium_that_keeps_nothing_is_found_out(v1: Path) -> None:
    blank = SimulatedDisk(bytearray(v1.read_bytes()))
    for index in range(20480, 20480 + 4096):
        blank.memory[index] ^= 1
    liar = target(device(blank), v1)
    liar.write = lambda offset, data: len(data)  # type: ignore[method-assign]
    prepared = prepare(v1, liar, Wish(whole=True), quiet)
    with pytest.raises(VerificationError, match="'boot_a' reads back differently"):
        flash(prepared.plan, liar, quiet)


def test_what_a_hole_must_not_hold_is_made_zeros(v1: Path) -> None:
    disk = SimulatedDisk(bytearray(b"\xa5" * v1.stat().st_size))
    fake = device(disk)
    run(fake, v1)
    for start, end in target(fake, v1).partitions().values():
        assert bytes(disk.memory[start:end]) == v1.read_bytes()[start:end]


def test_without_its_consent_it_is_like_any_other(v1: Path) -> None:
    disk = SimulatedDisk(bytearray(v1.read_bytes()))
    for environment in (
        {},
        {"fastboot.edge-buffer": "48000000"},
        {"fastboot.edge-buffer": "x", "fastboot.edge-disk": "0"},
    ):
        assert Device(MemoryLink(device(disk, environment=environment))).run(consents()) is None
    assert Device(MemoryLink(FastbootDevice(DiskPartitions(disk)))).run(consents()) is None


def test_what_it_refuses(v1: Path) -> None:
    fake = device(SimulatedDisk(bytearray(v1.read_bytes())))
    there = target(fake, v1)
    uboot, link = there._uboot, there._device
    for partition in ("nothing", "a-name-of-more-than-twenty-seven-bytes"):
        with pytest.raises(DeviceRefusedError):
            link.run(uboot.start_of(partition))
    with pytest.raises(DeviceRefusedError):
        link.run(uboot.digests([(1 << 40, 4096)]))
    for offset, length in ((1, 512), (0, 100), (0, PIECE_MAX + 512)):
        with pytest.raises(ValueError, match="no sectors"):
            link.run(uboot.digests([(offset, length)]))


class Liar(UBootFastboot):
    """Says anything of what it has found."""

    def hear(self, message: bytes) -> list[bytes]:
        answers = super().hear(message)
        if message in (b"getvar:ev", b"getvar:eo"):
            random = Random(len(self.log))
            words = ["", "x", "-1", "f" * 17, "0" * 64, "1 2 3", "ä", "ff" * 32, " ".join(["1"] * 4)]
            return [f"OKAY{random.choice(words)}".encode()]
        return answers


def test_lies_end_in_errors_or_in_writing_more(v1: Path) -> None:
    disk = SimulatedDisk(bytearray(v1.read_bytes()))
    there = target(Liar(DiskPartitions(disk), quirks=QUIRKS), v1)
    for at in range(20480, 20480 + 512 * 40, 512):
        try:
            assert there.digests([(at, 512)])[0] in (b"", bytes(29), b"\xff" * 29)
            there.read(at, 512)
        except (ErofsEdgeError, OSError) as error:
            assert isinstance(error, ProtocolError | DeviceRefusedError | OSError)


def test_the_command(v1: Path, v2: Path) -> None:
    disk = SimulatedDisk.of_size(v1.stat().st_size)
    with serve_udp(device(disk)) as address:
        to = "fastboot+udp://" + address.removeprefix("udp:")
        wire = []
        for image in (v1, v2, v2):
            result = CliRunner().invoke(cli, ["flash", str(image), "--to", to, "--yes", "--json"])
            assert result.exit_code == 0, result.output
            record = json.loads(result.stdout)
            wire.append((record["bytes_written"], record["bytes_on_wire"]))
        checked = CliRunner().invoke(cli, ["flash", str(v2), "--to", to, "--verify-only"])
        planned = CliRunner().invoke(cli, ["flash", str(v1), "--to", to, "--plan", "--json"])
    assert wire[0][0] > wire[1][0] > wire[2][0] == 0
    assert 0 < wire[2][1] < 20_000
    assert checked.exit_code == 0, checked.output
    assert json.loads(planned.stdout)["slot"] == "a"


@pytest.mark.parametrize("cache", ["write-through", "reordered"])
def test_a_whole_disk_that_was_cut_is_written_whole_by_the_same_command(v1: Path, v2: Path, cache: Cache) -> None:
    """The device makes its table first. From then on its journal says that all of it is being written, until the slot
    state comes last: no slot that was not reached, nor old data, is taken for a part of a disk that is complete."""
    image = v1.read_bytes()
    with Image(v1) as source:
        table = source.table()
    assert table is not None
    places = table.places()

    def content(disk: bytes | bytearray) -> list[str]:
        return [sha256(disk[start:end]).hexdigest()[:8] for name, (start, end) in places.items() if name != "misc"]

    start, end = places["misc"]
    junk = bytearray(b"\xee" * len(image))
    junk[start:end] = bytes(end - start)  # such a device reads a few bytes at a time
    for before in (junk, v2.read_bytes()):
        disk = SimulatedDisk(bytearray(before), log=[])
        there = target(device(disk), v1)
        flash(prepare(v1, there, Wish(whole=True), quiet).plan, there, quiet)
        log, begun = disk.log or [], 0
        for count in range(0, len(log) + 1, 3):
            medium = cut(before, log, count, cache, Random(count))
            under_way = journal.decode(lambda offset, length, medium=medium: medium[start + offset :][:length])
            if under_way is None:
                assert content(medium) in (content(before), content(image)), f"cut {count} of {len(log)}"
            else:
                begun += 1
                again = SimulatedDisk(medium)
                run(device(again), v1)
                assert content(again.memory) == content(image), f"cut {count} of {len(log)}"
                assert sha256(again.memory[start:end]).digest() == sha256(image[start:end]).digest()
        assert begun > len(log) / 6


def test_a_whole_disk_that_was_cut_can_be_compared_and_repaired(v1: Path) -> None:
    disk = SimulatedDisk(bytearray(v1.read_bytes()))
    there = target(device(disk), v1)
    start, end = there.partitions()["misc"]
    slot_state.begin_whole(there, start, end - start)
    there.flush()
    disk.memory[there.partitions()["boot_a"][0]] ^= 1
    wrong = {region.name for region, found in prepare_check(v1, there, None, quiet).todo.items() if not found.right}
    assert wrong == {"boot_a", "misc"}
    (repair,) = prepare_repair(v1, there, None, quiet)
    flash(repair.plan, there, quiet, found=repair.found)
    assert bytes(disk.memory) == v1.read_bytes()


def test_a_blank_disk_has_no_partitions_to_compare(v1: Path) -> None:
    there = target(device(SimulatedDisk.of_size(v1.stat().st_size)), v1)
    for look in (prepare_check, prepare_repair):
        with pytest.raises(VerificationError, match="no partition 'boot_a'"):
            look(v1, there, None, quiet)
