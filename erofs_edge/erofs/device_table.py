# SPDX-License-Identifier: Apache-2.0
"""Read images whose data is on extra devices (``struct erofs_deviceslot``).

Sources: ``fs/erofs/super.c`` (erofs_init_device, erofs_scan_devices) and ``data.c`` (erofs_map_dev).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import DEVICE_BITS, Backing, Window, broken, place
from erofs_edge.erofs.ondisk import Superblock
from erofs_edge.errors import ErofsEdgeError, ErofsFormatError, UsageError

_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_HASH = re.compile(rb"[0-9a-f]{64}")


class DeviceSlot(NamedTuple):
    """An extra device: its `blocks`, and `uniaddr`, its position in the flat address space (0 for none)."""

    tag: bytes
    blocks: int
    uniaddr: int


def read_slots(backing: Backing, raw: Superblock, blocks: int) -> tuple[DeviceSlot, ...]:
    """Read the device table of an image of `blocks` blocks. Raises ErofsFormatError if it or an address is
    impossible."""
    if not raw.extra_devices:
        return ()
    if not raw.feature_incompat & ondisk.INCOMPAT_DEVICE_TABLE:
        raise broken(f"{raw.extra_devices} devices in an image without a device table", ondisk.SUPER_OFFSET + 86)
    wide = raw.feature_incompat & ondisk.INCOMPAT_48BIT
    size = ondisk.DEVICE_SLOT.size
    table = backing.read(raw.devt_slotoff * size, raw.extra_devices * size, "device table")
    slots = []
    taken = [(0, blocks, 0)]
    for number, (tag, *low, high, uniaddr_high) in enumerate(ondisk.DEVICE_SLOT.iter_unpack(table), 1):
        own, uniaddr = (low[0] | high << 32, low[1] | uniaddr_high << 32) if wide else low
        slot = DeviceSlot(tag.split(b"\0", 1)[0], own, uniaddr)
        if slot.uniaddr:
            taken.append((slot.uniaddr, slot.uniaddr + slot.blocks, number))
        slots.append(slot)
    taken.sort()
    for (_, end, _), (start, _, number) in pairwise(taken):
        if start < end:
            raise broken(f"device {number} overlaps in the flat address space", (raw.devt_slotoff + number - 1) * size)
    return tuple(slots)


def is_uuid(tag: bytes) -> bool:
    """Whether a tag is the UUID of an image that serves as a device, as written by mkfs.erofs and by us."""
    return _UUID.fullmatch(tag) is not None


def is_hash(tag: bytes) -> bool:
    """Whether a tag is the sha256 of a device's blocks, as written by us."""
    return _HASH.fullmatch(tag) is not None


def image_uuid(path: Path) -> str | None:
    """Return the UUID of an image as text, None if it is not an image. Raises ErofsEdgeError if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(ondisk.SUPER_OFFSET)
            data = file.read(ondisk.SUPER_SIZE)
    except OSError as error:
        raise ErofsEdgeError(f"cannot read the device: {error.strerror}", where=str(path)) from error
    if len(data) < ondisk.SUPER_SIZE:
        return None
    raw = Superblock(*ondisk.SUPERBLOCK.unpack(data))
    return str(uuid.UUID(bytes=raw.uuid)) if raw.magic == ondisk.SUPER_MAGIC else None


def device_at(address: int, slots: Sequence[DeviceSlot], blkszbits: int) -> int:
    """Return the number of the device that an address belongs to, 0 for the image itself."""
    block = address >> blkszbits
    for number, slot in enumerate(slots, 1):
        if address >> DEVICE_BITS == number or 0 < slot.uniaddr <= block < slot.uniaddr + slot.blocks:
            return number
    return 0


def attach(
    backing: Backing, slots: Sequence[DeviceSlot], paths: Sequence[Path], blkszbits: int
) -> tuple[list[Backing], list[int]]:
    """Make the extra devices readable. Return (what was opened for that, numbers of the devices not found).

    Without paths, devices are searched for after the image itself, as kernels do. Raises UsageError for the wrong
    number of paths, ErofsEdgeError if a device cannot be read or is too short.
    """
    if paths and len(paths) != len(slots):
        raise UsageError(f"the image has {len(slots)} extra devices, {len(paths)} are given")
    opened: list[Backing] = []
    missing: list[int] = []
    try:
        for number, slot in enumerate(slots, 1):
            if not slot.blocks:
                continue
            size, at = slot.blocks << blkszbits, number << DEVICE_BITS
            start = slot.uniaddr << blkszbits
            if paths:
                device = Backing(paths[number - 1])
                opened.append(device)
                _check_tag(slot, number, paths[number - 1])
                if device.size < size:
                    raise ErofsFormatError(
                        f"device {number} is truncated: it has {device.size} bytes, the image says {size}",
                        where=str(paths[number - 1]),
                    )
                read: Callable[[int, int], bytes] = device.beyond
            elif slot.uniaddr and start + size <= backing.size:
                read = _behind(backing, start)
            else:
                missing.append(number)
                read = _missing(number, slot)
            backing.attach(Window(at, at + size, read, at))
            if slot.uniaddr:
                backing.attach(Window(start, start + size, read, at))
    except BaseException:
        for device in opened:
            device.close()
        raise
    return opened, missing


def _check_tag(slot: DeviceSlot, number: int, path: Path) -> None:
    """Check that an image serving as a device is the one named by the tag. A sha256 is verified only by `fs check`."""
    if is_uuid(slot.tag) and (found := image_uuid(path)) != slot.tag.decode():
        raise ErofsFormatError(
            f"device {number} is the wrong one: the image says {slot.tag.decode()}, the file "
            + (f"is image {found}" if found else "is no image"),
            where=str(path),
            hint="name the devices in order, each of the build that the image was made with: --device FILE",
        )


def _behind(backing: Backing, start: int) -> Callable[[int, int], bytes]:
    return lambda offset, length: backing.beyond(start + offset, length)


def _missing(number: int, slot: DeviceSlot) -> Callable[[int, int], bytes]:
    tag = slot.tag.decode("utf-8", "backslashreplace")

    def read(offset: int, _length: int) -> bytes:
        raise ErofsFormatError(
            f"the data lies on device {number}{f' ({tag})' if tag else ''}, which is not given",
            where=place(offset + (number << DEVICE_BITS)),
            hint="name the devices in order: --device FILE",
        )

    return read
