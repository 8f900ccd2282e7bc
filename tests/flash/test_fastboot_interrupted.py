# SPDX-License-Identifier: Apache-2.0
"""`flash` to fastboot devices that go away or refuse something at any moment: one error that names the device and the
next step, a device that still starts, and the same command completes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from one_error import told
from sweep import started

from erofs_edge.cli.main import cli
from erofs_edge.errors import DeviceError
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.fastboot import FastbootDevice, serve_tcp
from erofs_edge.simulator.images import disk_image
from erofs_edge.simulator.partitions import DiskPartitions
from erofs_edge.transport.fastboot import client
from erofs_edge.transport.fastboot.link import Device, open_device


@dataclass(slots=True)
class Moody(FastbootDevice):
    """Once, at the n-th command that begins so, it closes the connection, or refuses if it has a reason."""

    begin: bytes = b""
    number: int = 0
    reason: bytes = b""

    def hear(self, message: bytes) -> list[bytes]:
        if not self._expected and self.number and message.startswith(self.begin):
            self.number -= 1
            if not self.number and not self.reason:
                raise EOFError
            if not self.number:
                return [b"FAIL" + self.reason]
        return super(Moody, self).hear(message)


Flash = Callable[[FastbootDevice], Result]


@pytest.fixture
def flash(tmp_path: Path) -> Flash:
    image = disk_image(tmp_path / "v2.img", 2)

    def flash(device: FastbootDevice) -> Result:
        with serve_tcp(device) as address:
            to = "fastboot://" + address.removeprefix("tcp:")
            return CliRunner().invoke(cli, ["flash", str(image), "--to", to, "--yes"])

    return flash


def running(tmp_path: Path) -> SimulatedDisk:
    """The disk of a board that runs version 1."""
    return SimulatedDisk(bytearray(disk_image(tmp_path / "v1.img", 1).read_bytes()))


def slot(disk: SimulatedDisk) -> str:
    begun = started(disk.memory)
    assert begun is not None, "nothing starts"
    return begun.slot


MOMENTS = [
    (b"getvar:max-download", 1),
    (b"fetch:", 3),
    (b"download:", 2),
    (b"flash:misc", 1),
    (b"flash:misc", 3),
    (b"flash:boot_b", 1),
    (b"flash:system_b", 1),
    (b"flash:misc", 5),
    (b"flash:misc", 8),
]


@pytest.mark.parametrize(("begin", "number"), MOMENTS)
def test_a_device_that_goes_away(flash: Flash, tmp_path: Path, begin: bytes, number: int) -> None:
    disk = running(tmp_path)
    device = Moody(DiskPartitions(disk), begin=begin, number=number)
    result = flash(device)
    assert result.exit_code == 6, result.output
    assert "tcp:127.0.0.1:" in told(result) and "run the same command again" in told(result)
    assert slot(disk) == "A"
    assert flash(device).exit_code == 0 and slot(disk) == "B"


@pytest.mark.parametrize(("begin", "number"), [moment for moment in MOMENTS if moment[0] != b"getvar:max-download"])
def test_a_device_that_refuses(flash: Flash, tmp_path: Path, begin: bytes, number: int) -> None:
    disk = running(tmp_path)
    device = Moody(DiskPartitions(disk), begin=begin, number=number, reason=b"the card is worn")
    result = flash(device)
    assert result.exit_code == 7, result.output
    verb = "read" if begin == b"fetch:" else "write"
    assert f"the device refuses to {verb} '" in told(result) and "the card is worn" in told(result)
    assert "tcp:127.0.0.1:" in told(result) and "run the same command again" in told(result)
    assert slot(disk) == "A"
    assert flash(device).exit_code == 0 and slot(disk) == "B"


def test_nobody_at_the_address() -> None:
    with serve_tcp(FastbootDevice({"x": bytearray(512)})) as address:
        pass
    with pytest.raises(DeviceError, match="cannot connect: Connection refused") as caught:
        open_device(address)
    assert caught.value.where == address and "run the same command again" in (caught.value.hint or "")


def test_what_breaks_the_protocol_is_named() -> None:
    class Babble:
        name = "usb:7"

        def send(self, message: bytes | memoryview) -> None: ...
        def close(self) -> None: ...
        def receive(self, left: int | None = None, patience: float = 0) -> bytes:
            return b"what?"

    with pytest.raises(DeviceError, match="a response that begins with") as caught:
        Device(Babble()).run(client.command("getvar:x"))
    assert caught.value.where == "usb:7" and caught.value.hint is not None
