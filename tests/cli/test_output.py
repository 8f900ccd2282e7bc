# SPDX-License-Identifier: Apache-2.0
"""What commands print with: sizes, tables, JSON, progress on a terminal and nothing elsewhere."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.cli import output
from erofs_edge.manifest.model import Overlay


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """`clock[0]` is what time.monotonic returns."""
    now = [100.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    return now


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (4096, "4.00 KiB"), (65536, "64.0 KiB"),
        (1023 << 10, "1.00 MiB"), (512 << 20, "512 MiB"), (1 << 30, "1.00 GiB"), (607_000_000, "579 MiB"),
        (5 << 40, "5.00 TiB"), (5000 << 40, "5000 TiB"), (-2048, "-2.00 KiB"), ((10 << 10) - 1, "10.0 KiB"),
    ],
)  # fmt: skip
def test_sizes(size: int, text: str) -> None:
    assert output.size_text(size) == text


@given(st.integers(0, 1 << 50))
def test_a_size_is_short_and_within_a_half_percent(size: int) -> None:
    number, unit = output.size_text(size).split()
    factor = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert abs(float(number) * factor - size) <= 0.0051 * size
    assert len(number) <= 4


def test_tables_align_text_left_and_numbers_right() -> None:
    lines = output.table_lines([("a", 5, None), ("long", 1234, "x\ty")], ("name", "bytes", "note"))
    assert lines == ["name  bytes  note", "a         5", "long   1234  x\\x09y"]
    assert output.table_lines([]) == []


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([("a", 1), ("b", 22)])
    assert capsys.readouterr().out == "a   1\nb  22\n"


@dataclass(frozen=True)
class Record:
    root_hash: bytes
    path: Path


def test_json_of_what_commands_have_at_hand(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"r": Record(b"\x01\xff", Path("a/b")), "s": {3, 1}, "o": Overlay(from_="x"), "t": ("é", "\udcff", None)}
    output.emit_json(value)
    text = capsys.readouterr().out
    record = json.loads(text)
    assert record["r"] == {"root_hash": "01ff", "path": "a/b"}
    assert (record["s"], record["t"], record["o"]["from"]) == ([1, 3], ["é", "\udcff", None], "x")
    assert text.isascii(), "a name that is not UTF-8 must not break the record"
    with pytest.raises(TypeError, match="cannot write object as JSON"):
        output.emit_json(object())


def test_progress_is_one_line_on_a_terminal(clock: list[float]) -> None:
    stream = Terminal()
    with output.Progress("fetching", stream=stream) as progress:
        progress(0, 64 << 20)
        clock[0] += 0.01
        progress(1, 64 << 20)  # too soon to be drawn
        clock[0] += 4
        progress(16 << 20, 64 << 20)
    drawn = [line.removesuffix("\x1b[K") for line in stream.getvalue().split("\r")[1:]]
    assert drawn == [
        "fetching  0 B of 64.0 MiB (0 %)",
        "fetching  16.0 MiB of 64.0 MiB (25 %), 3.99 MiB/s, 0:12 lef",
        "",
    ]
    assert "\n" not in stream.getvalue()


def test_the_last_step_is_drawn_at_once(clock: list[float]) -> None:
    stream = Terminal()
    progress = output.Progress("x", unit="packages", stream=stream)
    progress(1, 2)
    progress(2, 2)
    assert "2 of 2 packages (100 %)" in stream.getvalue()


def test_progress_is_silent_elsewhere(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with output.Progress("x", stream=stream) as progress:
        progress(1, 2)
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    with output.Progress("x", stream=terminal) as progress:
        progress(1, 2)
    assert (stream.getvalue(), terminal.getvalue()) == ("", "")


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [
        (0, 0, 5, "0 B"),
        (10 << 20, 0, 5, "10.0 MiB, 2.00 MiB/s"),
        (10 << 20, 20 << 20, 0.5, "10.0 MiB of 20.0 MiB (50 %)"),
        (1 << 20, 601 << 20, 1, "1.00 MiB of 601 MiB (0 %), 1.00 MiB/s, 10:00 left"),
        (8, 8, 2, "8 B of 8 B (100 %), 4 B/s"),
    ],
)
def test_progress_text(done: int, total: int, seconds: float, text: str) -> None:
    assert output.progress_text(done, total, seconds) == text


def test_a_step_ends_with_its_status(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with output.step("Writing disk.img"):
        clock[0] += 1.25
    with pytest.raises(KeyError), output.step("Verifying"):
        raise KeyError
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"{'Writing disk.img':<50} OKAY [  1.250s]",
        f"{'Verifying':<50} FAILED [  0.000s]",
    ]


def test_colour_only_on_a_terminal_and_without_no_color(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for stream, no_color, coloured in (
        (Terminal(), None, True),
        (Terminal(), "1", False),
        (io.StringIO(), None, False),
    ):
        monkeypatch.setattr(output.sys, "stderr", stream)
        if no_color:
            monkeypatch.setenv("NO_COLOR", no_color)
        else:
            monkeypatch.delenv("NO_COLOR", raising=False)
        output.status("x", ok=True, seconds=0)
        assert ("\x1b[32m" in stream.getvalue()) == coloured


@given(st.text())
def test_printable_text_cannot_steer_a_terminal(text: str) -> None:
    shown = output.printable(text)
    assert not [char for char in shown if (char < " " and char != "\n") or "\x7f" <= char < "\xa0"]
    assert output.printable(shown) == shown


def test_a_name_stays_in_its_line() -> None:
    assert output.one_line("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert output.one_line("a\ud800\udcff\udd00") == "a\\ud800\udcff\\udd00"  # the second is a byte of a name
    assert output.table_lines([("a\nb", 1), ("c", 2)]) == ["a\\nb  1", "c     2"]
