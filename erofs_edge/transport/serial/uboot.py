# SPDX-License-Identifier: Apache-2.0
"""Use a stock U-Boot over its console: list its disks, send it data, write, read back, checksum.

Everything written is read back from the disk on the device and its CRC-32 compared with ours. Commands can be repeated,
so a line that loses or corrupts bytes only costs time.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from erofs_edge.errors import DeviceError, DeviceRefusedError, VerificationError
from erofs_edge.transport.serial import ymodem
from erofs_edge.transport.serial.console import ATTEMPTS, CTRL_C, ENTER, LINE_MAX, Console, LostError
from erofs_edge.transport.serial.line import BITS_PER_BYTE, Exchange, Io
from erofs_edge.transport.serial.pack import pack
from erofs_edge.transport.serial.ymodem import TransferError

SECTOR = 512
ROW = 16  # bytes that `md.b` prints per line
WINDOW_SECONDS = 20  # seconds on the line per window; starting the receiver costs a fiftieth of that
WINDOW_MIN, WINDOW_MAX = 64 << 10, 4 << 20  # bytes
SLOWEST_DISK = 256 << 10
"""bytes per second, for deadlines; an emulator, whose latency is larger, gets proportionally more time"""
USUAL_LATENCY = 0.25  # seconds, for a port of this machine
MARK = "edge_io"
"""variable with the name of the disk's command. It is set for the session, and a board that was reset has none: then
`$edge_io write` is no command, and nothing that the memory happens to hold is written to the disk"""
BEYOND = 0xFFFFFF00
"""a sector beyond the end of any card, at 2 TB"""
SPOILT = 1.12
"""bytes sent per byte of data above which further windows go in short blocks: more of those arrive whole"""
LOSSES = 1  # commands that had to be typed again, for the same
TRANSFERS = 6  # attempts to transfer one window
ANSWERS = 20  # malformed answers in a row
RESERVE = 32 << 20
"""bytes below U-Boot itself that are left alone: stack, heap, video"""
NEEDED = ("crc32", "loady")
VARIABLES = ("board", "board_name", "serial#", "stdin", "stdout", "loadaddr", "kernel_addr_r")
KINDS = ("virtio", "mmc", "scsi", "nvme", "usb")
FINDS = {"virtio": "virtio scan", "scsi": "scsi scan", "nvme": "nvme scan", "usb": "usb start"}
"""commands that make U-Boot scan for disks of a kind if it has not done so (cmd/virtio.c, scsi.c, nvme.c, usb.c)"""
LISTS = {"usb": "usb storage"}
"""commands that list them, where that is not `KIND info`"""
FIND_WAIT = 60.0  # seconds; buses are slow
OF_INTEREST = {*NEEDED, *KINDS, "bdinfo", "blkcache", "lzmadec", "reset", "unlz4", "unzip"}
_CAPACITY = re.compile(r"Device (\d+):.*?\((\d+) x (\d+)\)", re.DOTALL)
_CRC = re.compile(r"crc32 for ([0-9a-f]+) \.\.\. ([0-9a-f]+) ==> ([0-9a-f]{8})", re.IGNORECASE)
"""a build without any other hash prints CRC32 (common/hash.c, without CONFIG_HASH), like Debian's for the Raspberry
Pi
"""
_ROW = re.compile(r"^([0-9a-f]{8,16}): ((?:[0-9a-f]{2} ){16})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Storage:
    """A disk of the device: U-Boot's command for it, its number, its size in bytes. A size of 0 is unknown."""

    kind: str
    number: int
    size: int

    @property
    def select(self) -> str:
        return f"{self.kind} dev {self.number}"

    @property
    def name(self) -> str:
        return f"{self.kind} {self.number}"


@dataclass(frozen=True, slots=True)
class Device:
    """What is known of a board from its console.

    commands  names of U-Boot's commands
    staging   (start, end) of memory that may be used, bytes
    """

    version: str
    commands: frozenset[str]
    variables: dict[str, str]
    staging: tuple[int, int]

    @property
    def board(self) -> str:
        return self.variables.get("board_name") or self.variables.get("board", "")

    @property
    def serial(self) -> str:
        return self.variables.get("serial#", "")


