# SPDX-License-Identifier: Apache-2.0
"""A board that the image is not for, or a locked one: refused before anything is sent, with what was found."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli
from erofs_edge.errors import DeviceRefusedError
from erofs_edge.flash.guard import refuse_locked, refuse_other_board
from erofs_edge.flash.serial import Address, SerialTarget
from erofs_edge.flash.target import Identity
from erofs_edge.manifest.load import load_board
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.fastboot import FastbootDevice, serve_tcp
from erofs_edge.simulator.images import disk_image
from erofs_edge.simulator.partitions import DiskPartitions
from erofs_edge.simulator.serial_line import SerialLine
from erofs_edge.simulator.uboot import UBoot


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A build for boards that call themselves lab or bench."""
    out = tmp_path / "out"
    out.mkdir()
    disk_image(out / "disk.img", 1)
    (out / "release.json").write_text(json.dumps({"format": 1, "product": ["lab", "bench"]}))
    return out


def flash(out: Path, device: FastbootDevice, *options: str) -> Result:
    with serve_tcp(device) as address:
        to = "fastboot://" + address.removeprefix("tcp:")
        return CliRunner().invoke(cli, ["flash", str(out), "--to", to, "--yes", *options])


def board(out: Path, **variables: str) -> tuple[SimulatedDisk, FastbootDevice]:
    disk = SimulatedDisk.of_size((out / "disk.img").stat().st_size)
    return disk, FastbootDevice(DiskPartitions(disk), variables)


@pytest.mark.parametrize("option", ["--yes", "--plan", "--verify-only", "--repair"])
def test_another_board(built: Path, option: str) -> None:
    disk, device = board(built, product="kiosk")
    result = flash(built, device, option)
    assert result.exit_code == 7
    assert "the device says 'kiosk', not 'lab' or 'bench'" in result.stderr
    assert not any(disk.memory)
    assert not [word for word in device.log if not word.startswith("getvar")]


@pytest.mark.parametrize("product", ["lab", "bench"])
def test_the_right_board(built: Path, product: str) -> None:
    disk, device = board(built, product=product)
    assert flash(built, device).exit_code == 0
    assert bytes(disk.memory) == (built / "disk.img").read_bytes()


def test_an_image_that_names_no_board(built: Path) -> None:
    (built / "release.json").unlink()
    _, device = board(built, product="kiosk")
    assert flash(built, device).exit_code == 0


@pytest.mark.parametrize("said", ["no", "No", "false"])
def test_a_locked_device(built: Path, said: str) -> None:
    disk, device = board(built, product="lab", unlocked=said)
    result = flash(built, device)
    assert (result.exit_code, "the device is locked" in result.stderr) == (7, True), result.stderr
    assert not any(disk.memory)


def test_what_counts() -> None:
    silent = Identity("usb:1", "fastboot", 100)
    with pytest.raises(DeviceRefusedError, match="does not say whether it is"):
        refuse_other_board(silent, ["lab"])
    refuse_other_board(silent, [])
    with pytest.raises(DeviceRefusedError, match="the device says 'x', not 'lab'"):
        refuse_other_board(Identity("tty", "serial", 100, product="x"), ["lab"])
    refuse_other_board(Identity("tty", "serial", 100, product="lab"), ["lab"])
    refuse_other_board(Identity("card.img", "file", 100), ["lab"])  # nobody can ask a card
    for unlocked in ("", "yes", "true"):
        refuse_locked(silent, unlocked)


RASPBERRY_PI = ["rpi", "4 Model B", "raspberrypi,4-model-b"]
QEMU = ["qemu-aarch64", "qemu-arm", "linux,dummy-virt"]


def test_stock_boards_say_who_they_are(repository: Path) -> None:
    assert load_board(repository / "boards/qemu-aarch64.yaml").value.product == QEMU
    assert load_board(repository / "boards/qemu-aarch64-locked.yaml").value.product == QEMU
    assert load_board(repository / "boards/rpi4.yaml").value.product == RASPBERRY_PI


def test_a_u_boot_that_knows_the_model_is_asked_for_that() -> None:
    """Every Raspberry Pi has `board=rpi` in U-Boot's environment (board/raspberrypi/rpi/rpi.c)."""
    for model, right in (("4 Model B", True), ("3 Model B", False)):
        device = UBoot(bytearray(1 << 20), variables={"board": "rpi", "board_name": model})
        line = SerialLine(device, 115200)
        identity = SerialTarget(line, Address(Path("line"), 115200, 115200, None, False), 0.1).identity
        with nullcontext() if right else pytest.raises(DeviceRefusedError, match="the device says '3 Model B'"):
            refuse_other_board(identity, RASPBERRY_PI)
