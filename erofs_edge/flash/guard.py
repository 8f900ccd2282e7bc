# SPDX-License-Identifier: Apache-2.0
"""Identify a block device and decide whether it may be overwritten: never one that this machine is using.

Sources: Linux Documentation/ABI/stable/sysfs-block (partition, holders, ro, removable, queue), proc(5)
(/proc/self/mountinfo, /proc/swaps).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from erofs_edge.errors import DeviceError, DeviceRefusedError
from erofs_edge.flash.target import Identity

ASKED = ("fastboot", "provision", "serial")
"""kinds of targets on which a board answers queries"""
SYSTEM_MOUNTS = ("/", "/boot", "/boot/efi", "/boot/firmware", "/efi", "/usr", "/var", "/home")


class Host(NamedTuple):
    """Paths at which the kernel reports about the system; tests replace them."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")


HOST = Host()


def identify(path: Path, devno: tuple[int, int], host: Host = HOST) -> Identity:
    """What the kernel knows about a block device (major, minor). Raises DeviceError if there is none."""
    folder = _folder(devno, host, path)
    device = folder / "device"
    size = int(_text(folder / "size") or 0) * 512
    if not size:
        raise DeviceError("there is no medium in the device", where=str(path), hint="insert the card")
    model = " ".join(filter(None, (_text(device / "vendor"), _text(device / "model") or _text(device / "name"))))
    return Identity(
        str(path),
        "block",
        size,
        int(_text(folder / "queue/logical_block_size") or 512),
        model,
        _text(device / "serial"),
        _text(folder / "removable") == "1",
        read_only=_text(folder / "ro") == "1",
    )


def refuse_unsafe(path: Path, devno: tuple[int, int], host: Host = HOST) -> None:
    """Raises DeviceRefusedError if the device is a partition, mounted, used as swap, or part of another device. A
    read-only device may be in use, since it can only be looked at."""
    folder = _folder(devno, host, path)
    if (folder / "partition").exists():
        raise DeviceRefusedError(
            "this is a partition, but a disk image must be written to a whole disk",
            where=str(path),
            hint=f"--to /dev/{folder.parent.name}",
        )
    if _text(folder / "ro") == "1":
        return
    members = dict(_members(folder))
    for name, mount in _mounts(host, members):
        if mount in SYSTEM_MOUNTS:
            raise DeviceRefusedError(f"this disk holds the running system: {name} is {mount}", where=str(path))
        raise DeviceRefusedError(f"{name} is mounted on {mount}", where=str(path), hint=f"umount {mount}")
    for name in _swaps(host, members):
        raise DeviceRefusedError(f"{name} is swap space of the running system", where=str(path))
    for name, above in _holders(folder):
        raise DeviceRefusedError(f"{name} is in use by {above} (LVM, RAID or an encrypted volume)", where=str(path))


def refuse_other(identity: Identity, serial: str | None, products: Sequence[str] = ()) -> None:
    """Raises DeviceRefusedError if the target's serial number is not the wanted one or is missing, or if the target is
    a board that is none of `products`."""
    refuse_other_board(identity, products)
    if serial is not None and identity.serial != serial:
        found = f"the serial number {identity.serial}" if identity.serial else "no serial number"
        raise DeviceRefusedError(f"this device has {found}, not {serial}", where=identity.path)


def refuse_other_board(identity: Identity, products: Sequence[str]) -> None:
    """Raises DeviceRefusedError if a board that can be asked for its identity is none of these; with none given, any
    answer is accepted."""
    if not products or identity.kind not in ASKED or {identity.product, *identity.names} & set(products):
        return
    said = " and ".join(f"'{name}'" for name in (identity.product, *identity.names) if name)
    wanted = " or ".join(f"'{product}'" for product in products)
    found = f"the device says {said}, not {wanted}" if said else f"the device does not say whether it is {wanted}"
    raise DeviceRefusedError(
        f"this is another board than the image is for: {found}",
        where=identity.path,
        hint="`product` in the board file lists the answers to accept",
    )


def refuse_locked(identity: Identity, unlocked: str) -> None:
    """Raises DeviceRefusedError if the device reports that it is locked (fastboot's variable `unlocked`)."""
    if unlocked.lower() in ("no", "false", "0"):
        raise DeviceRefusedError(
            "the device is locked and accepts no images",
            where=identity.path,
            hint="unlock it as its vendor describes, often: erofs-edge fastboot flashing unlock",
        )


def _folder(devno: tuple[int, int], host: Host, path: Path) -> Path:
    folder = (host.sys / "dev/block" / f"{devno[0]}:{devno[1]}").resolve()
    if not folder.is_dir():
        raise DeviceError("the kernel has no such block device", where=str(path))
    return folder


def _members(folder: Path) -> Iterator[tuple[str, str]]:
    """(major:minor, name) of a disk, its partitions, and everything built on top of them."""
    seen = set()
    todo = [folder, *_partitions(folder)]
    while todo:
        here = todo.pop().resolve()
        if here not in seen:
            seen.add(here)
            yield _text(here / "dev"), here.name
            todo += [*_listed(here / "holders"), *_partitions(here)]


def _partitions(folder: Path) -> list[Path]:
    return [child for child in _listed(folder) if (child / "partition").exists()]


def _holders(folder: Path) -> Iterator[tuple[str, str]]:
    for part in [folder, *_partitions(folder)]:
        for holder in _listed(part / "holders"):
            name = _text(holder.resolve() / "dm/name")
            yield part.name, f"{holder.name} ({name})" if name else holder.name


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _mounts(host: Host, members: dict[str, str]) -> list[tuple[str, str]]:
    """(device name, mount point) of the mounts of any member, the system's own mounts first.

    Matches the device number first and then the name, because btrfs mounts use a number of their own.
    """
    found = []
    for line in _text(host.proc / "self/mountinfo").splitlines():
        fields = line.split(" ")
        separator = fields.index("-") if "-" in fields else len(fields)
        if separator + 2 >= len(fields):
            continue
        mount, source = _unescape(fields[4]), _unescape(fields[separator + 2])
        name = members.get(fields[2]) or members.get(_devno(source))
        if name:
            found.append((name, mount))
    return sorted(found, key=lambda item: item[1] not in SYSTEM_MOUNTS)


def _swaps(host: Host, members: dict[str, str]) -> list[str]:
    lines = _text(host.proc / "swaps").splitlines()[1:]
    devices = [_devno(_unescape(line.split()[0])) for line in lines if line.strip()]
    return [members[devno] for devno in devices if devno in members]


def _devno(path: str) -> str:
    """'8:1' for the path of a block device, '' for anything else."""
    try:
        info = os.stat(path) if path.startswith("/") else None
    except OSError:
        return ""
    return f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}" if info is not None and info.st_rdev else ""


def _unescape(text: str) -> str:
    """Undo the escapes of /proc, which writes spaces as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
