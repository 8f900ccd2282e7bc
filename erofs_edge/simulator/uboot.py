# SPDX-License-Identifier: Apache-2.0
"""A simulated U-Boot console: autoboot, the hush shell's command line, the commands that flashing uses, `loady`.

Its mistakes, and the time that they take, are those of U-Boot 2025.01 (common/xyzModem.c, common/cli_readline.c): a
file receiver waits for two seconds of silence after a bad header, answers a repeated block, and gives up after twenty
tries.
"""

from __future__ import annotations

import binascii
import lzma
import re
import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Literal

from erofs_edge.simulator.serial_line import Line, Program

SOH, STX, ETX, EOT, ACK, NAK, CAN, AGAIN = 0x01, 0x02, 0x03, 0x04, 0x06, 0x15, 0x18, ord("C")
CHAR_TIMEOUT = 2.0
RETRIES = 20
DISK_RATE, MEMORY_RATE = 20e6, 200e6  # bytes a second
BASE = 0x40200000
LINE_MAX = 512
BAUDS = (9600, 115200, 230400, 460800, 921600, 1500000)


@dataclass
class UBoot:
    """A board at its serial console.

    disk      its contents
    kind      what it is: virtio 0, usb 0 once it was looked for, or mmc 0 beside a slot without a card
    crc_name  its name for the checksum: crc32, or CRC32 if it has no other hash (common/hash.c)
    variables of its environment, which identify the board
    lost      commands that this build lacks
    bauds     rates that `setenv baudrate` accepts
    deaf      rates that it switches to but then receives nothing at
    on_write  called with (offset, data) before each write to the disk; what it returns is written. It may raise
              ResetError
    log       command lines, as run
    stop      the keys that stop the autoboot; b"" if any key does
    system    what is printed by the system that starts otherwise, and has the console from then on; b"" if none does
    """

    disk: bytearray
    kind: Literal["virtio", "mmc", "usb"] = "virtio"
    crc_name: str = "crc32"
    variables: dict[str, str] = field(default_factory=lambda: {"board": "sim"})
    lost: frozenset[str] = frozenset()
    bauds: tuple[int, ...] = BAUDS
    deaf: frozenset[int] = frozenset()
    on_write: Callable[[int, bytes], bytes] = lambda _offset, data: data
    baud: int = 115200
    prompt: bytes = b"=> "
    memory: bytearray = field(default_factory=lambda: bytearray(64 << 20))
    log: list[str] = field(default_factory=list)
    received: int = 0  # number of accepted blocks
    refused: int = 0  # number of blocks requested again
    code: int = 0
    stop: bytes = b""
    system: bytes = b""
    _set: dict[str, str] = field(default_factory=dict)  # variables set by commands; a reset forgets them
    _rate: int = 0  # at power-on

    def boot(self, line: Line) -> Program:
        """From power-on, or a reset: the countdown, then the prompt."""
        self._line = line
        self._rate = self.baud = self._rate or self.baud
        self._set, self.code = {}, 0
        self.memory[:] = b"\xee" * len(self.memory)
        line.emit(b"\r\nU-Boot 2025.01-sim\r\n\r\nDRAM:  256 MiB\r\n\x1b[?25h")
        line.emit(b"Autoboot in 2 seconds\r\n" if self.stop else b"Hit any key to stop autoboot:  2 ")
        if not (yield from self._stopped()):
            line.emit(b"\b\b\b 0 \r\n" + (self.system or b"nothing to boot\r\n"))
            while self.system:
                yield None
        while True:
            line.emit(b"\r\n" + self.prompt)
            text = yield from self._readline()
            if text:
                self.log.append(text)
                yield from self._execute(text)

    def _stopped(self) -> Generator[float | None, int | None, bool]:
        """Whether the right keys come, each within two seconds of the one before."""
        heard = b""
        while (byte := (yield 2.0)) is not None:
            heard += bytes([byte])
            if heard.endswith(self.stop):
                return True
        return False

    def _readline(self) -> Generator[float | None, int | None, str]:
        text = bytearray()
        while True:
            byte = yield None
            if byte in (13, 10):
                return text.decode("latin-1").strip()
            if byte == ETX:
                self._line.emit(b"<INTERRUPT>\r\n" + self.prompt)
                text.clear()
            elif byte in (8, 127):
                text[-1:] = b""
                self._line.emit(b"\b \b")
            elif byte is not None and 32 <= byte < 127 and len(text) < LINE_MAX:
                text.append(byte)
                self._line.emit(bytes([byte]))

    def _execute(self, text: str) -> Generator[float | None, int | None, None]:
        self._line.emit(b"\r\n")
        for part in text.split(";"):
            for step in part.split("&&"):
                words = self._expanded(step).split()
                if not words:
                    continue
                action = getattr(self, f"_do_{words[0].replace('.', '_')}", None)
                if action is None or words[0] in self.lost:
                    self._say(f"Unknown command '{words[0]}' - try 'help' without arguments")
                    self.code = 1
                else:
                    code = action(*words[1:])
                    self.code = (yield from code) if isinstance(code, Generator) else code
                if self.code and "&&" in part:
                    break

    def _expanded(self, text: str) -> str:
        known = {"?": str(self.code), **self._set}
        return re.sub(r"\$(\?|\w+)", lambda found: known.get(found[1], ""), text)

    def _say(self, text: str) -> None:
        self._line.emit(text.replace("\n", "\r\n").encode("latin-1") + b"\r\n")

    def _at(self, address: str, length: int) -> slice:
        start = int(address, 16) - BASE
        if not 0 <= start <= start + length <= len(self.memory):
            raise IndexError(f"{address} and {length} bytes are not in memory")
        return slice(start, start + length)

    def _do_help(self) -> int:
        absent = {*self.lost, *({"virtio", "mmc", "usb"} - {self.kind})}
        names = [name[4:] for name in dir(self) if name.startswith("_do_") and name[4:] not in absent]
        self._say("\n".join(f"{name:<10}- does it" for name in names))
        return 0

    def _do_version(self) -> int:
        self._say("U-Boot 2025.01-sim")
        return 0

    def _do_echo(self, *words: str) -> int:
        self._say(" ".join(words))
        return 0

    def _do_printenv(self, *names: str) -> int:
        values = {"serial#": "0815", "loadaddr": "0x40200000", "stdin": "serial,usbkbd", "stdout": "serial,vidconsole"}
        values |= self.variables | self._set
        missing = [name for name in names if name not in values]
        self._say("\n".join(f"{name}={values[name]}" for name in names or values if name in values))
        self._say("\n".join(f'## Error: "{name}" not defined' for name in missing))
        return int(bool(missing))

    def _do_bdinfo(self) -> int:
        end = BASE + len(self.memory) + (32 << 20)
        self._say(f"DRAM bank   = 0x0\n-> start    = 0x40000000\n-> size     = 0x20000000\nsp start    = 0x{end:x}")
        return 0

    def _do_virtio(self, verb: str, *words: str) -> int:
        if verb == "info":
            self._say(
                f"Device 0: 1af4 VirtIO Block Device\n  Type: Hard Disk\n  Capacity: ({len(self.disk) // 512} x 512)"
            )
        return self._move(verb, *words) if verb in ("read", "write") else 0

    def _do_usb(self, verb: str, *words: str) -> int:
        if verb in ("read", "write"):
            return self._move(verb, *words)
        started = "usb start" in "".join(self.log)
        if verb == "info":
            self._say("1: Hub,  USB Revision 2.0")
        elif verb == "storage" and started:
            self._say(f"  Device 0: Vendor: QEMU Rev: 2.5+\n    Capacity: ({len(self.disk) // 512} x 512)")
        elif verb == "storage":
            self._say("No storage devices, perhaps not 'usb start'ed..?")
        return 0 if started or verb == "info" else 1

    def _do_mmc(self, verb: str, *words: str) -> int:
        if verb == "list":
            self._say("mmc@7e300000: 0 (SD)\nmmc@7e340000: 1")
        elif verb == "dev" and words != ("0",):
            self._say("MMC: no card present")
            return 1
        elif verb == "dev":
            self._say("switch to partitions #0, OK\nmmc0 is current device")
        elif verb == "info":
            self._say(f"Device: mmc@7e300000\nRd Block Len: 512\nCapacity: {len(self.disk) / (1 << 20):.1f} MiB")
        elif verb in ("read", "write"):
            return self._move(verb, *words)
        return 0

    def _move(self, verb: str, address: str, block: str, count: str) -> int:
        start, size = int(block, 16) * 512, int(count, 16) * 512
        self._line.busy(size / DISK_RATE)
        self._say(f"\n{self.kind} {verb}: device 0 block # {start // 512}, count {size // 512} ...")
        if start + size > len(self.disk):
            if self.kind == "mmc":
                self._say(f"MMC: block number 0x{(start + size) // 512:x} exceeds max(0x{len(self.disk) // 512:x})")
            self._say("ERROR")
            return 1
        if verb == "write":
            self.disk[start : start + size] = self.on_write(start, bytes(self.memory[self._at(address, size)]))
        else:
            self.memory[self._at(address, size)] = self.disk[start : start + size]
        self._say("OK")
        return 0

    def _do_crc32(self, address: str, length: str) -> int:
        size = int(length, 16)
        self._line.busy(size / MEMORY_RATE)
        value = zlib.crc32(self.memory[self._at(address, size)])
        self._say(f"{self.crc_name} for {int(address, 16):08x} ... {int(address, 16) + size - 1:08x} ==> {value:08x}")
        return 0

    def _do_md_b(self, address: str, count: str) -> int:
        data = self.memory[self._at(address, int(count, 16))]
        for at in range(0, len(data), 16):
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data[at : at + 16])
            self._say(f"{int(address, 16) + at:08x}: {data[at : at + 16].hex(' ')}  {text}")
        return 0

    def _do_mw_b(self, address: str, value: str, count: str) -> int:
        size = int(count, 16)
        self.memory[self._at(address, size)] = bytes([int(value, 16)]) * size
        return 0

    def _do_unzip(self, source: str, target: str, _limit: str) -> int:
        return self._unpack(target, zlib.decompressobj(31).decompress, source)

    def _do_lzmadec(self, source: str, target: str, _limit: str) -> int:
        return self._unpack(target, lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress, source)

    def _unpack(self, target: str, decompress: Callable[[bytes], bytes], source: str) -> int:
        try:
            data = decompress(bytes(self.memory[self._at(source, 8 << 20)]))
        except (zlib.error, lzma.LZMAError):
            self._say("Error: cannot unpack")
            return 1
        self._line.busy(len(data) / MEMORY_RATE)
        self.memory[self._at(target, len(data))] = data
        self._say(f"Uncompressed size: {len(data)} = {len(data):#X}")
        return 0

    def _do_setenv(self, name: str, value: str = "") -> int | Generator[float | None, int | None, int]:
        self._set[name] = value
        return self._switch(int(value)) if name == "baudrate" else 0

    def _switch(self, baud: int) -> Generator[float | None, int | None, int]:
        if baud not in self.bauds:
            self._say(f"## Baudrate {baud} bps not supported")
            return 1
        self._say(f"## Switch baudrate to {baud} bps and press ENTER ...")
        self._line.busy(0.1)
        self.baud = baud
        while (yield None) != 13 or baud in self.deaf:
            pass
        return 0

    def _do_loady(self, address: str) -> Generator[float | None, int | None, int]:
        self._say(f"## Ready for binary (ymodem) download to 0x{int(address, 16):08X} at {self.baud} bps...")
        receiver = _Receiver(self._line)
        try:
            data = yield from receiver.run()
        except _AbortedError as error:
            if str(error) != "Cancelled":
                self._line.emit(bytes([CAN] * 4) + b"\b\b\b\b")
                while (yield CHAR_TIMEOUT) is not None:
                    pass
            self._say(f"\n{error}")
            return 1
        finally:
            self.received += receiver.taken
            self.refused += receiver.refused
            if receiver.data:
                self.memory[self._at(address, len(receiver.data))] = receiver.data
        while (yield 0.0) is not None:
            pass
        self._line.busy(0.25)
        self._say(f"## Total Size      = 0x{len(data):08x} = {len(data)} Bytes")
        return 0


