# SPDX-License-Identifier: Apache-2.0
"""A fastboot device on a USB device controller of this machine, through the kernel's FunctionFS.

As root, make a gadget in configfs, mount its function `ffs.NAME`, call `serve_functionfs` with that folder, and bind
the gadget to a controller; without such hardware, to that of the module dummy_hcd, whose devices are plugged into the
same machine. docs/simulator.md has the commands.

Linux: Documentation/usb/functionfs.rst, include/uapi/linux/usb/functionfs.h, include/uapi/linux/usb/ch9.h.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from struct import Struct

from erofs_edge.simulator.fastboot import FastbootDevice

CLASS, SUBCLASS, PROTOCOL = 0xFF, 0x42, 0x03
"""of the interface: the fastboot specification, "Transport and Framing\""""
DESCRIPTORS, STRINGS = 3, 2
"""FUNCTIONFS_DESCRIPTORS_MAGIC_V2, FUNCTIONFS_STRINGS_MAGIC"""
FULL_SPEED, HIGH_SPEED = 1, 2
"""FUNCTIONFS_HAS_FS_DESC, FUNCTIONFS_HAS_HS_DESC"""
INTERFACE, ENDPOINT, BULK = 4, 5, 2
"""USB_DT_INTERFACE, USB_DT_ENDPOINT, USB_ENDPOINT_XFER_BULK"""
IN, OUT = 0x81, 0x02
"""endpoint addresses; the kernel chooses others if the controller requires it"""
PACKETS = {FULL_SPEED: 64, HIGH_SPEED: 512}
"""bytes of a bulk packet at each speed (USB 2.0, 5.8.3)"""
PACKET = max(PACKETS.values())
LARGEST = 1 << 16  # bytes of one read or write
ENGLISH = 0x409
_HEAD, _STRINGS_HEAD = Struct("<IIIII"), Struct("<IIIIH")
_INTERFACE, _ENDPOINT = Struct("<BBBBBBBBB"), Struct("<BBBBHB")


def descriptors() -> bytes:
    """The first block for FunctionFS: one interface with a bulk endpoint each way, at full and at high speed."""
    body = b""
    for packet in PACKETS.values():
        body += _INTERFACE.pack(_INTERFACE.size, INTERFACE, 0, 0, 2, CLASS, SUBCLASS, PROTOCOL, 1)
        for address in (IN, OUT):
            body += _ENDPOINT.pack(_ENDPOINT.size, ENDPOINT, address, BULK, packet, 0)
    count = 3  # descriptors per speed
    return _HEAD.pack(DESCRIPTORS, _HEAD.size + len(body), FULL_SPEED | HIGH_SPEED, count, count) + body


def strings() -> bytes:
    """The second block: the interface's name."""
    text = b"fastboot\0"
    return _STRINGS_HEAD.pack(STRINGS, _STRINGS_HEAD.size + len(text), 1, 1, ENGLISH) + text


@contextmanager
def serve_functionfs(device: FastbootDevice, folder: Path) -> Iterator[None]:
    """Serve the device behind the FunctionFS mounted at `folder`; its gadget can be bound from now on.

    Unbind the gadget before the block ends: its end waits for the transfer in progress. Raises OSError if the kernel
    refuses.
    """
    control = os.open(folder / "ep0", os.O_RDWR)
    try:
        os.write(control, descriptors())
        os.write(control, strings())
        to_host, from_host = os.open(folder / "ep1", os.O_WRONLY), os.open(folder / "ep2", os.O_RDONLY)
        calls = partial(os.read, from_host), partial(os.write, to_host)
        thread = threading.Thread(target=converse, args=(device, *calls), daemon=True)
        thread.start()
        try:
            yield
        finally:
            thread.join()
            os.close(to_host)
            os.close(from_host)
    finally:
        os.close(control)


def converse(device: FastbootDevice, read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
    """Messages in, answers out, until an endpoint fails: the gadget is unbound, or the host has gone.

    read(size) is a transfer: it ends after a short packet, or after `size` bytes.
    """
    with suppress(OSError):
        while True:
            message = read(reading(device.missing))
            for answer in device.hear(message) if message else ():
                for at in range(0, len(answer), LARGEST):
                    write(answer[at : at + LARGEST])


def reading(missing: int) -> int:
    """Bytes to read if `missing` are still to come, or a command: whole packets, so that none is cut, and no more than
    needed, because a read only ends with a short packet or with the last one requested."""
    return min(max(-(-missing // PACKET), 1) * PACKET, LARGEST)