def learn(console: Console) -> Exchange[Device]:
    """Find out what an opened console offers. Raises DeviceRefusedError if a required command is missing."""
    commands = yield from _commands(console)
    if not commands:
        raise DeviceRefusedError(
            "this is not U-Boot's prompt: `help` lists none of its commands",
            hint="if another system has started, reset the board",
        )
    if missing := [name for name in NEEDED if name not in commands]:
        raise DeviceRefusedError(
            f"this U-Boot has no {' and no '.join(missing)}",
            hint="build U-Boot with CONFIG_CMD_LOADB and CONFIG_CMD_CRC32",
        )
    version = (yield from console.run("version")).output.splitlines()
    said = yield from console.agreed(f"printenv {' '.join(VARIABLES)}")
    variables = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    bank = (yield from console.agreed("bdinfo")) if "bdinfo" in commands else ""
    for name in ("stdin", "stdout"):  # also polling a keyboard, or drawing on a screen, takes longer than a byte does
        if "," in variables.get(name, ""):
            yield from console.run(f"setenv {name} serial")
    if "blkcache" in commands:
        yield from console.run("blkcache configure 0 0")
    return Device(next(iter(version), ""), commands, variables, _staging(bank, variables))


def _commands(console: Console) -> Exchange[frozenset[str]]:
    """The relevant commands that `help` lists. Up to three lists are combined: noise may spoil a name but never
    invents one.
    """
    found: set[str] = set()
    for _ in range(3):
        said = (yield from console.run("help")).output
        found |= set(re.findall(r"^(\S+)\s+- ", said, re.MULTILINE)) & OF_INTEREST
        if found >= {*NEEDED, "bdinfo"}:
            break
    return frozenset(found)


def _staging(bdinfo: str, variables: dict[str, str]) -> tuple[int, int]:
    """Free memory: from the image load address to below U-Boot, which lies at the end of a bank."""
    try:
        start = int(variables.get("loadaddr") or variables["kernel_addr_r"], 16)
    except (KeyError, ValueError):
        raise DeviceRefusedError("U-Boot has no loadaddr", hint="at its prompt: setenv loadaddr ADDRESS") from None
    end = start + 3 * WINDOW_MAX
    banks = re.findall(r"-> start\s*= 0x([0-9a-f]+)\s*-> size\s*= 0x([0-9a-f]+)", bdinfo)
    for begin, size in ((int(a, 16), int(b, 16)) for a, b in banks):
        if begin <= start < begin + size:
            top = [begin + size, *(int(a, 16) for a in re.findall(r"sp start\s*= 0x([0-9a-f]+)", bdinfo))]
            end = min(x for x in top if x > start) - RESERVE
    return start, end


def disks(console: Console, device: Device, kinds: Iterable[str] = KINDS) -> Exchange[list[Storage]]:
    """The device's disks, ordered by kind."""
    found = []
    for kind in kinds:
        if kind not in device.commands:
            continue
        if kind == "mmc":
            found += yield from _cards(console, device.staging[0])
            continue
        yield from console.run(FINDS[kind], wait=FIND_WAIT)
        said = yield from console.agreed(LISTS.get(kind, f"{kind} info"))
        found += [Storage(kind, int(n), int(count) * int(size)) for n, count, size in _CAPACITY.findall(said)]
    return found


def _cards(console: Console, memory: int) -> Exchange[list[Storage]]:
    """SD cards and eMMC. A number exists if it can be selected. Reading a sector beyond the end makes U-Boot report
    where the end is (drivers/mmc/mmc.c `mmc_bread`); the capacity it prints otherwise is rounded."""
    found = []
    for number in re.findall(r": (\d+)", (yield from console.agreed("mmc list"))):
        if not (yield from console.run(f"mmc dev {number}")).ok:
            continue
        said = yield from console.agreed(f"mmc read {memory:x} {BEYOND:x} 1")
        told = re.search(r"exceeds max\(0x([0-9a-f]+)\)", said)
        size = int(told[1], 16) * SECTOR if told else _capacity((yield from console.agreed("mmc info")))
        found.append(Storage("mmc", int(number), size))
    return found


