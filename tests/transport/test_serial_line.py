# SPDX-License-Identifier: Apache-2.0
"""The serial transport against the simulated U-Boot, in the line's own time: rates, noise, cuts, hostile consoles."""

from __future__ import annotations

import binascii
import contextlib
import random
import zlib
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erofs_edge.errors import DeviceError, DeviceRefusedError, ProtocolError, VerificationError
from erofs_edge.simulator.serial_line import Fault, Line, Program, QuickLine, SerialLine, no_fault
from erofs_edge.simulator.uboot import UBoot
from erofs_edge.transport.serial import uboot, ymodem
from erofs_edge.transport.serial.console import Console
from erofs_edge.transport.serial.pack import pack
from erofs_edge.transport.serial.port import drive

BLOCK_BYTES = 1033
"""bytes on the line of a block: noise of 1/BLOCK_BYTES for each byte hits every hundredth block once"""


def noise(seed: int, rate: float, *, both: bool = False) -> Fault:
    """Bytes that are changed, lost, doubled, or joined by others."""
    chance = random.Random(seed)

    def fault(way: str, _number: int, byte: int) -> bytes:
        if (way == "to host" and not both) or chance.random() >= rate:
            return bytes([byte])
        kind = chance.randrange(4)
        return (bytes([byte ^ 1 << chance.randrange(8)]), b"", bytes([byte] * 2), bytes([byte, chance.randrange(256)]))[
            kind
        ]

    return fault


def attach(
    device: UBoot, *, fault: Fault = no_fault, latency: float = 0.0, baud: int = 0
) -> tuple[SerialLine, uboot.Disk]:
    """A line to the device whose first disk is ready."""
    line = SerialLine(device, baud or device.baud, fault=fault, latency=latency)
    console = Console(baud or device.baud, 0.1)
    drive(console.open(), line)
    told = drive(uboot.learn(console), line)
    return line, uboot.Disk(console, told, drive(uboot.disks(console, told), line)[0])


def seconds_of(device: UBoot, data: bytes, *, fault: Fault = no_fault, latency: float = 0.0) -> float:
    """Time on the line to write `data`, window by window; the disk is right afterwards."""
    line, disk = attach(device, fault=fault, latency=latency)
    began = line.now
    step = uboot.window_size(device.baud)
    for at in range(0, len(data), step):
        drive(disk.write(at, data[at : at + step]), line)
    assert device.disk[: len(data)] == data
    return line.now - began


def dense(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def test_blocks_are_as_the_protocol_has_them() -> None:
    assert ymodem.block(1, b"123456789".ljust(128, b"\x1a"))[:3] == b"\x01\x01\xfe"
    assert ymodem.block(258, bytes(1024))[:3] == b"\x02\x02\xfd"
    # the check value of CRC-16/XMODEM
    assert binascii.crc_hqx(b"123456789", 0) == 0x31C3
    assert ymodem.header(4096)[3:9] == b"\x004096\0"


@pytest.mark.parametrize("baud", [115200, pytest.param(921600, marks=pytest.mark.long)])
def test_a_clean_line_carries_92_percent_payload_and_one_percent_of_damage_costs_at_most_15(baud: int) -> None:
    data = dense(uboot.window_size(baud))
    clean = seconds_of(UBoot(bytearray(4 << 20), baud=baud), data)
    assert len(data) * 10 / baud / clean >= 0.92
    hurt = seconds_of(UBoot(bytearray(4 << 20), baud=baud), data, fault=noise(baud, 0.01 / BLOCK_BYTES, both=True))
    assert clean / hurt >= 0.85


def test_usb_in_between_does_not_slow_a_fast_line() -> None:
    """Twelve milliseconds each way are a block's time: waiting for answers would halve the rate."""
    data = dense(256 << 10)
    near, far = (seconds_of(UBoot(bytearray(1 << 20), baud=921600), data, latency=wait) for wait in (0.0, 0.012))
    assert far <= 1.15 * near
    assert len(data) * 10 / 921600 / near >= 0.84  # an eighth of a window: what each costs once weighs eightfold


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 30), rate=st.sampled_from([0.0001, 0.0004, 0.0008]), size=st.integers(1, 24))
def test_noise_costs_time_and_never_correctness(seed: int, rate: float, size: int) -> None:
    device = UBoot(bytearray(dense(256 << 10)))
    before, data = bytes(device.disk), random.Random(seed).randbytes(size * 512)
    try:
        line, disk = attach(device, fault=noise(seed, rate, both=True))
        drive(disk.write(4096, data), line)
    except DeviceError:
        assert device.disk[4096 : 4096 + len(data)] in (before[4096 : 4096 + len(data)], data)
    else:
        assert device.disk[4096 : 4096 + len(data)] == data
    assert device.disk[:4096] == before[:4096]
    assert device.disk[4096 + len(data) :] == before[4096 + len(data) :]