class _AbortedError(Exception):
    """The receiver gave up."""


class _Receiver:
    """The receiver of YMODEM, with U-Boot's quirks."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.data = bytearray()
        self.taken = self.refused = 0
        self._ack = False

    def run(self) -> Generator[float | None, int | None, bytes]:
        self.line.emit(b"C")
        while True:
            kind, number, content = yield from self._head()
            if kind == "block":
                break
            if kind == "cancel":
                raise _AbortedError("Cancelled")
            if kind == "timeout":
                self.line.busy(0.5)
                self.line.emit(b"C")
        size = 0
        if number == 0:
            self._ack = True
            size = int(content[content.index(0) + 1 :].split(b"\0")[0].split(b" ")[0] or b"0")
        yield from self._blocks()
        return bytes(self.data[:size] if size else self.data)

    def _blocks(self) -> Generator[float | None, int | None, None]:
        expected, tries = 1, RETRIES
        while tries:
            tries -= 1
            kind, number, content = yield from self._head()
            if kind == "block" and number == expected:
                self.data += content
                self.taken += 1
                self._ack, expected, tries = True, expected + 1 & 0xFF, RETRIES
                continue
            if kind == "block" and number == expected - 1 & 0xFF:
                self.line.emit(bytes([ACK]))
                continue
            if kind == "cancel":
                raise _AbortedError("Cancelled")
            if kind == "end":
                self.line.emit(bytes([ACK]) + b"C")
                yield from self._head()
                self.line.emit(bytes([ACK]))
                return
            self.refused += 1
            self.line.emit(b"C")
        raise _AbortedError("Timed out")

    def _head(self) -> Generator[float | None, int | None, tuple[str, int, bytes]]:
        if self._ack:
            self.line.emit(bytes([ACK]))
            self._ack = False
        heard = bytearray()
        while (byte := (yield CHAR_TIMEOUT)) not in (SOH, STX):
            if byte is None:
                yield from self._flush()
                self.line.busy(0.25)
                return "timeout", 0, b""
            heard.append(byte)
            if heard == bytes([EOT]):
                self.line.emit(bytes([ACK]))
                return "end", 0, b""
            if heard.count(CAN) + heard.count(ETX) == 3:
                return "cancel", 0, b""
        return (yield from self._packet(128 if byte == SOH else 1024))

    def _packet(self, size: int) -> Generator[float | None, int | None, tuple[str, int, bytes]]:
        packet = bytearray()
        while len(packet) < size + 4:
            more = yield CHAR_TIMEOUT
            if more is None:
                return "timeout", 0, b""
            packet.append(more)
        if packet[0] ^ packet[1] != 0xFF:
            yield from self._flush()
            return "frame", 0, b""
        content = bytes(packet[2:-2])
        if binascii.crc_hqx(content, 0) != int.from_bytes(packet[-2:], "big"):
            return "checksum", 0, b""
        return "block", packet[0], content

    def _flush(self) -> Generator[float | None, int | None, None]:
        while (yield CHAR_TIMEOUT) is not None:
            pass
