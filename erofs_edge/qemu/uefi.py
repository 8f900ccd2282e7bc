# SPDX-License-Identifier: Apache-2.0
"""A board with UEFI firmware as an emulated machine: firmware and variables in two flash devices, and its slots.

The variables contain our keys and are fresh in each run: what firmware writes to them is discarded with the run's
folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from erofs_edge.boot.uefi import FLASH_SIZE, IMAGES, VARIABLES, ImageName, activated, choose, parse_name
from erofs_edge.disk.fat_read import Entry, Volume
from erofs_edge.errors import ErofsEdgeError, FormatError
from erofs_edge.manifest.model import Qemu, size_bytes
from erofs_edge.qemu.machine import Wiring, wiring_arguments
from erofs_edge.toolbox.emulator import escaped

Read = Callable[[int, int], bytes]
WHOLE = 1 << 40
"""bytes: more than any partition; `read` stops at its end"""


def flash_images(code: Path, folder: Path) -> tuple[Path, Path]:
    """(firmware, variables) of a build, padded to their full size, in `folder`. Raises ErofsEdgeError."""
    found = []
    for source in (code, code.with_name(VARIABLES)):
        target = folder / source.name
        try:
            shutil.copyfile(source, target)
            with target.open("r+b") as file:
                file.truncate(FLASH_SIZE)
        except OSError as error:
            raise ErofsEdgeError(
                f"cannot copy the machine's firmware: {error.strerror}", where=str(source), hint="build again"
            ) from error
        found.append(target)
    return found[0], found[1]


def uefi_arguments(qemu: Qemu, code: Path, variables: Path, wiring: Wiring) -> list[str]:
    """QEMU's arguments, without the program."""
    return [*firmware_arguments(qemu, code, variables), *wiring_arguments(wiring)]


def firmware_arguments(qemu: Qemu, code: Path, variables: Path) -> list[str]:
    """The machine and its two flash devices, nothing else."""
    flashes = []
    for path, more in ((code, ",readonly=on"), (variables, "")):
        flashes += ["-drive", f"if=pflash,format=raw,file={escaped(path)}{more}"]
    return [
        "-no-user-config", "-nodefaults", "-display", "none", "-machine", qemu.machine, "-cpu", qemu.cpu,
        "-m", f"{size_bytes(qemu.memory) >> 20}M", "-smp", str(qemu.smp), *flashes,
    ]  # fmt: skip


class Esp:
    """The EFI system partition of a disk; read(offset, length) returns its bytes, none from beyond its end."""

    def __init__(self, read: Read) -> None:
        """Raises FormatError if there is no FAT volume."""
        self._volume = Volume(read, WHOLE)
        self._read = read
        self.entries: dict[str, Entry] = {entry.path: entry for entry in self._volume.files()}

    def images(self) -> dict[ImageName, Entry]:
        """The kernel images by their names."""
        found = {}
        for path, entry in self.entries.items():
            folder, _, name = path.rpartition("/")
            if folder.casefold() == IMAGES.casefold() and (parsed := parse_name(name)) is not None:
                found[parsed] = entry
        return found

    def content(self, entry: Entry) -> bytes:
        """The bytes of a file."""
        return self._volume.content(entry.clusters, entry.size)

    def next_slot(self) -> str:
        """The slot that systemd-boot starts. Raises FormatError if there is none."""
        return choose(list(self.images())).slot

    def replaced(self, entry: Entry, data: bytes) -> list[tuple[int, bytes]]:
        """(byte offset in the partition, bytes) to write so that a file has other content of the same size, one item
        per cluster.

        Raises FormatError for another size.
        """
        if len(data) != entry.size:
            raise FormatError(f"{len(data)} bytes do not take the place of {entry.size}", where=entry.path)
        size = self._volume.cluster
        return [
            (self._volume.offset(number), data[at : at + size])
            for at, number in zip(range(0, len(data), size), entry.clusters, strict=False)
            if data[at : at + size] != self._read(self._volume.offset(number), min(size, len(data) - at))
        ]

    def with_slot(self, slot: str) -> dict[str, bytes]:
        """All files, named so that `slot` starts next and has all its attempts. Raises UsageError if there is no
        such slot.
        """
        names = {str(old): str(new) for old, new in activated(list(self.images()), slot).items()}
        files = {}
        for path, entry in self.entries.items():
            folder, _, name = path.rpartition("/")
            files[f"{folder}/{names.get(name.lower(), name)}"] = self.content(entry)
        return files