def test_a_line_that_spoils_every_thousandth_byte_still_brings_it_across() -> None:
    data = dense(16 << 10)
    assert seconds_of(UBoot(bytearray(1 << 20)), data, fault=noise(9, 0.0007, both=True)) > 0


@pytest.mark.parametrize("baud", [115200, 4_000_000])
def test_short_blocks_bring_the_same(baud: int) -> None:
    """On a fast line more of them are in flight than may stay unanswered in a row otherwise."""
    device = UBoot(bytearray(1 << 20), baud=baud)
    line, data = SerialLine(device, baud, latency=0.02), dense(24 << 10)
    console = Console(baud, 0.1)
    drive(console.open(), line)
    drive(console.start("loady 40200000", mark=True), line)
    sent = drive(ymodem.send(data, baud=baud, size=ymodem.SHORT), line)
    assert drive(console.finish(), line).ok
    assert device.memory[: len(data)] == data
    assert sent < 1.15 * len(data), "nothing twice"


def test_a_line_that_spoils_most_blocks_goes_on_in_short_ones() -> None:
    device = UBoot(bytearray(1 << 20))
    line, disk = attach(device, fault=noise(2, 0.0007, both=True))
    took = []
    for at in range(0, 192 << 10, 64 << 10):
        began = line.now
        drive(disk.write(at, dense(192 << 10)[at : at + (64 << 10)]), line)
        took.append(line.now - began)
    assert device.disk[: 192 << 10] == dense(192 << 10)
    assert min(took[1:]) < 2 * (64 << 10) * 10 / 115200, took


def test_a_receiver_that_has_left_is_noticed() -> None:
    """Its console takes the data for commands; that went on for a minute."""
    device = UBoot(bytearray(1 << 20))
    line, console = SerialLine(device, 115200), Console(115200, 0.1)
    drive(console.open(), line)
    drive(console.start("loady 40200000", mark=True), line)
    exchange = ymodem.send(dense(64 << 10), baud=115200, gone=b"\n=>")
    io, cancelled = next(exchange), 0.0
    with pytest.raises(ymodem.TransferError, match="the receiver has left"):
        while True:
            if device.log and line.delivered > 20_000 and not cancelled:
                line.write(bytes([0x18] * 8))  # what noise may look like
                cancelled = line.now
            line.write(io.data)
            io = exchange.send(line.read(io.wait))
    assert line.now - cancelled < 20


@pytest.mark.parametrize("lost_answers", [1, 2, 3, 4])
def test_answers_that_never_come_are_found_out(lost_answers: int) -> None:
    left = [lost_answers]

    def fault(way: str, _number: int, byte: int) -> bytes:
        if way == "to host" and byte == ymodem.ACK and left[0]:
            left[0] -= 1
            return b""
        return bytes([byte])

    device = UBoot(bytearray(1 << 20))
    seconds_of(device, dense(128 << 10), fault=fault)
    assert not left[0] and device.received >= 128


def test_answers_that_noise_made_up_are_found_out() -> None:
    def fault(way: str, number: int, byte: int) -> bytes:
        made_up = way == "to host" and byte == ymodem.ACK and number % 20 == 0
        return bytes([byte, ymodem.ACK if number % 40 else ymodem.AGAIN]) if made_up else bytes([byte])

    seconds_of(UBoot(bytearray(1 << 20)), dense(128 << 10), fault=fault)


