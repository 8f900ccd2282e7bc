# SPDX-License-Identifier: Apache-2.0
"""Whole images over a serial line: the simulated U-Boot, and Debian's own in QEMU."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sweep import quiet

from erofs_edge.errors import DeviceError, PartialWriteError, UsageError
from erofs_edge.flash.execute import flash
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import plan_flash
from erofs_edge.flash.serial import Address, SerialTarget, parse_address
from erofs_edge.flash.survey import compare
from erofs_edge.flash.target import Ability
from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.machine import find_qemu, machine_arguments, qemu_of
from erofs_edge.simulator.images import disk_image
from erofs_edge.simulator.serial_line import SerialLine
from erofs_edge.simulator.uboot import UBoot

BOARD = "boards/qemu-aarch64.yaml"
DENSE = (8 << 10) + (44 << 10)
"""incompressible bytes in a slot of the simulator's images"""


class PulledError(DeviceError):
    """The cable is unplugged."""


class Cable(SerialLine):
    """A line that is unplugged after this many bytes."""

    left = 1 << 40

    def write(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left < 0:
            raise PulledError("the port is gone")
        super().write(data)


def target(device: UBoot, baud: int = 115200) -> tuple[SerialTarget, Cable]:
    line = Cable(device, 115200)
    return SerialTarget(line, Address(Path("line"), 115200, baud, None, False), 0.1), line


def put(image: Path, to: SerialTarget, *, resume: bool = False) -> int:
    """Flash like the command. Return the bytes written."""
    plan, found = plan_flash(image, to.identity), None
    if resume:
        with Image(image) as source:
            found = compare(plan.regions, source, to, quiet)
    results = flash(plan, to, quiet, found=found)
    return sum(result.written + result.zeroed for result in results)


def test_an_image_gets_onto_the_disk_and_is_proved_there(image: Path) -> None:
    device = UBoot(bytearray(random.Random(1).randbytes(12 << 20)))
    to, _ = target(device, 921600)
    assert to.abilities == Ability.READ | Ability.HASH | Ability.COPY | Ability.REBOOT
    assert put(image, to) > 0
    assert device.disk == image.read_bytes()
    assert to.bytes_on_wire < 400_000  # of 1.3 MB of data, and 10 MiB of zeros
    again = to.bytes_on_wire
    assert put(image, to, resume=True) == 0
    assert to.bytes_on_wire - again < 40_000
    to.close()
    assert device.baud == 115200


def test_a_card_behind_a_u_boot_with_no_other_hash(image: Path) -> None:
    """Such as Debian's for the Raspberry Pi: `mmc`, a slot without a card, a size in rounded words, CRC32 in
    capitals."""
    size = (12 << 20) + 512
    device = UBoot(bytearray(random.Random(1).randbytes(size)), kind="mmc", crc_name="CRC32")
    to, _ = target(device)
    assert to.identity.size == size and "mmc 0" in to.identity.model
    assert put(image, to) > 0
    assert device.disk[: 12 << 20] == image.read_bytes()
    assert put(image, to, resume=True) == 0
    assert {"setenv stdin serial", "setenv stdout serial"} <= {line.partition(";")[0] for line in device.log}


def test_a_stick_is_found_once_it_was_looked_for(image: Path) -> None:
    device = UBoot(bytearray(12 << 20), kind="usb")
    to, _ = target(device)
    assert (to.identity.model, to.identity.size) == ("sim usb 0", 12 << 20)
    assert put(image, to) > 0
    assert device.disk == image.read_bytes()


def test_a_disk_that_is_not_there(image: Path) -> None:
    device = UBoot(bytearray(1 << 20), kind="mmc")
    for text in ("serial:///line?disk=mmc1", "serial:///line?disk=virtio0"):
        with pytest.raises(DeviceError, match="no such disk") as caught:
            SerialTarget(Cable(device, 115200), parse_address(text), 0.1)
        assert caught.value.hint == "it has: mmc0"


def test_of_two_slots_that_are_alike_one_is_sent(tmp_path: Path) -> None:
    image, device = disk_image(tmp_path / "v1.img", 1), UBoot(bytearray(2 << 20))
    to, _ = target(device)
    assert put(image, to) > 2 * DENSE
    assert device.disk[: image.stat().st_size] == image.read_bytes()
    assert DENSE < to.bytes_on_wire < 2 * DENSE


def test_a_u_boot_that_tells_no_checksum_is_given_up(image: Path) -> None:
    to, _ = target(UBoot(bytearray(12 << 20), crc_name="adler32"))
    with pytest.raises((PartialWriteError, DeviceError), match="returns no checksum"):
        put(image, to)


@pytest.mark.parametrize("cut", [2_000, 5_000, 8_000, 11_000])
def test_a_pulled_cable_costs_at_most_a_window(image: Path, cut: int) -> None:
    device = UBoot(bytearray(12 << 20))
    to, line = target(device)
    line.left = cut
    with pytest.raises((PartialWriteError, DeviceError)):
        put(image, to)
    to.close()
    line.left = 1 << 40
    device.log.clear()
    again = SerialTarget(line, Address(Path("line"), 115200, 115200, None, False), 0.1)
    put(image, again, resume=True)
    assert device.disk == image.read_bytes()


@pytest.mark.parametrize(("rate", "sectors"), [(0.001, 8), (0.002, 8), (0.002, 30)])
def test_tables_are_read_over_a_noisy_line(rate: float, sectors: int) -> None:
    """As text, five times as many bytes: each dump of a sector is spoilt somewhere, and so is each long command."""
    chance = random.Random(7)

    def noise(_way: str, _number: int, byte: int) -> bytes:
        if chance.random() >= rate:
            return bytes([byte])
        other = chance.randrange(256)
        return chance.choice([b"", bytes([other]), bytes([byte, byte]), bytes([byte, other])])

    device = UBoot(bytearray(random.Random(1).randbytes(1 << 20)))
    line = SerialLine(device, 115200, fault=noise)
    to = SerialTarget(line, Address(Path("line"), 115200, 115200, None, False), 0.1)
    assert to.read(4096, sectors * 512) == device.disk[4096 : 4096 + sectors * 512]


def test_addresses() -> None:
    assert parse_address("serial:///dev/ttyUSB0") == Address(Path("/dev/ttyUSB0"), 115200, 115200, None, False)
    found = parse_address("serial:///dev/ttyACM1?baud=921600&console=9600&disk=mmc1")
    assert found == Address(Path("/dev/ttyACM1"), 9600, 921600, ("mmc", 1), False)
    for text in (
        "serial://host/x",
        "serial:///",
        "serial:///dev/x?baud=fast",
        "serial:///dev/x?disk=floppy0",
        "serial:///d?x=1",
        "serial://[x",
    ):
        with pytest.raises(UsageError):
            parse_address(text)


def edge_flash(edge: str, out: Path, disk: Path, transport: str, *more: str) -> list[str]:
    return [edge, "flash", BOARD, "-o", str(out), "--to", f"qemu:{transport}", "--disk", str(disk), "--json", *more]


@pytest.mark.qemu
@pytest.mark.oracle
@pytest.mark.xdist_group("qemu")
def test_debians_u_boot_takes_an_image_over_its_console(
    edge: str, tmp_path: Path, repository: Path, stock: object
) -> None:
    assert callable(stock)
    out = stock("qemu-aarch64")
    image, disk = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(random.Random(3).randbytes(20 << 10) + b"text that packs well\n" * 3000 + bytes(4096 - 4056))
    os.truncate(image, 128 << 10)
    disk.write_bytes(random.Random(4).randbytes(1 << 20))
    with debians_u_boot(out, disk, tmp_path / "console") as address:
        command = [edge, "flash", str(image), "--to", address, "--yes", "--json"]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False, timeout=840)
    assert done.returncode == 0, done.stderr
    assert disk.read_bytes()[: 128 << 10] == image.read_bytes()
    record = json.loads(done.stdout)
    assert record["bytes_total"] == 128 << 10
    assert 20 << 10 < record["bytes_on_wire"] < 64 << 10


