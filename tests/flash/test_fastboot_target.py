# SPDX-License-Identifier: Apache-2.0
"""A fastboot device as a target: partitions by name, single blocks by sparse images; what it cannot do is reported."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner, Result
from sweep import quiet, started

from erofs_edge.cli.main import cli
from erofs_edge.errors import DeviceError, DeviceRefusedError, ErofsEdgeError
from erofs_edge.flash.execute import flash
from erofs_edge.flash.fastboot_target import FastbootTarget
from erofs_edge.flash.image import Image
from erofs_edge.flash.prepare import Wish, prepare
from erofs_edge.flash.target import Ability
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.fastboot import FastbootDevice, MemoryLink, serve_tcp, serve_udp
from erofs_edge.simulator.images import Sizes, disk_image, opened
from erofs_edge.simulator.links import BadPackets
from erofs_edge.simulator.partitions import DiskPartitions
from erofs_edge.transport.fastboot.link import Device


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    return disk_image(tmp_path / "v1.img", 1)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    return disk_image(tmp_path / "v2.img", 2)


def device(disk: SimulatedDisk, **more: object) -> FastbootDevice:
    return FastbootDevice(DiskPartitions(disk), **more)  # type: ignore[arg-type]


def target(fake: FastbootDevice, image: Path) -> FastbootTarget:
    with Image(image) as source:
        table = source.table()
    assert table is not None
    return FastbootTarget(Device(MemoryLink(fake)), table.places(), image.stat().st_size)


def run(fake: FastbootDevice, image: Path, slot: str | None = None) -> FastbootTarget:
    there = target(fake, image)
    prepared = prepare(image, there, Wish(slot), quiet)
    flash(prepared.plan, there, quiet, found=prepared.found)
    return there


@pytest.mark.parametrize("memory", [20 << 10, 40 << 10, 64 << 20])
def test_blank_then_an_update(memory: int, v1: Path, v2: Path) -> None:
    disk = SimulatedDisk.of_size(v1.stat().st_size)
    fake = device(disk, memory=memory)
    run(fake, v1)
    assert bytes(disk.memory) == v1.read_bytes()
    assert fake.log.index("flash:gpt") < fake.log.index("flash:boot_a")
    fake.log.clear()
    run(fake, v2)
    assert {entry for entry in fake.log if entry.startswith("flash:")} == {
        "flash:misc",
        "flash:boot_b",
        "flash:system_b",
    }
    begun = started(disk.memory)
    assert begun is not None and begun.slot == "B"


def test_only_blocks_that_differ_go_over_the_wire(v1: Path, v2: Path) -> None:
    disk = SimulatedDisk(bytearray(v1.read_bytes()))
    there = target(device(disk), v2)
    prepared = prepare(v2, there, Wish(), quiet)
    todo = sum(found.write_bytes for found in prepared.todo.values())
    sent = there._device.sent
    flash(prepared.plan, there, quiet, found=prepared.found)
    records = 4 * (16 << 10) + 4 * (4 << 10)  # slot state and journal, before and after, two copies each
    assert there._device.sent - sent < todo + records + 4000
    assert prepared.plan.update is not None


def test_a_device_that_gives_nothing_back(v1: Path, v2: Path) -> None:
    """Like U-Boot's: its content is unknown, so the user must name the slot, or agree to overwrite everything."""
    disk = SimulatedDisk.of_size(v1.stat().st_size)
    fake = device(disk, quirks=frozenset({"no-fetch"}))
    run(fake, v1)  # it had no partitions: nothing is lost
    assert bytes(disk.memory) == v1.read_bytes()
    there = target(fake, v2)
    assert Ability.READ not in there.abilities
    with pytest.raises(OSError, match="nothing to fetch") as caught:
        there.read(0, 1)
    assert caught.value.errno == errno.EOPNOTSUPP
    before = bytes(disk.memory)
    with pytest.raises(DeviceRefusedError, match="cannot say which of its slots is running"):
        run(fake, v2)
    assert bytes(disk.memory) == before
    run(fake, v2, "b")
    begun = started(disk.memory)
    assert begun is not None and begun.slot == "B"
    assert (
        begun.root_hash != (opened(lambda o, n: v1.read_bytes()[20480 + o : 20480 + o + n], 12288) or begun).root_hash
    )


def test_addresses_outside_of_partitions(v1: Path) -> None:
    there = target(device(SimulatedDisk(bytearray(v1.read_bytes()))), v1)
    for action in (lambda: there.read(0, 10), lambda: there.write(0, b"x" * 4096)):
        with pytest.raises(OSError, match="in no partition"):
            action()
    with pytest.raises(OSError, match="not the start of a block"):
        there.write(20480 + 100, b"x")


def test_a_device_with_too_little_memory(v1: Path) -> None:
    fake = device(SimulatedDisk(bytearray(v1.read_bytes())), memory=1000)
    there = target(fake, v1)
    there.write(20480, b"x")
    with pytest.raises(OSError, match="too few for anything"):
        there.flush()