def test_what_is_there_already_is_not_sent_and_a_cut_goes_on_at_the_window() -> None:
    device = UBoot(bytearray(1 << 20))
    data = dense(192 << 10)
    line, disk = attach(device)
    drive(disk.write(0, data[: 64 << 10]), line)
    exchange = disk.write(64 << 10, data[64 << 10 :])
    io = next(exchange)
    while disk.sent < 100 << 10 and line.delivered < 150 << 10:  # then the host is gone in the middle of a block
        line.write(io.data)
        io = exchange.send(line.read(io.wait))
    exchange.close()
    console = Console(device.baud, 0.1)
    drive(console.open(), line)
    told = drive(uboot.learn(console), line)
    again = uboot.Disk(console, told, disk.storage)
    assert drive(again.write(0, data[: 64 << 10]), line) == 0
    assert drive(again.write(64 << 10, data[64 << 10 :]), line) > 128 << 10
    assert device.disk[: len(data)] == data


def test_packed_data_goes_over_the_line_and_is_unpacked_there() -> None:
    data = b"a line of a log file, number 17\n" * 4096
    for lost, used in ((frozenset[str](), "lzmadec"), (frozenset({"lzmadec"}), "unzip")):
        device = UBoot(bytearray(1 << 20), lost=lost)
        line, disk = attach(device)
        assert drive(disk.write(0, data), line) < len(data) // 20
        assert device.disk[: len(data)] == data
        assert any(text.startswith(used) for text in device.log)
    assert pack(dense(4096), {"unzip", "lzmadec"}).command == ""
    assert pack(data, {"unlz4"}).command == "unlz4"
    slow, fast = (pack(data, {"unzip", "lzmadec", "unlz4"}, baud).command for baud in (921_600, 4_000_000))
    assert (slow, fast) == ("lzmadec", "unzip"), "LZMA takes longer than it saves"


def test_copies_and_zeros_stay_on_the_device() -> None:
    device = UBoot(bytearray(dense(1 << 20)))
    line, disk = attach(device)
    before = line.delivered
    drive(disk.copy(4096, 512 << 10, 128 << 10), line)
    drive(disk.zero(0, 4096), line)
    assert line.delivered - before < 1000
    assert device.disk[512 << 10 : 640 << 10] == dense(1 << 20)[4096 : 4096 + (128 << 10)]
    assert device.disk[:4096] == bytes(4096)
    table = device.disk[1000:2024] = bytes(range(256)) * 4
    assert drive(disk.read(512, 2048), line)[488:1512] == table
    ranges = [(at, 4096) for at in range(0, 1 << 20, 32768)]
    assert drive(disk.checksums(ranges), line) == [zlib.crc32(device.disk[at : at + n]) for at, n in ranges]


def test_what_the_disk_was_given_before_is_copied_if_it_is_still_there() -> None:
    device, data = UBoot(bytearray(1 << 20)), dense(64 << 10)
    line, disk = attach(device)
    assert drive(disk.write(0, data), line) > len(data)
    assert drive(disk.write(256 << 10, data, like=0), line) == 0
    device.disk[1000] ^= 1
    assert drive(disk.write(512 << 10, data, like=0), line) > len(data)
    for at in (256 << 10, 512 << 10):
        assert device.disk[at : at + len(data)] == data


def test_a_disk_that_does_not_keep_what_is_written_is_found_out() -> None:
    device = UBoot(bytearray(1 << 20), on_write=lambda _at, data: bytes([data[0] ^ 1]) + data[1:])
    line, disk = attach(device)
    with pytest.raises(VerificationError, match="does not keep"):
        drive(disk.write(0, dense(8192)), line)


def test_the_rate_is_raised_kept_or_given_up() -> None:
    device = UBoot(bytearray(1 << 20))
    line, disk = attach(device)
    assert drive(uboot.set_baud(disk.console, 921600), line) is True
    assert device.baud == line.baud == disk.console.baud == 921600
    assert drive(uboot.set_baud(disk.console, 4000000), line) is False
    assert disk.console.baud == 921600
    drive(disk.write(0, dense(4096)), line)
    assert device.disk[:4096] == dense(4096)
    device.deaf = frozenset({1500000})
    with pytest.raises(DeviceError, match="no answer after the change"):
        drive(uboot.set_baud(disk.console, 1500000), line)


