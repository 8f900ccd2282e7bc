# SPDX-License-Identifier: Apache-2.0
"""A fastboot device on USB: usb[:SERIAL]. The only file that uses pyusb, which is imported when a device is opened.

The interface has class ff, subclass 42, protocol 03 and one bulk endpoint each way (the fastboot specification,
"Transport and Framing"). A message is one transfer; data may take any number of them.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator
from typing import Any

from erofs_edge.errors import DeviceError, DeviceRefusedError, ToolError, UsageError

CLASS, SUBCLASS, PROTOCOL = 0xFF, 0x42, 0x03
TRANSFER = 1 << 20  # bytes of one transfer, which the kernel splits
RESPONSE = 512  # bytes: a packet of a fast device; no response is larger
SEND = 60.0  # seconds for one transfer to the device
WORK = 300.0  # seconds that a running command may take between two messages


class UsbLink:
    """Messages over two bulk endpoints. `device` and `interface` are pyusb objects; all errors are DeviceErrors."""

    def __init__(self, device: Any, interface: Any) -> None:
        import usb.core
        import usb.util

        self.name = name_of(device)
        self._device, self._number = device, interface.bInterfaceNumber
        # a backend raises the second for what the host's libusb does not support
        self._errors: tuple[type[Exception], ...] = (usb.core.USBError, NotImplementedError)
        try:
            usb.util.claim_interface(device, self._number)
        except usb.core.USBError as error:
            raise self._told(error) from error
        ends = {usb.util.endpoint_direction(end.bEndpointAddress): end for end in interface if _is_bulk(end)}
        if len(ends) != len(("in", "out")):
            self.close()
            raise DeviceError("the device has no pair of bulk endpoints", where=self.name)
        self._in, self._out = ends[usb.util.ENDPOINT_IN], ends[usb.util.ENDPOINT_OUT]

    def send(self, message: bytes | memoryview) -> None:
        view = memoryview(message)
        for at in range(0, len(view), TRANSFER):
            # pyusb copies a memory view byte by byte
            part = array("B", bytes(view[at : at + TRANSFER]))
            try:
                done = self._out.write(part, int(SEND * 1000))
            except self._errors as error:
                raise self._told(error) from error
            if done != len(part):
                raise DeviceError(f"the device took {done} of {len(part)} bytes", where=self.name)

    def receive(self, left: int | None = None, patience: float = WORK) -> bytes:
        # never ask for more than is still to come: what follows the data would be taken for its end
        size = RESPONSE if left is None else min(left, TRANSFER)
        try:
            return bytes(self._in.read(size, int(patience * 1000)))
        except self._errors as error:
            raise self._told(error) from error

    def close(self) -> None:
        import usb.util

        try:
            usb.util.release_interface(self._device, self._number)
        except self._errors:
            pass  # it is gone
        finally:
            usb.util.dispose_resources(self._device)

    def _told(self, error: Exception) -> DeviceError | DeviceRefusedError:
        code = getattr(error, "errno", None)
        if code == errno.EBUSY:
            return DeviceRefusedError(
                "another program is using the device", where=self.name, hint="wait for it to finish, or stop it"
            )
        if code == errno.EACCES:
            return DeviceRefusedError(
                "no permission to use the device",
                where=self.name,
                hint="run as root, or add a udev rule that gives your group access to the device",
            )
        said = {
            errno.ENODEV: "the device was unplugged",
            errno.ENOENT: "the device was unplugged",
            errno.EPIPE: "the device refuses the transfer",
            errno.ETIMEDOUT: "the device does not answer",
            errno.EOVERFLOW: "the device sends more than it may",
        }.get(code or 0, f"connection lost: {getattr(error, 'strerror', None) or error}")
        return DeviceError(said, where=self.name)


def open_usb(serial: str | None, backend: Any = None) -> UsbLink:
    """Open the device with this serial number, or the only one. `backend`: pyusb's; None for libusb.

    Raises DeviceError if there is none, UsageError if there are several, DeviceRefusedError if another program has it,
    ToolError without libusb.
    """
    found = list(_devices(backend if backend is not None else _libusb()))
    named = [f"usb:{serial_of(device)}" for device, _ in found if serial_of(device)]
    wanted = [pair for pair in found if serial is None or serial_of(pair[0]) == serial]
    if not wanted:
        raise DeviceError(
            "there is no such device in fastboot mode on USB" if serial else "no device in fastboot mode on USB",
            where=f"usb:{serial}" if serial else "usb",
            hint=f"there are: {', '.join(named)}" if named else "check that it is plugged in, and in fastboot mode",
        )
    if len(wanted) > 1:
        raise UsageError("several devices are in fastboot mode", hint=f"name one: {', '.join(named) or 'usb:SERIAL'}")
    return UsbLink(*wanted[0])


def names(backend: Any = None) -> list[str]:
    """The devices in fastboot mode, sorted, as usb:SERIAL, or usb:BUS-ADDRESS for those without a serial number.

    Raises ToolError without libusb, DeviceError if devices cannot be listed.
    """
    return sorted(name_of(device) for device, _ in _devices(backend if backend is not None else _libusb()))


def name_of(device: Any) -> str:
    """The device's name for messages."""
    return f"usb:{serial_of(device) or f'{device.bus}-{device.address}'}"


def serial_of(device: Any) -> str:
    """The serial number, '' if it is missing or cannot be read."""
    try:
        return str(device.serial_number or "")
    except (ValueError, OSError, NotImplementedError):
        return ""


def _devices(backend: Any) -> Iterator[tuple[Any, Any]]:
    """(device, its fastboot interface)"""
    import usb.core

    try:
        for device in usb.core.find(find_all=True, backend=backend):
            for configuration in device:
                for interface in configuration:
                    kind = (interface.bInterfaceClass, interface.bInterfaceSubClass, interface.bInterfaceProtocol)
                    if kind == (CLASS, SUBCLASS, PROTOCOL):
                        yield device, interface
    except usb.core.USBError as error:
        raise DeviceError(f"cannot list USB devices: {error.strerror or error}") from error


def _is_bulk(end: Any) -> bool:
    import usb.util

    return bool(usb.util.endpoint_type(end.bmAttributes) == usb.util.ENDPOINT_TYPE_BULK)


def _libusb() -> Any:
    """pyusb's backend with the host's libusb, or with that of the Python package libusb-package."""
    import usb.backend.libusb1

    backend = usb.backend.libusb1.get_backend()
    if backend is None:
        try:
            import libusb_package
        except ImportError:
            raise ToolError(
                "libusb is not installed", hint="apt-get install libusb-1.0-0, or pip install libusb-package"
            ) from None
        backend = libusb_package.get_libusb1_backend()
    if backend is None:
        raise ToolError("libusb cannot be loaded")
    return backend
