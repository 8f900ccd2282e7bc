# SPDX-License-Identifier: Apache-2.0
"""Hash and read the disk behind a U-Boot in fastboot mode by `oem run`, without any I/O here.

Fastboot has no command for reading a partition in U-Boot (`fetch` is not implemented). A U-Boot with
CONFIG_FASTBOOT_OEM_RUN runs commands for the host, but does not return their output; `getvar:NAME` returns the variable
`fastboot.NAME` of its environment (U-Boot 2025.01, drivers/fastboot/fb_command.c `run_ucmd`, fb_getvar.c
`fastboot_getvar`). A board consents by setting two of them: `edge-buffer`, the hexadecimal address of memory that may
be overwritten, and `edge-disk`, the number of the MMC device that it flashes.

Commands and answers have 64 bytes at most (include/fastboot.h FASTBOOT_COMMAND_LEN, FASTBOOT_RESPONSE_LEN), so frequent
commands are first stored in variables, and only the first 232 bits of a SHA-256 are returned, which suffice. No traces
remain: the environment is never saved.
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
WORD = 8  # bytes that one `setexpr.q` reads from memory
WORDS = 3
"""per answer, which has 59 bytes: a blank and at most 16 digits for each"""
TRIES = 4
"""attempts to read or write the disk before a failure counts: U-Boot waits a second for a card to answer, and now and
then a card, or an emulator on a busy host, is slower (drivers/mmc/sdhci.c SDHCI_READ_STATUS_TIMEOUT)"""
DIGEST = 29
"""bytes of a SHA-256 that fit in an answer"""

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
    """What has been set up on one device. Each method is a generator as in `client`; all raise DeviceRefusedError if a
    command fails on the device, ProtocolError if its answer is malformed."""

    def __init__(self, buffer: int, disk: int) -> None:
        self._buffer, self._disk = buffer, disk
        self._told = False

    def start_of(self, partition: str) -> Talk[int]:
        """Byte offset of a partition on the disk. Raises DeviceRefusedError if there is none of this name."""
        yield from _run(f"part start mmc {self._disk} {partition} fastboot.ev")
        return _number((yield from _get("ev"))) * SECTOR

    def digests(self, ranges: Sequence[tuple[int, int]]) -> Talk[list[bytes]]:
        """The first DIGEST bytes of the SHA-256 of each (offset, length) of the disk, in multiples of SECTOR, PIECE_MAX
        at most."""
        yield from self._prepare()
        found = []
        for offset, length in ranges:
            yield from self.tried(partial(self._load, offset, length, "ex"))
            found.append(_digest((yield from _get("eo"))))
        return found

    def read(self, offset: int, length: int) -> Talk[bytes]:
        """What the disk holds, in whole sectors, PIECE_MAX at most. Slow, eight bytes at a time: only for a few
        sectors.
        """
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
        """Run something repeatable, TRIES times in all if the device refuses it. Before each retry the disk is set up
        anew, because after a failure the device does not even know its partitions."""
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
        # `mmc` does not see a device found late on its bus until something looks for its partitions
        yield from _run(f"part list mmc {self._disk};mmc dev {self._disk};setenv eb {self._buffer:x}")
        for name, value in _STORED.items():
            yield from _run(f"setenv {name} '{value}'")
        self._told = True


def consents() -> Talk[UBoot | None]:
    """The device, if it is a U-Boot that allows these queries; None for any other."""
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
    """Decode an answer. Anything malformed proves nothing: the result equals no digest."""
    try:
        raw = bytes.fromhex(text[: 2 * DIGEST])
    except ValueError:
        return b""
    return raw if len(raw) == DIGEST else b""