@pytest.mark.parametrize("silent", [False, True])
def test_an_emulated_machine_speaks_first(silent: bool) -> None:
    """Nothing is said to it before, as long as it may still be about to; one that is at its prompt already is asked."""
    line, console = SerialLine(UBoot(bytearray(1 << 20)), 115200), Console(115200, 0.1, listen=5.0)
    while silent and line.read(10.0):
        pass
    begun, heard, first = line.now, b"", 0.0
    exchange = console.open()
    io = next(exchange)
    with contextlib.suppress(StopIteration):
        while True:
            if io.data and not first:
                first = line.now - begun
                assert heard or first >= 5
            line.write(io.data)
            more = line.read(io.wait)
            heard += more
            io = exchange.send(more)
    assert console.prompt == b"=> " and (first >= 5) == silent


def test_a_u_boot_without_the_commands_is_refused() -> None:
    with pytest.raises(DeviceRefusedError, match="no loady"):
        attach(UBoot(bytearray(1 << 20), lost=frozenset({"loady"})))


def test_an_autoboot_is_stopped_and_another_prompt_is_learnt() -> None:
    device = UBoot(bytearray(1 << 20), prompt=b"U-Boot> ")
    line, disk = attach(device)
    assert disk.console.prompt == b"U-Boot> "
    assert disk.device.serial == "0815" and disk.storage.size == 1 << 20
    assert line.now < 5


def test_an_answer_that_came_before_it_was_waited_for() -> None:
    """As on an emulator's line, when the host is held up behind the key that starts a command."""
    device = UBoot(bytearray(1 << 20))
    line, console = QuickLine(device), Console(115200, 0.1)
    drive(console.open(), line)
    assert drive(console.run("version"), line).output == "U-Boot 2025.01-sim"
    disk = uboot.Disk(console, drive(uboot.learn(console), line), uboot.Storage("virtio", 0, 1 << 20))
    assert drive(disk.write(4096, dense(8 << 10)), line) > 8 << 10
    assert device.disk[4096 : 12 << 10] == dense(8 << 10)
    assert sum(entry.startswith("version") for entry in device.log) == 2, "each command once"
    assert sum(entry.startswith("loady") for entry in device.log) == 1


class Hostile:
    """A console that answers with whatever it likes, as much as it likes."""

    baud = 115200

    def __init__(self, answer: bytes, *, unasked: bool = False) -> None:
        self._answer, self._unasked = answer, unasked

    def boot(self, line: Line) -> Program:
        while True:
            byte = yield (0.001 if self._unasked else None)
            if byte is not None or self._unasked:
                line.emit(self._answer if byte != 13 else b"\r\n" + self._answer)


@pytest.mark.parametrize(
    "answer", [b"", b"=> ", b"\x06", b"C", b"\x18", b"\x00\xff\x1b[", b"=1=0=0=\r\n=> ", b"x" * 200, b"login: "]
)
@pytest.mark.parametrize("unasked", [False, True])
def test_a_hostile_console_ends_in_an_error_within_bounds(answer: bytes, unasked: bool) -> None:
    line = SerialLine(Hostile(answer, unasked=unasked), 115200)
    console = Console(115200, 0.1)

    def whole() -> Generator[object, bytes, None]:
        yield from console.open(5.0)
        yield from console.run("version")

    with pytest.raises((DeviceError, ProtocolError)):
        drive(whole(), line)  # type: ignore[arg-type]
    assert line.now < 1200


@pytest.mark.parametrize("answer", [b"", b"C", b"\x06", b"\x06C", b"\x18\x18", b"\x15", b"junk", b"\x06" * 50])
def test_a_hostile_receiver_ends_in_time(answer: bytes) -> None:
    line = SerialLine(Hostile(answer), 115200)
    with contextlib.suppress(DeviceError):
        drive(ymodem.send(dense(20 << 10), baud=115200), line)
    assert line.now < 600


def test_a_console_without_hush_is_told_apart() -> None:
    class Simple(UBoot):
        def _do_echo(self, *words: str) -> int:
            self._say(self.log[-1].partition("echo ")[2])
            return 0

    with pytest.raises((ProtocolError, DeviceError)):
        attach(Simple(bytearray(1 << 20)))
