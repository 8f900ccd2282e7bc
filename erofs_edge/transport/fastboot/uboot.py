# SPDX-License-Identifier: Apache-2.0
"""A disk behind a U-Boot in fastboot mode: hashed and read there, by `oem run`, without a wire.

The protocol has no command for what a partition holds (`fetch` is not in U-Boot). A U-Boot with CONFIG_FASTBOOT_OEM_RUN
runs commands of ours, though without their output; a variable `fastboot.NAME` of its environment is what `getvar:NAME`
answers (U-Boot 2025.01, drivers/fastboot/fb_command.c `run_ucmd`, fb_getvar.c `fastboot_getvar`). It consents by two of
them: `edge-buffer`, the address of memory that may be overwritten, hexadecimal, and `edge-disk`, the number of the MMC
device that it flashes.

A command and an answer have 64 bytes at most (include/fastboot.h FASTBOOT_COMMAND_LEN, FASTBOOT_RESPONSE_LEN), so that
what is done often is kept in variables first, and of a SHA-256 the first 232 bits arrive, which are as good as all of
them. Nothing of it stays: the environment is never saved.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from erofs_edge.errors import DeviceRefusedError, ProtocolError
from erofs_edge.transport.fastboot import client

SECTOR = 512
COMMAND_MAX = 64  # bytes
PIECE_MAX = 8 << 20  # bytes that are read into memory at once
WORD = 8  # bytes that one `setexpr.q` takes from memory
WORDS = 3
"""of one answer, which has 59 bytes: a blank and at most 16 digits for each"""
TRIES = 4
"""times that the disk is read or written before a failure is believed: U-Boot waits a second for a card to answer, and
a card, or an emulator whose host is busy, is once in a while slower (drivers/mmc/sdhci.c SDHCI_READ_STATUS_TIMEOUT)"""
DIGEST = 29
"""bytes of a SHA-256 that an answer has room for"""

_STORED = {
    "er": "mmc read $eb $ea $en",
    "eh": "setexpr el $en * 200&&hash sha256 $eb $el eo",
    "ex": "run er&&run eh&&setenv fastboot.eo $eo",
    "ey": "setenv ev $ev $eq;setexpr ep $ep + 8",
    "ew": "setexpr.q eq *$ep;run ey",
    "ek": " ".join("1" * WORDS),
    "ez": "for i in $ek;do run ew;done",
    "eg": "run ez;setenv fastboot.ev $ev",
}

T = TypeVar("T")
Talk = Generator[client.Step, bytes, T]


class UBoot:
    """What has been told to one device. Each method is a generator as in `client`; all raise DeviceRefusedError where a
    command fails there, ProtocolError where its answer makes no sense."""

    def __init__(self, buffer: int, disk: int) -> None:
        self._buffer, self._disk = buffer, disk
        self._told = False

    def start_of(self, partition: str) -> Talk[int]:
        """Bytes before a partition on the disk. Raises DeviceRefusedError where there is none of this name."""
        yield from _run(f"part start mmc {self._disk} {partition} fastboot.ev")
        return _number((yield from _get("ev"))) * SECTOR

    def digests(self, ranges: Sequence[tuple[int, int]]) -> Talk[list[bytes]]:
        """The first DIGEST bytes of the SHA-256 of each (offset, length) of the disk; multiples of SECTOR, PIECE_MAX at
        most."""
        yield from self._prepare()
        found = []
        for offset, length in ranges:
            yield from self.tried(partial(self._load, offset, length, "ex"))
            found.append(_digest((yield from _get("eo"))))
        return found

    def read(self, offset: int, length: int) -> Talk[bytes]:
        """What the disk holds, sectors, PIECE_MAX at most. Eight bytes at a time: for a few sectors, no more."""
        yield from self._prepare()
        yield from self.tried(partial(self._load, offset, length, "er"))
        data = bytearray()
        while len(data) < length:
            yield from _run(f"setenv ev;setenv ep {self._buffer + len(data):x};run eg")
            words = (yield from _get("ev")).split()
            if len(words) != WORDS:
                raise ProtocolError(f"the device gives {len(words)} numbers where {WORDS} were asked for")
            for word in words:
                data += _number(word).to_bytes(WORD, "little")
        return bytes(data[:length])

    def tried(self, talk: Callable[[], Talk[T]]) -> Talk[T]:
        """What can be said again is said again where the device refuses it, TRIES times in all. In between it begins
        anew with its disk, of which it knows not even the partitions after a failure."""
        for _ in range(TRIES - 1):
            try:
                return (yield from talk())
            except DeviceRefusedError:
                with suppress(DeviceRefusedError):
                    yield from _run(f"mmc dev {self._disk};mmc rescan;part list mmc {self._disk}")
        return (yield from talk())

    def _load(self, offset: int, length: int, then: str) -> Talk[None]:
        if offset % SECTOR or length % SECTOR or not 0 < length <= PIECE_MAX:
            raise ValueError(f"{length} bytes at {offset} are no sectors")
        yield from _run(f"setenv ea {offset // SECTOR:x};setenv en {length // SECTOR:x};run {then}")

    def _prepare(self) -> Talk[None]:
        if self._told:
            return
        # a device on a bus that was found late is not there for `mmc` before somebody looks for its partitions
        yield from _run(f"part list mmc {self._disk};mmc dev {self._disk};setenv eb {self._buffer:x}")
        for name, value in _STORED.items():
            yield from _run(f"setenv {name} '{value}'")
        self._told = True


def consents() -> Talk[UBoot | None]:
    """The device, if it is a U-Boot that lets itself be asked; None for any other."""
    try:
        buffer, disk = _number((yield from _get("edge-buffer"))), int((yield from _get("edge-disk")), 10)
    except (DeviceRefusedError, ProtocolError, ValueError):
        return None
    return UBoot(buffer, disk) if 0 <= disk < 100 else None


def _run(text: str) -> Talk[None]:
    text = f"oem run:{text}"
    if len(text) > COMMAND_MAX:
        raise DeviceRefusedError(f"U-Boot takes commands of {COMMAND_MAX} bytes, this has {len(text)}: {text}")
    yield from client.command(text)


def _get(name: str) -> Talk[str]:
    outcome = yield from client.variable(name)
    return outcome.value


def _number(text: str) -> int:
    try:
        number = int(text, 16)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64:
        raise ProtocolError(f"the device says {text!r} instead of a number")
    return number


def _digest(text: str) -> bytes:
    """What makes no sense proves nothing: it equals no digest."""
    try:
        raw = bytes.fromhex(text[: 2 * DIGEST])
    except ValueError:
        return b""
    return raw if len(raw) == DIGEST else b""