@contextmanager
def debians_u_boot(out: Path, disk: Path, console: Path) -> Iterator[str]:
    """The address of Debian's own U-Boot, at the prompt, on QEMU's emulated UART; with QEMU's own device tree, so that
    nothing disables the prompt."""
    emulator, machine = find_qemu(), qemu_of(load_board(Path(BOARD)).value)
    words = [
        str(emulator.program), *machine_arguments(machine, out / "u-boot.bin"),
        "-drive", f"if=none,id=disk0,format=raw,file={disk}", "-device", "virtio-blk-pci,drive=disk0",
        "-serial", f"unix:{console},server=on,wait=on", "-monitor", "none",
    ]  # fmt: skip
    with subprocess.Popen(words) as process:
        try:
            while not console.exists():
                assert process.poll() is None
                time.sleep(0.1)
            yield f"serial+unix://{console}"
        finally:
            process.terminate()  # QEMU writes out what it holds
            process.wait()


def kill_qemu_of(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to the machine that this command started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        if "qemu" in Path(f"/proc/{child}/cmdline").read_bytes().decode():
            os.kill(int(child), signal.SIGKILL)


@pytest.mark.long
@pytest.mark.qemu
@pytest.mark.timeout(1200)
def test_a_machine_that_is_killed_in_the_middle_is_flashed_by_the_next_try(
    edge: str, tmp_path: Path, repository: Path, stock: object
) -> None:
    assert callable(stock)
    out, image, disk = stock("qemu-aarch64"), tmp_path / "image", tmp_path / "disk"
    image.write_bytes(random.Random(6).randbytes(24 << 20))
    disk.write_bytes(bytes(32 << 20))
    command = edge_flash(edge, out, disk, "nbd", "--image", str(image))
    with subprocess.Popen(
        command, cwd=repository, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        while not any(disk.read_bytes()[: 8 << 20]):  # the machine writes; its own memory has more
            assert process.poll() is None
        kill_qemu_of(process)
        process.communicate()
        assert process.returncode in (6, 8)
    done = subprocess.run([*command, "--resume"], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert disk.read_bytes()[: 24 << 20] == image.read_bytes()
    assert json.loads(done.stdout)["bytes_total"] == 24 << 20


@pytest.mark.long
@pytest.mark.qemu
@pytest.mark.timeout(3600)
def test_a_board_is_provisioned_survives_a_kill_and_boots(
    edge: str, tmp_path: Path, repository: Path, stock: object
) -> None:
    assert callable(stock)
    out, disk = stock("qemu-aarch64"), tmp_path / "disk.img"
    command = edge_flash(edge, out, disk, "nbd")
    with subprocess.Popen(
        command, cwd=repository, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if "Writing 'boot_a'" in line:  # done with that, and about to write the next
                with suppress(ProcessLookupError):
                    kill_qemu_of(process)
                break
        process.stderr.read()
        assert process.wait() in (6, 8)
    done = subprocess.run([*command, "--resume"], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes_written"] < 2 << 30
    smoke = [edge, "boot", BOARD, "-o", str(out), "--disk", str(disk), "--smoke", "--timeout", "1500"]
    booted = subprocess.run(smoke, cwd=repository, capture_output=True, text=True, check=False)
    assert booted.returncode == 0, booted.stderr
