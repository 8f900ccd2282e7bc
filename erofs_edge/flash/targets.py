# SPDX-License-Identifier: Apache-2.0
"""Parse `--to`: a registry of address schemes; anything without a scheme is a local path."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from erofs_edge.errors import UsageError
from erofs_edge.flash import guard
from erofs_edge.flash.local import BlockTarget, FileTarget
from erofs_edge.flash.target import Identity, Target

_LIKE_AN_ADDRESS = r"[A-Za-z][A-Za-z0-9+]+:"
"""at least two letters before the colon: C: is a disk on Windows"""


class Candidate(NamedTuple):
    """A target before anything is written to it. `open(bytes needed)` opens it."""

    identity: Identity
    open: Callable[[int], Target]


def _nbd(address: str, image: Path | None) -> Iterator[Candidate]:
    from erofs_edge.flash.nbd import NbdTarget
    from erofs_edge.transport.nbd.connect import parse_address
    from erofs_edge.transport.nbd.parallel import Connections

    target = NbdTarget(Connections(parse_address(address)))
    try:
        yield Candidate(target.identity, lambda _: target)
    finally:
        target.close()


def _fastboot(address: str, image: Path | None) -> Iterator[Candidate]:
    """fastboot://HOST[:PORT], fastboot+udp://HOST[:PORT], fastboot+usb://[SERIAL]: partitions are
    addressed by name, so an image with a partition table is required."""
    from erofs_edge.flash.fastboot_target import FastbootTarget
    from erofs_edge.flash.fastboot_uboot import UBootTarget
    from erofs_edge.flash.image import Image
    from erofs_edge.transport.fastboot.link import open_device
    from erofs_edge.transport.fastboot.uboot import consents

    if image is None:
        raise UsageError(
            "a fastboot device does not say where its partitions are",
            hint="add --image with the disk image of its build",
        )
    with Image(image) as source:
        table, size = source.table(), source.size
    if table is None:
        raise UsageError(
            "the image has no partitions", where=str(image), hint="erofs-edge fastboot flash PARTITION IMAGE"
        )
    scheme, _, host = address.partition("://")
    kind = scheme.partition("+")[2] or "tcp"
    device = open_device(f"{kind}:{host.rstrip('/')}")
    try:
        uboot, places = device.run(consents()), table.places()
        target = UBootTarget(device, uboot, places, size) if uboot else FastbootTarget(device, places, size)
        guard.refuse_locked(target.identity, target.unlocked)
        yield Candidate(target.identity, lambda _: target)
    finally:
        device.link.close()


def _provision(address: str, image: Path | None) -> Iterator[Candidate]:
    """provision://HOST[:PORT]: a board that runs our provisioning system."""
    from erofs_edge.flash.provision import open_provisioned

    target = open_provisioned(address)
    try:
        yield Candidate(target.identity, lambda _: target)
    finally:
        target.close()


def _serial(address: str, image: Path | None) -> Iterator[Candidate]:
    """serial:///dev/ttyUSB0?baud=921600&disk=mmc1: a board at its U-Boot prompt."""
    from erofs_edge.flash.serial import open_serial

    target = open_serial(address)
    try:
        yield Candidate(target.identity, lambda _: target)
    finally:
        target.close()


SCHEMES: dict[str, Callable[[str, Path | None], Iterator[Candidate]]] = {
    "fastboot": _fastboot,
    "fastboot+udp": _fastboot,
    "fastboot+usb": _fastboot,
    "nbd": _nbd,
    "nbds": _nbd,
    "nbd+unix": _nbd,
    "nbds+unix": _nbd,
    "provision": _provision,
    "provision+unix": _provision,
    "provisions": _provision,
    "serial": _serial,
    "serial+unix": _serial,
}


@contextmanager
def find_target(to: str, image: Path | None) -> Iterator[Candidate]:
    """The target at an address or path, for the duration of the block. `image`: what is to be written, if anything.

    Raises UsageError if there is none, DeviceRefusedError if it must not be written, DeviceError if it cannot be
    reached.
    """
    scheme, found, _ = to.partition("://")
    if not found:
        yield _local(to, image)
    elif scheme in SCHEMES:
        yield from SCHEMES[scheme](to, image)
    else:
        raise UsageError(f'unknown kind of address "{scheme}://"', hint=f"known: {', '.join(SCHEMES)}, or a path")


def _local(to: str, image: Path | None) -> Candidate:
    path = Path(to)
    try:
        info = path.stat()
    except FileNotFoundError:
        if not path.parent.is_dir() or str(path).startswith("/dev/"):
            raise UsageError("no such device or folder", where=str(path), hint="lsblk lists devices") from None
        if re.match(_LIKE_AN_ADDRESS, to):  # the form that `erofs-edge fastboot -s` accepts
            hint = f"addresses: {', '.join(f'{name}://' for name in SCHEMES)}; for a file ./{to}"
            raise UsageError("neither an address nor an existing file", where=to, hint=hint) from None
        return Candidate(Identity(str(path), "file", 0), lambda size: FileTarget(path, size))
    if stat.S_ISBLK(info.st_mode):
        device = path.resolve()
        devno = (os.major(info.st_rdev), os.minor(info.st_rdev))
        guard.refuse_unsafe(device, devno)
        identity = guard.identify(device, devno)
        return Candidate(identity, lambda _: BlockTarget(device, identity))
    if not stat.S_ISREG(info.st_mode):
        raise UsageError("neither a file nor a block device", where=str(path))
    if image is not None and path.samefile(image):
        raise UsageError("the target is the image itself", where=str(path))
    return Candidate(Identity(str(path), "file", info.st_size), lambda size: FileTarget(path, size))
