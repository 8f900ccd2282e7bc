# SPDX-License-Identifier: Apache-2.0
"""`flash` over a serial line that is unplugged, noisy or silent, and to boards that are reset: one error with the next
step, a board that still starts, and the same command completes it. In the line's own time."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from one_error import told
from sweep import started

from erofs_edge.cli.main import cli
from erofs_edge.errors import DeviceError
from erofs_edge.flash import serial
from erofs_edge.simulator.images import disk_image
from erofs_edge.simulator.serial_line import SerialLine
from erofs_edge.simulator.uboot import UBoot

LOGIN = b"Starting kernel ...\r\n[    0.000000] Booting Linux on CPU 0\r\n\r\nedge login: "


class Bench(SerialLine):
    """A line that can be unplugged, that stalls, and whose board can be reset.

    left      bytes that the host may still send; then the port is gone
    reset_at  number of bytes that have reached the board when it is reset
    stall_at  the same for 20 seconds in which everything that is sent is lost
    chatter   what another processor prints now and then, in between
    """

    left = 1 << 40
    reset_at = stall_at = 1 << 40
    chatter = b""
    _stalled = _spoken = 0.0
    board: UBoot

    def write(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left < 0:
            raise DeviceError("the port is gone", where=self.name, hint="plug the adapter in again")
        if self.delivered >= self.stall_at:
            self.stall_at, self._stalled = 1 << 40, self.now + 20
        if self.now >= self._stalled:
            super().write(data)

    def emit(self, data: bytes) -> None:
        if self.chatter and self._clock > self._spoken + 1:
            self._spoken = self._clock
            super().emit(self.chatter)
        super().emit(data)

    def _step(self, until: float) -> bool:
        if self.delivered >= self.reset_at:
            self.reset_at = 1 << 40
            self.reset()
        return super()._step(until)


@pytest.fixture
def images(tmp_path: Path) -> dict[int, Path]:
    return {version: disk_image(tmp_path / f"v{version}.img", version) for version in (1, 2)}


Flash = Callable[..., Result]


@pytest.fixture
def flash(images: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> Flash:
    """Run the command as a user does, over a simulated line in place of a port."""

    def flash(line: Bench, query: str = "") -> Result:
        def opened(_path: str, baud: int) -> Bench:
            line.set_baud(baud)
            return line

        monkeypatch.setattr(serial, "SerialPort", opened)
        return CliRunner().invoke(cli, ["flash", str(images[2]), "--to", f"serial:///dev/ttyX{query}", "--yes"])

    return flash


def bench(images: dict[int, Path], **more: object) -> Bench:
    """A board that runs version 1."""
    board = UBoot(bytearray(images[1].read_bytes()), **more)  # type: ignore[arg-type]
    line = Bench(board, 115200)
    line.board = board
    return line


def slot(line: Bench) -> str:
    begun = started(line.board.disk)
    assert begun is not None, "nothing starts"
    return begun.slot


@pytest.mark.parametrize("query", ["", "?baud=921600"])
@pytest.mark.parametrize("left", [4_000, 12_000, 20_000, 30_000, 45_000, 55_000])
def test_the_same_command_completes_after_the_cable_was_pulled(
    images: dict[int, Path], flash: Flash, query: str, left: int
) -> None:
    """Also if the board still is at the rate that it was raised to, or in the middle of a transfer."""
    line = bench(images)
    line.left = left
    result = flash(line, query)
    assert result.exit_code == 8 and "the port is gone" in told(result)
    assert slot(line) == ("A" if left < 55_000 else slot(line))
    line.left = 1 << 40
    begun = line.now
    result = flash(line, query)
    assert result.exit_code == 0, result.output
    assert slot(line) == "B" and line.now - begun < 30
    assert line.board.baud == 115200


def writes(images: dict[int, Path], flash: Flash) -> list[int]:
    """How many bytes have reached the board when it starts each command that writes."""
    line, found = bench(images), list[int]()

    class Log(list[str]):
        def append(self, text: str) -> None:
            found.extend([line.delivered] if " write " in text else [])

    line.board.log = Log()
    assert flash(line).exit_code == 0
    return found


def test_a_board_that_is_reset_just_before_a_write_writes_nothing(images: dict[int, Path], flash: Flash) -> None:
    """Its memory has lost what was sent. It was written to the disk, and the disk was blamed."""
    places = writes(images, flash)
    assert len(places) > 10
    for place in places[::4]:
        line = bench(images)
        line.board.on_write = lambda _at, data: data if b"\xee" * 512 not in data else pytest.fail("stale memory")
        line.reset_at = place - 5
        result = flash(line)
        assert result.exit_code == 8 and "the board was reset meanwhile" in told(result), result.output
        assert slot(line) == "A"
        assert flash(line).exit_code == 0 and slot(line) == "B"


@pytest.mark.parametrize("place", range(2_000, 60_000, 5_300))
def test_a_reset_at_any_other_moment(images: dict[int, Path], flash: Flash, place: int) -> None:
    line = bench(images)
    line.reset_at = place
    result = flash(line)
    assert result.exit_code == 0 or (result.exit_code == 8 and told(result))
    assert line.now < 150
    assert slot(line) in ("A", "B") and flash(line).exit_code == 0 and slot(line) == "B"


@pytest.mark.parametrize("place", [3_000, 20_000, 30_000, 45_000])
def test_twenty_seconds_of_silence_are_survived(images: dict[int, Path], flash: Flash, place: int) -> None:
    line = bench(images)
    line.stall_at = place
    assert flash(line).exit_code == 0 and slot(line) == "B"
    assert line.now < 130


def test_messages_of_others_in_between(images: dict[int, Path], flash: Flash) -> None:
    """Such as a kernel on another processor, with what looks like answers to a transfer."""
    line, quiet = bench(images), bench(images)
    line.chatter = b"\r\n[   12.345678] CPU1: C Cache: C\r\n"
    for each in (line, quiet):
        assert flash(each).exit_code == 0 and slot(each) == "B"
    assert line.now < 1.5 * quiet.now


@pytest.mark.parametrize(
    ("stop", "query", "code"),
    [
        (b"stop", "?stop=stop", 0),
        (b"\x1b\x1b", "?stop=%1b%1b", 0),
        (b" ", "", 0),
        (b"", "?stop=x", 0),
        (b"stop", "", 6),
    ],
)
def test_an_autoboot_that_wants_certain_keys(
    images: dict[int, Path], flash: Flash, stop: bytes, query: str, code: int
) -> None:
    line = bench(images, stop=stop, system=LOGIN)
    result = flash(line, query)
    assert result.exit_code == code, result.output
    assert slot(line) == ("A" if code else "B")
    if code:
        assert "edge login: " in told(result) and "stop=KEYS in the address" in told(result)
        assert line.now < 90


def test_a_noisy_line_is_named(images: dict[int, Path], flash: Flash) -> None:
    chance = random.Random(5)
    line = bench(images)
    line._fault = lambda _way, _number, byte: b"" if chance.random() < 0.01 else bytes([byte])
    result = flash(line)
    assert result.exit_code in (6, 8) and "check the cable" in told(result)
    assert line.now < 300 and slot(line) == "A"


@pytest.mark.parametrize(
    ("lost", "code", "text"),
    [
        ({"loady"}, 7, "/dev/ttyX: this U-Boot has no loady\nhint: build U-Boot with CONFIG_CMD_LOADB"),
        ({"crc32"}, 7, "/dev/ttyX: this U-Boot has no crc32\nhint: build U-Boot with"),
        ({"echo"}, 6, "/dev/ttyX: the console has no `echo`\nhint: build U-Boot with CONFIG_CMD_ECHO"),
        ({"crc32", "loady", "virtio", "bdinfo", "unzip", "lzmadec"}, 7, "not U-Boot's prompt"),
    ],
)
def test_what_a_console_lacks(images: dict[int, Path], flash: Flash, lost: set[str], code: int, text: str) -> None:
    line = bench(images, lost=frozenset(lost))
    line.name = "/dev/ttyX"
    result = flash(line)
    assert result.exit_code == code and text in told(result), result.output
    assert line.now < 10
