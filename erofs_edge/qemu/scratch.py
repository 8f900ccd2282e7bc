# SPDX-License-Identifier: Apache-2.0
"""A sparse copy of a disk image, and the changes that a scenario makes to it. The image itself is never written."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from erofs_edge.boot.uefi import ImageName
from erofs_edge.disk import gpt, slots
from erofs_edge.disk.fat import build_fat
from erofs_edge.disk.layout import partition_names
from erofs_edge.disk.sparse import copy_data, data_extents
from erofs_edge.errors import CapacityError, ErofsEdgeError, FormatError, UsageError, place_within
from erofs_edge.manifest.model import Board
from erofs_edge.qemu.forge import Target
from erofs_edge.qemu.tamper import Tamper, partitions
from erofs_edge.qemu.uefi import Esp
from erofs_edge.writing import NO_SPACE, scratch_folder, write_exactly

PIECE = 4 << 20
FAT_EPOCH = 315_532_800
"""the earliest time in FAT, seconds since 1970"""


class Scratch:
    """An open disk image with its partition table; offsets are bytes of a partition."""

    def __init__(self, path: Path, board: Board, *, writable: bool = False) -> None:
        """Raises ErofsEdgeError if it cannot be read, FormatError if it has no partition table."""
        self.path = path
        self.board = board
        try:
            self._fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        except OSError as error:
            raise ErofsEdgeError(f"cannot open the disk image: {error.strerror}", where=str(path)) from error
        try:
            size = os.lseek(self._fd, 0, os.SEEK_END)
            self._table = gpt.decode(lambda at, length: os.pread(self._fd, length, at), size, board.disk.sector)
        except BaseException as error:
            os.close(self._fd)
            if isinstance(error, FormatError):
                place_within(error, path)
            raise

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """At most `length` bytes, none from beyond the partition."""
        start, size = self.place(name)
        return os.pread(self._fd, max(0, min(length, size - offset)), start + offset)

    def write(self, name: str, offset: int, data: bytes) -> None:
        start, size = self.place(name)
        if offset + len(data) > size:
            raise FormatError(f"partition {name!r} ends before byte {offset + len(data)}", where=str(self.path))
        os.pwrite(self._fd, data, start + offset)

    def next_slot(self) -> str:
        """The slot that the boot loader will start ('a')."""
        if self.board.boot.uefi is not None:
            return self._esp().next_slot()
        return slots.choose(self.state())[0].lower()

    def images(self) -> list[ImageName]:
        """The kernel images on the EFI system partition. Raises UsageError if there is no such partition."""
        return list(self._esp().images())

    def activate(self, slot: str) -> None:
        """Make the boot loader start this slot next. Raises UsageError if the board has no such slot."""
        if slot not in self._slots():
            raise UsageError(
                f"board '{self.board.board}' has no slot '{slot}'", hint=f"slots: {', '.join(self._slots())}"
            )
        if self.board.boot.uefi is not None:
            self._write_esp(self._esp().with_slot(slot))
        else:
            self.put_state(slots.activate(self.state(), slot))

    def damage(self, tamper: Tamper) -> list[str]:
        """Write the scenario's changes to every slot with content; return what and where, one phrase each.

        Raises FormatError if no slot has content, or if it was not made by a build.
        """
        done = []
        for name in partitions(tamper, self.board):
            if not any(self.read(name, 0, 4096)):
                continue
            for change in tamper.changes(Target(self.board, functools.partial(self.read, name))):
                self.write(name, change.offset, change.data)
                done.append(f"{change.what} of {name}")
        if tamper.content and not done:
            raise FormatError(f"this cannot be done to the disk: {tamper.title}", where=str(self.path))
        return done

    def state(self) -> slots.SlotState:
        """The slot state that the boot loader will use."""
        raw = self.read(self._state_name(), 0, slots.STATE_SIZE)
        try:
            return slots.decode_state(raw)[0]
        except FormatError:
            return slots.initial(self._slots())  # like the boot script

    def put_state(self, state: slots.SlotState) -> None:
        """Write both copies of the slot state."""
        self.write(self._state_name(), 0, slots.encode_state(state))

    def clear(self, name: str) -> None:
        """Write zeros wherever a partition has data."""
        start, size = self.place(name)
        for first, last in data_extents(self._fd, start + size, start):
            for at in range(first, last, PIECE):
                write_exactly(self._fd, bytes(min(PIECE, last - at)), at)

    def copy_from(self, source: Path, name: str, size: int) -> None:
        """Copy the first `size` bytes of a file to the start of a partition; holes leave what is there."""
        with source.open("rb") as file:
            copy_data(file.fileno(), self._fd, size, self.place(name)[0])

    def _slots(self) -> list[str]:
        return next((p.slots for p in self.board.disk.partitions.values() if p.slots), [])

    def _esp(self) -> Esp:
        return Esp(functools.partial(self.read, self._name_of("esp")))

    def _write_esp(self, files: dict[str, bytes]) -> None:
        """Replace the EFI system partition by a new one with these files."""
        name = self._name_of("esp")
        with scratch_folder("qemu") as folder:
            image = folder / "esp.img"
            build_fat(
                files, image, size=self.place(name)[1], label="ESP", serial=0, epoch=FAT_EPOCH,
                sector=self.board.disk.sector,
            )  # fmt: skip
            with image.open("rb") as file:
                while data := file.read(PIECE):
                    at = file.tell() - len(data)
                    if data != self.read(name, at, len(data)):
                        self.write(name, at, data)

    def _name_of(self, content: str) -> str:
        """The partition with that content, one for all slots. Raises UsageError if there is none."""
        for name, partition in self.board.disk.partitions.items():
            if partition.content == content:
                return partition_names(name, partition)[0]
        raise UsageError(f"board '{self.board.board}' has no partition with content '{content}'")

    def _state_name(self) -> str:
        for name, partition in self.board.disk.partitions.items():
            if partition.content == "slot-state":
                return partition_names(name, partition)[0]
        raise UsageError(f"board '{self.board.board}' keeps no slot state")

    def place(self, name: str) -> tuple[int, int]:
        """Start and size in bytes."""
        sector = self._table.sector_size
        for entry in self._table.partitions:
            if entry.name == name:
                return entry.first_lba * sector, (entry.last_lba - entry.first_lba + 1) * sector
        raise FormatError(f"the disk has no partition {name!r}", where=str(self.path))


def copy_sparse(source: Path, target: Path) -> Path:
    """Copy a disk image with its holes; return the target. Raises CapacityError if there is no room for its data."""
    try:
        with source.open("rb") as old, target.open("wb") as new:
            size = os.fstat(old.fileno()).st_size
            new.truncate(size)
            copy_data(old.fileno(), new.fileno(), size, 0)
        return target
    except EOFError as error:
        raise ErofsEdgeError("the disk image changed while it was being copied", where=str(source)) from error
    except OSError as error:
        if error.errno in NO_SPACE:
            raise CapacityError("no space left for a copy of the disk image", where=str(target)) from error
        raise ErofsEdgeError(f"cannot copy the disk image: {error.strerror}", where=str(source)) from error
