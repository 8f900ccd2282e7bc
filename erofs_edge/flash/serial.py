# SPDX-License-Identifier: Apache-2.0
"""A board's disk behind a U-Boot console as a target. Hashing, copying and checking are done on the board, so that
little more than the differences crosses the serial line.

`serial:///dev/ttyUSB0?disk=mmc1&baud=921600`: the default disk is the first one of the board, the default rate that of
its console (`console=115200`).
"""

from __future__ import annotations

import errno
import hashlib
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from erofs_edge.errors import DeviceError, UsageError
from erofs_edge.flash.target import Ability, Identity, PlainTarget
from erofs_edge.transport.serial import uboot
from erofs_edge.transport.serial.console import Console
from erofs_edge.transport.serial.line import BITS_PER_BYTE, Exchange, T
from erofs_edge.transport.serial.port import Counted, Port, SerialPort, SocketPort, drive

CONSOLE = 115200
LATENCY = 0.25  # seconds, for a port of this machine
EMULATED = 2.0  # seconds, for an emulator that shares this machine with others
LISTEN = 20.0
"""seconds within which an emulated machine sends output. Its UART is not set up before that, and input sent earlier can
leave an otherwise idle machine deaf (seen with QEMU 10.0 and U-Boot's prompt)"""
_DISK = re.compile(r"([a-z]+)(\d+)")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a console is.

    baud  the rate to switch to
    disk  ('mmc', 1), None for the first
    stop  the keys that stop the autoboot, b"" if any key does
    """

    path: Path
    console: int
    baud: int
    disk: tuple[str, int] | None
    emulated: bool
    stop: bytes = b""


def parse_address(text: str) -> Address:
    """serial:///dev/ttyUSB0[?baud=RATE&console=RATE&disk=KIND+NUMBER&stop=KEYS], serial+unix:///SOCKET.

    Raises UsageError.
    """
    hint = "serial:///dev/ttyUSB0?baud=921600&disk=mmc1"
    try:
        parts = urlsplit(text)
    except ValueError:  # an unmatched bracket
        raise UsageError("not a serial address", where=text, hint=hint) from None
    asked = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    rates = [asked.get("console", str(CONSOLE)), asked.get("baud", asked.get("console", str(CONSOLE)))]
    disk = _DISK.fullmatch(asked["disk"]) if "disk" in asked else None
    stop = asked.get("stop", "").encode("utf-8", "surrogateescape")
    unknown = set(asked) - {"console", "baud", "disk", "stop"}
    if (
        parts.netloc
        or not parts.path.strip("/")
        or unknown
        or not all(rate.isdecimal() and int(rate) for rate in rates)
    ):
        raise UsageError("not a serial address", where=text, hint=hint)
    if "disk" in asked and (not disk or disk[1] not in uboot.KINDS):
        raise UsageError(f"no disk '{asked['disk']}'", where=text, hint=f"one of {', '.join(uboot.KINDS)} and a number")
    where = (disk[1], int(disk[2])) if disk else None
    return Address(Path(unquote(parts.path)), int(rates[0]), int(rates[1]), where, parts.scheme == "serial+unix", stop)


def open_serial(text: str) -> SerialTarget:
    """Open the target at an address: stop its autoboot and choose its disk. Raises UsageError, DeviceError, and
    DeviceRefusedError if the console cannot be used."""
    address = parse_address(text)
    port: Port = SocketPort(address.path) if address.emulated else SerialPort(str(address.path), address.console)
    try:
        return SerialTarget(port, address, EMULATED if address.emulated else LATENCY)
    except BaseException:
        port.close()
        raise


class SerialTarget(PlainTarget):
    """One disk of a board. Methods raise OSError if the line or the disk fails."""

    def __init__(self, port: Port, address: Address, latency: float) -> None:
        self._port = Counted(port)
        self._console = Console(address.console, latency, LISTEN if address.emulated else 0.0)
        self._run(self._console.open(other=address.baud if address.baud != address.console else 0, stop=address.stop))
        board = self._run(uboot.learn(self._console))
        found = self._find(board, address)
        self._disk = uboot.Disk(self._console, board, found)
        self._slow = address.console
        self._given: dict[bytes, int] = {}  # sha256 of each window written to the disk → where: slots are alike
        if address.baud != self._console.baud:
            self._run(uboot.set_baud(self._console, address.baud))
        self._identity = Identity(
            port.name, "serial", found.size, model=f"{board.board} {found.name}".strip(), serial=board.serial,
            product=board.board,
        )  # fmt: skip

    def _find(self, board: uboot.Device, address: Address) -> uboot.Storage:
        """The requested disk, or the first. Further kinds are not searched for: scanning a bus takes seconds."""
        seen: list[uboot.Storage] = []
        wanted = address.disk[0] if address.disk else ""
        for kind in sorted(uboot.KINDS, key=lambda kind: kind != wanted):
            found = self._run(uboot.disks(self._console, board, (kind,)))
            seen += found
            for storage in found:
                if address.disk in (None, (storage.kind, storage.number)):
                    return storage
        named = ", ".join(f"{storage.kind}{storage.number}" for storage in seen) or "none"
        raise DeviceError("the board has no such disk", where=self._port.name, hint=f"it has: {named}")

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def abilities(self) -> Ability:
        return Ability.READ | Ability.HASH | Ability.COPY | Ability.REBOOT

    @property
    def hash_name(self) -> str:
        return "crc32"

    @property
    def cheap_zeros(self) -> bool:
        return True

    @property
    def bytes_on_wire(self) -> int:
        return self._port.moved

    @property
    def rate(self) -> float:
        """Bytes per second of the line."""
        return self._console.baud / BITS_PER_BYTE

    def read(self, offset: int, length: int) -> bytes:
        first = offset // uboot.SECTOR * uboot.SECTOR
        last = min(-(-(offset + length) // uboot.SECTOR) * uboot.SECTOR, self._identity.size)
        with _as_os_error():
            raw = self._run(self._disk.read(first, max(0, last - first)))
        return raw[offset - first : offset - first + length]

    def holds(self, offset: int, want: bytearray) -> bool:
        return self.digests([(offset, len(want))]) == [zlib.crc32(want).to_bytes(4, "big")]

    def write(self, offset: int, data: bytes | memoryview) -> int:
        piece = bytes(data[: min(uboot.window_size(self._console.baud), self._disk.room)])
        name = hashlib.sha256(piece).digest()
        with _as_os_error():
            self._run(self._disk.write(offset, piece, self._given.get(name)))
        self._given[name] = offset
        return len(piece)

    def zero(self, offset: int, length: int) -> None:
        with _as_os_error():
            self._run(self._disk.zero(offset, length))

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield offset, offset + length

    def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        with _as_os_error():
            return [value.to_bytes(4, "big") for value in self._run(self._disk.checksums(list(ranges)))]

    def copy(self, source: int, offset: int, length: int) -> None:
        with _as_os_error():
            self._run(self._disk.copy(source, offset, length))

    def reboot(self) -> None:
        with _as_os_error():
            self._restore()
            self._run(self._console.start("reset"))

    def flush(self) -> None:
        """Nothing to do: U-Boot writes through, and each write was read back."""

    def finish(self) -> None:
        """Nothing to do: a disk already has its name."""

    def close(self) -> None:
        try:
            self._restore()
        except DeviceError:
            pass  # the line is gone; a reset restores the board's rate
        finally:
            self._port.close()

    def _restore(self) -> None:
        if self._console.baud != self._slow:
            self._run(uboot.set_baud(self._console, self._slow))

    def _run(self, exchange: Exchange[T]) -> T:
        return drive(exchange, self._port)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn errors into the OSError that a Target raises."""
    try:
        yield
    except DeviceError as error:
        advice = (error.hint or "").removesuffix(", and run the same command again")  # which is the caller's hint
        raise OSError(errno.EIO, f"{error.message} ({advice})" if advice else error.message) from error