def _capacity(said: str) -> int:
    """The size from `mmc info`, which has one decimal; 0 if it is missing."""
    size, unit = re.search(r"Capacity: ([\d.]+) ([KMG])iB", said), {"K": 10, "M": 20, "G": 30}
    return int(float(size[1]) * (1 << unit[size[2]])) if size else 0


def window_size(baud: int) -> int:
    """Bytes that are sent, written and verified at once."""
    size = WINDOW_MIN
    while size < baud // BITS_PER_BYTE * WINDOW_SECONDS and size < WINDOW_MAX:
        size *= 2
    return size


class Disk:
    """One disk of one device. Offsets and lengths in bytes, whole sectors."""

    def __init__(self, console: Console, device: Device, storage: Storage) -> None:
        self.console, self.device, self.storage = console, device, storage
        self._window = 0
        self._spoilt = False
        self.sent = 0  # bytes of packets sent
        room = (device.staging[1] - device.staging[0]) // 3 // 4096 * 4096
        if room < WINDOW_MIN:
            raise DeviceRefusedError("the device has no memory to load data into", where=storage.name)
        self.room = min(room, WINDOW_MAX)
        self._data = device.staging[0]
        self._packed = self._data + self.room
        self._back = self._packed + self.room
        self._zeros = 0  # bytes at _packed that are known to be zeros
        self._marked = False

    def checksums(self, ranges: list[tuple[int, int]]) -> Exchange[list[int]]:
        """CRC-32 of each (offset, length) of the disk, at most `room` bytes each."""
        sums: list[int] = []
        lost, line_max = 0, LINE_MAX - 30
        while len(sums) < len(ranges):
            steps, taken, total = [self.storage.select], 0, 0
            for offset, length in ranges[len(sums) :]:
                step = f"{self._move('read', self._back, offset, length)} && crc32 {self._back:x} {length:x}"
                if taken and (len(" && ".join([*steps, step])) > line_max or total + length > WINDOW_MAX):
                    break
                steps.append(step)
                taken, total = taken + 1, total + length
            try:
                attempts = ATTEMPTS if taken == 1 else ATTEMPTS // 2
                wait = self._deadline(2 * total)
                result = yield from self.console.run(" && ".join(steps), wait=wait, attempts=attempts)
            except DeviceError:
                if taken == 1:
                    raise
                line_max = 0  # noise corrupts a long line every time, a short one now and then
                continue
            if not result.ok:
                raise (yield from self._why("cannot read the disk", result.output))
            found = [int(value, 16) for _, _, value in _CRC.findall(result.output)]
            if len(found) == taken:
                sums, lost = sums + found, 0
            elif (lost := lost + 1) == ANSWERS:
                raise self._unsaid(result.output)
        return sums

    def read(self, offset: int, length: int) -> Exchange[bytes]:
        """Bytes of the disk, as text over the line: for tables and records. Sectors of zeros cost only a checksum."""
        sectors = [(at, SECTOR) for at in range(offset, offset + length, SECTOR)]
        sums = yield from self.checksums(sectors)
        pieces = []
        for (at, size), check in zip(sectors, sums, strict=True):
            data = bytes(size)
            if check != zlib.crc32(data):
                data = yield from self._dump(at, check)
            pieces.append(data)
        return b"".join(pieces)

    def _dump(self, offset: int, check: int) -> Exchange[bytes]:
        """Dump one sector by `md`. Noise differs from one dump to the next, so the value seen most often counts for
        each row, until all rows have a checksum that the device reports; that is read again, too."""
        line = f"{self.storage.select} && {self._move('read', self._back, offset, SECTOR)} && md.b {self._back:x} 200"
        seen: dict[int, Counter[str]] = {row: Counter() for row in range(self._back, self._back + SECTOR, ROW)}
        checks = {check}
        for _ in range(TRANSFERS):
            said = yield from self._must(line, self._deadline(SECTOR))
            for address, values in _ROW.findall(said):
                if (row := int(address, 16)) in seen:
                    seen[row][values] += 1
            if all(seen.values()):
                data = bytes.fromhex("".join(values.most_common(1)[0][0] for values in seen.values()))
                if zlib.crc32(data) in checks:
                    return data
            checks.update((yield from self.checksums([(offset, SECTOR)])))
        raise DeviceError(f"the sector at {offset:#x} reads differently each time", where=self.storage.name)

    def write(self, offset: int, data: bytes, like: int | None = None) -> Exchange[int]:
        """Make the disk hold `data` (at most `room` bytes) at `offset`; return the number of bytes sent for it.

        like  where the same bytes were written to the disk before: if they are still there, they are copied

        Data that is already there is not sent. Raises VerificationError if the disk returns something else.
        """
        check = zlib.crc32(data)
        if (yield from self.checksums([(offset, len(data))])) == [check]:
            return 0
        before = self.sent
        if like is None or (yield from self._loaded(like, len(data))) != check:
            yield from self._bring(data, check)
        yield from self._store(self._data, offset, len(data), check)
        return self.sent - before

    def zero(self, offset: int, length: int) -> Exchange[None]:
        """Zero a range; only the command is sent."""
        while length:
            span = min(length, self.room)
            check = zlib.crc32(bytes(span))
            if (yield from self.checksums([(offset, span)])) != [check]:
                yield from self._mark()
                if self._zeros < span:
                    yield from self._must(f"mw.b {self._packed:x} 0 {span:x}", self._deadline(span))
                    self._zeros = span
                yield from self._store(self._packed, offset, span, check)
            offset, length = offset + span, length - span

    def copy(self, source: int, offset: int, length: int) -> Exchange[None]:
        """Make [offset, offset + length) equal to [source, source + length), on the device."""
        while length:
            span = min(length, self.room)
            check = yield from self._loaded(source, span)
            yield from self._store(self._data, offset, span, check)
            source, offset, length = source + span, offset + span, length - span

    def _loaded(self, source: int, length: int) -> Exchange[int]:
        """Load a range of the disk to memory at `_data`; return its checksum there."""
        yield from self._mark()
        load = self._move("read", self._data, source, length)
        line = f"{self.storage.select} && {load} && crc32 {self._data:x} {length:x}"
        for _ in range(ANSWERS):
            said = yield from self._must(line, self._deadline(2 * length))
            if found := _CRC.search(said):
                return int(found[3], 16)
        raise self._unsaid(said)

    def _unsaid(self, output: str) -> DeviceError:
        return DeviceError(f"the device returns no checksum: {_reason(output)}", where=self.storage.name)

    def _store(self, source: int, offset: int, length: int, check: int) -> Exchange[None]:
        """Write from memory to the disk and read it back as proof."""
        write = self._move("write", source, offset, length).replace(self.storage.kind, f"${MARK}", 1)
        line = (
            f"{self.storage.select} && {write}"
            f" && {self._move('read', self._back, offset, length)} && crc32 {self._back:x} {length:x}"
        )
        for _ in range(3):
            said = yield from self._must(line, self._deadline(3 * length))
            found = _CRC.search(said)
            if found and int(found[3], 16) == check:
                return
        raise VerificationError(
            f"the disk does not keep what was written at {offset:#x}", where=self.storage.name, hint="try another card"
        )

    def _bring(self, data: bytes, check: int) -> Exchange[None]:
        """Transfer data to memory at `_data`, in as few bytes as the device can unpack."""
        yield from self._mark()
        packed = pack(data, self.device.commands, self.console.baud)
        target = self._packed if packed.command else self._data
        if packed.command:
            self._zeros = 0
        expect = zlib.crc32(packed.data)
        yield from self._receive(packed.data, target, expect)
        if packed.command:
            line = f"{packed.line(target, self._data, len(data))} && crc32 {self._data:x} {len(data):x}"
            said = yield from self.console.run(line, wait=self._deadline(8 * len(data)))
            found = _CRC.search(said.output) if said.ok else None
            if not found or int(found[3], 16) != check:
                yield from self._receive(data, self._data, check)

    def _receive(self, data: bytes, target: int, check: int) -> Exchange[None]:
        """Transfer bytes until their checksum is right; what arrived of an interrupted transfer is kept."""
        done = 0
        for attempt in range(TRANSFERS):
            try:
                yield from self._transfer(data[done:], target + done)
                done = len(data)
            except TransferError as error:
                done += error.taken
                self._spoilt, self._window = True, int(attempt > 1)
                last = error.message
            except LostError as error:
                last = str(error)
            if done < len(data) or attempt:
                yield from self.console.interrupt(2)
            said = yield from self.console.run(f"crc32 {target:x} {len(data):x}", wait=self._deadline(len(data)))
            found = _CRC.search(said.output)
            if found and int(found[3], 16) == check:
                return
            if done == len(data):
                done, last = 0, "the checksum in memory differs"
        raise DeviceError(
            f"no data gets across the line: {last}", where=self.storage.name, hint="try a lower baud rate"
        )

    def _transfer(self, data: bytes, target: int) -> Exchange[None]:
        self._spoilt |= self.console.losses > LOSSES
        size = ymodem.SHORT if self._spoilt else ymodem.BLOCK
        yield from self.console.start(f"loady {target:x}", mark=True)
        sent = yield from ymodem.send(
            data,
            baud=self.console.baud,
            window=self._window,
            latency=self.console.latency,
            size=size,
            gone=b"\n" + self.console.prompt.strip(),
        )
        self.sent += sent
        self._spoilt |= len(data) >= WINDOW_MIN // 4 and sent > SPOILT * len(data)
        yield from self.console.finish()

    def _deadline(self, size: int) -> float:
        """Seconds that the device may be silent while it processes this many bytes of its disk."""
        return 10.0 + size / SLOWEST_DISK * max(1.0, self.console.latency / USUAL_LATENCY)

    def _move(self, verb: str, memory: int, offset: int, length: int) -> str:
        if offset % SECTOR or length % SECTOR:
            raise ValueError(f"{length} bytes at {offset:#x} are not whole sectors")
        return f"{self.storage.kind} {verb} {memory:x} {offset // SECTOR:x} {length // SECTOR:x}"

    def _must(self, line: str, wait: float) -> Exchange[str]:
        result = yield from self.console.run(line, wait=wait)
        if not result.ok:
            raise (yield from self._why("the device fails", result.output))
        return result.output

    def _mark(self) -> Exchange[None]:
        """Set the variable that a reset takes away; once, since the memory is filled only after that."""
        if not self._marked:
            result = yield from self.console.run(f"setenv {MARK} {self.storage.kind}")
            if not result.ok:
                raise (yield from self._why("the device fails", result.output))
            self._marked = True

    def _why(self, what: str, output: str) -> Exchange[DeviceError]:
        """The error for a failed command. A board that was reset has lost what was in its memory, and the disks that it
        had found."""
        if self._marked and not (yield from self.console.run(f"printenv {MARK}")).ok:
            return DeviceError("the board was reset meanwhile", where=self.storage.name)
        return DeviceError(f"{what}: {_reason(output)}", where=self.storage.name)


def set_baud(console: Console, baud: int) -> Exchange[bool]:
    """Change the rate of both ends; False if the device does not support it. Nothing is saved on the device.

    Raises DeviceError if the two ends lose each other.
    """
    before = console.baud
    yield Io(baud=baud)  # what the port cannot do is not asked of the board
    yield Io(baud=before)
    heard = yield from _ask_baud(console, baud)
    if b"Switch baudrate" not in heard:
        return False
    yield Io(baud=baud)
    console.baud = baud
    for _ in range(5):
        said = yield from console.quiet(ENTER)
        if console.prompt.strip() and console.prompt.strip() in said:
            return True
    yield Io(baud=before)  # the device may have kept its old rate
    console.baud = before
    said = yield from console.quiet(CTRL_C + ENTER)
    if console.prompt.strip() in said:
        return False
    raise DeviceError(f"no answer after the change to {baud} baud", hint="reset the board")


def _ask_baud(console: Console, baud: int) -> Exchange[bytes]:
    for _ in range(4):
        try:
            heard = yield from console.start(f"setenv baudrate {baud}")
        except LostError:
            yield from console.interrupt()
            continue
        return heard + (yield from console.quiet())
    return b""


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:120] if lines else "it gives no reason"