def test_the_other_commands(v1: Path) -> None:
    fake = device(SimulatedDisk(bytearray(v1.read_bytes())), variables={"product": "lab", "serialno": "S7"})
    there = target(fake, v1)
    assert (there.identity.model, there.identity.serial, there.identity.kind) == ("lab", "S7", "fastboot")
    there.activate("b")
    there.reboot()
    assert fake.slot == "b"
    assert fake.log[-2:] == ["set_active:b", "reboot"]
    assert set(there.partitions()) == {"boot_a", "boot_b", "system_a", "system_b", "misc", "data"}


def cli_flash(image: Path, to: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["flash", str(image), "--to", to, "--yes", "--json", *arguments])


def test_over_a_socket(v1: Path, v2: Path) -> None:
    disk = SimulatedDisk.of_size(v1.stat().st_size)
    with serve_tcp(device(disk)) as address:
        to = "fastboot://" + address.removeprefix("tcp:")
        for image in (v1, v2):
            result = cli_flash(image, to)
            assert result.exit_code == 0, result.output
            record = json.loads(result.stdout)
            assert record["bytes_on_wire"] > record["bytes_written"] > 0
        assert json.loads(cli_flash(v2, to).stdout)["bytes_written"] == 0
    begun = started(disk.memory)
    assert begun is not None and begun.slot == "B"


def test_another_board_is_refused(v1: Path) -> None:
    disk = SimulatedDisk.of_size(v1.stat().st_size)
    with serve_tcp(device(disk, variables={"serialno": "S7"})) as address:
        to = "fastboot://" + address.removeprefix("tcp:")
        result = cli_flash(v1, to, "--serial", "S8")
        assert (result.exit_code, "has the serial number S7, not S8" in result.stderr) == (7, True)
        assert not any(disk.memory)
        assert cli_flash(v1, to, "--serial", "S7").exit_code == 0


@pytest.mark.parametrize("quirks", [frozenset[str](), frozenset({"no-fetch"})])
def test_an_image_larger_than_the_slots_is_refused(quirks: frozenset[str], v1: Path, tmp_path: Path) -> None:
    disk = SimulatedDisk(bytearray(v1.read_bytes()))
    fake = device(disk, quirks=quirks)
    with pytest.raises(DeviceRefusedError, match="'system_a' has 49152 bytes, 65536 are needed"):
        run(fake, disk_image(tmp_path / "larger.img", 2, Sizes(system=64 << 10)))
    assert disk.memory == v1.read_bytes()


def test_over_a_bad_link(v1: Path) -> None:
    """Packets are lost, doubled, late: it takes longer, but the result is correct."""
    disk = SimulatedDisk(bytearray(v1.read_bytes()))
    disk.rot(Random(1), [45056 + 100])
    fault = BadPackets(Random(2), lost=0.002, repeated=0.05, late=0.002)
    with serve_udp(device(disk), fault) as address:
        result = cli_flash(v1, "fastboot+udp://" + address.removeprefix("udp:"), "--repair")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["bytes_written"] == 4096
    assert bytes(disk.memory) == v1.read_bytes()


def test_an_image_without_partitions(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(b"x" * 5000)
    assert cli_flash(raw, "fastboot://127.0.0.1:1").exit_code == 2


class LyingDevice(FastbootDevice):
    """Answers with anything."""

    def __init__(self, disk: SimulatedDisk, random: Random) -> None:
        super().__init__(DiskPartitions(disk))
        self.random = random

    def hear(self, message: bytes) -> list[bytes]:
        answers = super().hear(message)
        kind = self.random.randrange(14)
        if kind == 0:
            return []
        if kind == 1:
            return [self.random.randbytes(self.random.randrange(300))]
        if kind == 2:
            return [b"DATA" + self.random.choice([b"ffffffff", b"00000000", b"0000000g", b"00001000"])]
        if kind == 3:
            return [b"INFO" + self.random.randbytes(20)] * 3 + answers
        if kind == 4:
            return [b"OKAY" + self.random.choice([b"0xffffffffffffffff", b"-1", b"zzz", b"0"])]
        if kind == 5:
            return answers + answers
        return answers


@pytest.mark.parametrize("seed", range(8))
def test_a_hostile_device_only_makes_it_fail(seed: int, v1: Path, v2: Path) -> None:
    """Whatever it answers, the host ends, with an ErofsEdgeError or with everything proved; it never sends anything
    outside the plan."""
    for number in range(40):
        random = Random(f"{seed} {number}")
        disk = SimulatedDisk(bytearray(v1.read_bytes()), log=[])
        fake = LyingDevice(disk, random)
        try:
            run(fake, v2, random.choice([None, "b"]))
        except (ErofsEdgeError, OSError) as error:
            assert isinstance(error, ErofsEdgeError) or error.errno, error
        touched = {entry.partition(":")[2] for entry in fake.log if entry.startswith("flash:")}
        assert touched <= {"misc", "boot_a", "boot_b", "system_a", "system_b", "data", "gpt"}


def test_a_device_that_goes_away(v1: Path, v2: Path) -> None:
    for power in range(0, 12):
        disk = SimulatedDisk(bytearray(v1.read_bytes()), power=power)
        with pytest.raises((DeviceError, DeviceRefusedError)):
            run(device(disk), v2)
        disk.power = None
        run(device(disk), v2)
        begun = started(disk.memory)
        assert begun is not None and begun.slot == "B"
