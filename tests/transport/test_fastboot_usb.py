# SPDX-License-Identifier: Apache-2.0
"""Fastboot over USB on a bus that is not there. The real one, a gadget of the kernel's, is in tests/simulator."""

from __future__ import annotations

import errno
import json
from random import Random

import pytest
from click.testing import CliRunner, Result
from usb_bus import BULK, IN, INTERRUPT, OUT, Bus, Port

from erofs_edge.cli.main import cli
from erofs_edge.errors import DeviceError, DeviceRefusedError, ErofsEdgeError, UsageError
from erofs_edge.flash.fastboot import Fastboot
from erofs_edge.simulator.fastboot import FastbootDevice
from erofs_edge.transport.fastboot import client
from erofs_edge.transport.fastboot.link import Device
from erofs_edge.transport.fastboot.usb import TRANSFER, open_usb

MIB = 1 << 20
SIZE = 3 * MIB + 512 * 7


@pytest.fixture
def port() -> Port:
    return Port(FastbootDevice({"system": bytearray(SIZE)}, memory=8 * MIB, given=8 * MIB))


def test_all_of_it(port: Port) -> None:
    content = Random(1).randbytes(SIZE)
    with Device(open_usb(None, Bus(port))) as device:
        assert device.link.name == "usb:S1"
        fastboot = Fastboot(device)
        assert fastboot.variables()["version"] == "0.4"
        device.run(client.download(SIZE, [content]))
        fastboot.command("flash:system")
        # the device sends whole packets and its OKAY behind them: neither is taken for the other
        assert fastboot.fetch("fetch:system") == content
    assert bytes(port.device.partitions["system"][:]) == content
    assert port.largest == TRANSFER
    assert not port.taken, "given back"


def test_which_device(port: Port) -> None:
    other = Port(FastbootDevice({}), "S2")
    mouse = Port(FastbootDevice({}), "S3", (3, 1, 2))
    bus = Bus(mouse, port, other)
    with pytest.raises(UsageError, match="several devices") as several:
        open_usb(None, bus)
    assert several.value.hint == "name one: usb:S1, usb:S2"
    assert open_usb("S2", bus).name == "usb:S2"
    with pytest.raises(DeviceError, match="no such device") as none:
        open_usb("S3", bus)
    assert none.value.hint == "there are: usb:S1, usb:S2"
    with pytest.raises(DeviceError, match="no device in fastboot mode on USB"):
        open_usb(None, Bus(mouse))
    port.speechless = True
    assert open_usb(None, Bus(mouse, port)).name == "usb:7-2"


def test_two_hosts_on_one_port(port: Port) -> None:
    first = open_usb(None, Bus(port))
    with pytest.raises(DeviceRefusedError, match="another program is using the device"):
        open_usb(None, Bus(port))
    first.close()
    open_usb(None, Bus(port)).close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENODEV, "the device was unplugged"),
        (errno.ETIMEDOUT, "the device does not answer"),
        (errno.EPIPE, "refuses the transfer"),
        (errno.EOVERFLOW, "sends more than it may"),
        (errno.EIO, "connection lost"),
    ],
)
@pytest.mark.parametrize("number", [1, 2, 4, 5, 8])
def test_a_transfer_that_fails(port: Port, code: int, said: str, number: int) -> None:
    """Whichever it is: an error that says it, in time, and the interface is free again."""
    port.fails[number] = code

    def flash() -> None:
        with Device(open_usb(None, Bus(port))) as device:
            device.run(client.variable("product"))
            device.run(client.download(SIZE, [bytes(SIZE)]))
            device.run(client.command("flash:system"))

    with pytest.raises(DeviceError, match=said) as caught:
        flash()
    assert caught.value.where == "usb:S1" and caught.value.exit_code == 6
    assert not port.taken


def test_no_permission(port: Port) -> None:
    port.fails[1] = errno.EACCES
    with (
        pytest.raises(DeviceRefusedError, match="no permission") as caught,
        Device(open_usb(None, Bus(port))) as device,
    ):
        device.run(client.variable("product"))
    assert "udev" in (caught.value.hint or "")


@pytest.mark.parametrize("endpoints", [[], [(IN, BULK)], [(IN, BULK), (OUT, INTERRUPT)]])
def test_an_interface_without_bulk_endpoints(port: Port, endpoints: list[tuple[int, int]]) -> None:
    port.endpoints = endpoints
    with pytest.raises(DeviceError, match="no pair of bulk endpoints"):
        open_usb(None, Bus(port))
    assert not port.taken


def test_a_silent_device(port: Port) -> None:
    class Silent(FastbootDevice):
        def hear(self, message: bytes) -> list[bytes]:
            return []

    port.device = Silent({})
    with pytest.raises(DeviceError, match="does not answer"), Device(open_usb(None, Bus(port))) as device:
        device.run(client.variable("product"))


def test_random_answers_end_well(port: Port) -> None:
    random = Random(5)
    for _ in range(300):
        port.answers = [random.randbytes(random.choice((0, 3, 4, 60, 512, 700))) for _ in range(random.randrange(6))]
        with Device(open_usb(None, Bus(port))) as device:
            try:
                device.run(
                    random.choice((client.variable("all"), client.download(4, [b"abcd"]), client.upload("u", 900)))
                )
            except ErofsEdgeError:
                continue


def test_the_command_lists_them_and_takes_the_only_one(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["fastboot", *arguments])

    buses = [Bus(Port(FastbootDevice({}), "S2"), port, Port(FastbootDevice({}), "S3", (3, 1, 2)))]
    monkeypatch.setattr("erofs_edge.transport.fastboot.usb._libusb", lambda: buses[-1])
    assert run("devices").stdout == "usb:S1\nusb:S2\n"
    assert json.loads(run("devices", "--json").stdout) == {"devices": ["usb:S1", "usb:S2"]}
    assert run("getvar", "product").exit_code == 2, "which one?"
    assert run("-s", "usb:S1", "getvar", "product").stdout == "product: simulated\n"
    buses.append(Bus(port))
    assert run("getvar", "product").stdout == "product: simulated\n"
    assert run("flashing", "unlock").exit_code == 7, "this one has no lock"
    assert port.device.log[-1] == "flashing unlock"
    assert run("flashing", "open").exit_code == 2
    buses.append(Bus())
    assert (run("devices").exit_code, run("devices").stdout) == (0, "")
