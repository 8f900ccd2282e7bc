# SPDX-License-Identifier: Apache-2.0
"""A bus for pyusb that is not there: simulated fastboot devices behind two bulk endpoints each."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import usb.core
from usb.backend import IBackend

from erofs_edge.simulator.fastboot import FastbootDevice

PACKET = 512
IN, OUT = 0x81, 0x01
BULK, INTERRUPT = 2, 3


def failure(code: int) -> usb.core.USBError:
    return usb.core.USBError("failed", None, code)


class Port:
    """One device. `kind`: class, subclass and protocol of its second interface, the first is something else's.

    fails   errno of the transfer with that number, from then on
    """

    def __init__(
        self, device: FastbootDevice, serial: str = "S1", kind: tuple[int, int, int] = (0xFF, 0x42, 3)
    ) -> None:
        self.device, self.serial, self.kind = device, serial, kind
        self.taken = self.speechless = False
        self.endpoints = [(IN, BULK), (OUT, BULK)]
        self.fails: dict[int, int] = {}
        self.transfers = 0
        self.largest = 0
        self.answers: list[bytes] = []

    def step(self) -> None:
        self.transfers += 1
        for number, code in self.fails.items():
            if self.transfers >= number:
                raise failure(code)


class Bus(IBackend):  # type: ignore[misc]
    """What libusb would be."""

    def __init__(self, *ports: Port) -> None:
        self.ports = ports

    def enumerate_devices(self) -> Iterator[Port]:
        return iter(self.ports)

    def get_device_descriptor(self, dev: Port) -> Any:
        return SimpleNamespace(
            bLength=18, bDescriptorType=1, bcdUSB=0x200, bDeviceClass=0, bDeviceSubClass=0, bDeviceProtocol=0,
            bMaxPacketSize0=64, idVendor=0x18D1, idProduct=0x4EE0, bcdDevice=1, iManufacturer=0, iProduct=0,
            iSerialNumber=0 if dev.speechless else 3, bNumConfigurations=1, address=self.ports.index(dev) + 1, bus=7,
            port_number=1, port_numbers=(1,), speed=3,
        )  # fmt: skip

    def get_configuration_descriptor(self, dev: Port, config: int) -> Any:
        if config:
            raise IndexError
        return SimpleNamespace(
            bLength=9, bDescriptorType=2, wTotalLength=0, bNumInterfaces=2, bConfigurationValue=1, iConfiguration=0,
            bmAttributes=0x80, bMaxPower=50, extra_descriptors=[],
        )  # fmt: skip

    def get_interface_descriptor(self, dev: Port, intf: int, alt: int, config: int) -> Any:
        if intf > 1 or alt:
            raise IndexError
        kind = dev.kind if intf else (3, 1, 1)
        return SimpleNamespace(
            bLength=9, bDescriptorType=4, bInterfaceNumber=intf, bAlternateSetting=0,
            bNumEndpoints=len(dev.endpoints) if intf else 0, bInterfaceClass=kind[0], bInterfaceSubClass=kind[1],
            bInterfaceProtocol=kind[2], iInterface=0, extra_descriptors=[],
        )  # fmt: skip

    def get_endpoint_descriptor(self, dev: Port, ep: int, intf: int, alt: int, config: int) -> Any:
        address, kind = dev.endpoints[ep]
        return SimpleNamespace(
            bLength=7, bDescriptorType=5, bEndpointAddress=address, bmAttributes=kind, wMaxPacketSize=PACKET,
            bInterval=0, bRefresh=0, bSynchAddress=0, extra_descriptors=[],
        )  # fmt: skip

    def open_device(self, dev: Port) -> Port:
        return dev

    def close_device(self, dev_handle: Port) -> None:
        pass

    def get_configuration(self, dev_handle: Port) -> int:
        return 1

    def claim_interface(self, dev_handle: Port, intf: int) -> None:
        if dev_handle.taken:
            raise failure(errno.EBUSY)
        dev_handle.taken = True

    def release_interface(self, dev_handle: Port, intf: int) -> None:
        dev_handle.taken = False

    def ctrl_transfer(
        self, dev_handle: Port, bmRequestType: int, bRequest: int, wValue: int, wIndex: int, data: Any, timeout: int
    ) -> int:
        index = wValue & 0xFF
        text = b"\x09\x04" if not index else dev_handle.serial.encode("utf-16-le")
        raw = bytes([len(text) + 2, 3]) + text
        data[: len(raw)] = type(data)("B", raw)
        return len(raw)

    def bulk_write(self, dev_handle: Port, ep: int, intf: int, data: Any, timeout: int) -> int:
        assert (ep, intf) == (OUT, 1) and timeout > 0
        dev_handle.step()
        dev_handle.largest = max(dev_handle.largest, len(data))
        dev_handle.answers += dev_handle.device.hear(bytes(data))
        return len(data)

    def bulk_read(self, dev_handle: Port, ep: int, intf: int, buff: Any, timeout: int) -> int:
        """One transfer: it ends with a short packet, and what follows whole packets is in it too."""
        assert (ep, intf) == (IN, 1) and timeout > 0
        dev_handle.step()
        if not dev_handle.answers:
            raise failure(errno.ETIMEDOUT)
        got = b""
        while dev_handle.answers and len(got) < len(buff):
            first = dev_handle.answers.pop(0)
            room = len(buff) - len(got)
            got += first[:room]
            if first[room:]:
                dev_handle.answers.insert(0, first[room:])
            elif len(first) % PACKET:
                break
        buff[: len(got)] = type(buff)("B", got)
        return len(got)
