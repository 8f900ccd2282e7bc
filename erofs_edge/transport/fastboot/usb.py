# SPDX-License-Identifier: Apache-2.0
"""A fastboot device on USB: usb[:SERIAL]. The only file that knows pyusb, which is imported when one is opened.

An interface of class ff, subclass 42, protocol 03, with one bulk endpoint each way (the fastboot specification,
"Transport and Framing"). A message is a transfer; data may come in any number of them.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator
from typing import Any

from erofs_edge.errors import DeviceError, DeviceRefusedError, ToolError, UsageError

CLASS, SUBCLASS, PROTOCOL = 0xFF, 0x42, 0x03
TRANSFER = 1 << 20  # bytes of one transfer: the kernel divides it
RESPONSE = 512  # bytes: a packet of a fast device, which no response is larger than
SEND = 60.0  # seconds that a transfer to the device may take
WORK = 300.0  # seconds that a command may take between two messages


class UsbLink:
    """Messages over two bulk endpoints. `device` and `interface` are pyusb's; all errors are DeviceErrors."""

    def __init__(self, device: Any, interface: Any) -> None:
        import usb.core
        import usb.util

        self.name = name_of(device)
        self._device, self._number = device, interface.bInterfaceNumber
        # the second is a backend's answer to what the host's libusb cannot do
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
            # pyusb takes a view byte by byte
            part = array("B", bytes(view[at : at + TRANSFER]))
            try:
                done = self._out.write(part, int(SEND * 1000))
            except self._errors as error:
                raise self._told(error) from error
            if done != len(part):
                raise DeviceError(f"the device took {done} of {len(part)} bytes", where=self.name)

    def receive(self, left: int | None = None, patience: float = WORK) -> bytes:
        # no more is asked for than there is to come: what follows data would be taken for the end of it
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
    """The device with that serial number, or the only one. `backend`: pyusb's; None for libusb.

    Raises DeviceError where there is none, UsageError where there are several, DeviceRefusedError where another
    program has it, ToolError without libusb.
    """
    found = list(_devices(backend if backend is not None else _libusb()))
    named = [f"usb:{serial_of(device)}" for device, _ in found if serial_of(device)]
    wanted = [pair for pair in found if serial is None or serial_of(pair[0]) == serial]
    if not wanted:
        raise DeviceError(
            "there is no such device in fastboot mode on USB" if serial else "no device in fastboot mode on USB",
            where=f"usb:{serial}" if serial else "usb",
            hint=f"there are: {', '.join(named)}" if named else "is it plugged in, and in fastboot mode?",
        )
    if len(wanted) > 1:
        raise UsageError("several devices are in fastboot mode", hint=f"name one: {', '.join(named) or 'usb:SERIAL'}")
    return UsbLink(*wanted[0])


def names(backend: Any = None) -> list[str]:
    """The devices in fastboot mode, as usb:SERIAL, or usb:BUS-ADDRESS where one tells no serial number; sorted.

    Raises ToolError without libusb, DeviceError where it lists nothing.
    """
    return sorted(name_of(device) for device, _ in _devices(backend if backend is not None else _libusb()))


def name_of(device: Any) -> str:
    """How messages call it."""
    return f"usb:{serial_of(device) or f'{device.bus}-{device.address}'}"


def serial_of(device: Any) -> str:
    """Its serial number, '' where it has none or does not tell."""
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
    """pyusb's backend with the host's libusb, or the one of the Python package libusb-package."""
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
