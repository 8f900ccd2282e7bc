# SPDX-License-Identifier: Apache-2.0
"""The console: stages found in recorded boots, whatever the noise and however the bytes are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.qemu.console import LINE_MAX, TAIL_LINES, TAIL_WIDTH, Console, clean
from erofs_edge.qemu.stages import NAMES, next_stage

DATA = Path(__file__).parent / "data"
GOOD = (DATA / "good.txt").read_bytes()
ROOT_HASH = "d47b0f0a57c52bda6b5d2c548d0390cdf0f33446fa374beac7326eadb6a4f58c"


def names(data: bytes, *cuts: int) -> list[str]:
    """Names of what is found, each once, the bytes fed in pieces."""
    console, found = Console(), []
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        found += [event.match.name for event in console.feed(data[start:end], 0.0)]
    found += [event.match.name for event in console.close(0.0)]
    return list(dict.fromkeys(found))


def test_a_recorded_boot_passes_every_stage_in_order() -> None:
    assert names(GOOD) == list(NAMES)[:-1]


def test_a_recorded_boot_of_a_damaged_system() -> None:
    found = names((DATA / "tampered-system.txt").read_bytes())
    assert found == ["u-boot", "slot", "signature", "fit", "kernel", "initramfs", "corrupt", "failed"]


def test_a_recorded_boot_of_a_damaged_fit() -> None:
    found = names((DATA / "tampered-fit.txt").read_bytes())
    assert found == ["u-boot", "slot", "signature", "fit-hash", "slot-refused", "no-slot"]


@given(st.lists(st.integers(0, len(GOOD)), max_size=8).map(sorted))
def test_cuts_change_nothing(cuts: list[int]) -> None:
    assert names(GOOD, *cuts) == list(NAMES)[:-1]


@given(st.binary(max_size=300))
def test_any_bytes_are_survived_and_the_next_line_is_read(noise: bytes) -> None:
    noise = noise.replace(b"\x1b", b"")  # an escape sequence may swallow what follows, as on a terminal
    assert "root" in names(noise + b"\nerofs-edge: stage root\n")


@pytest.mark.parametrize(
    "line",
    [
        b"erofs-edge: stage root erofs\r\n",
        b"\x1b[0m\x1b[?25herofs-edge: stage \x1b[1;32mroot\x1b[0m\r\n",
        b"\x1b]0;a title\x07erofs-edge: stage root\n",
        b"[    3.141592] erofs-edge: stage root\n",
        b"[   12.5] erofs-edge-report[123]: erofs-edge: stage root\n",
        b"init[1]: erofs-edge: stage root\n",
        b"edge login: erofs-edge: stage root\n",
        b" login: erofs-edge: stage root\n",
        b"login: erofs-edge: stage root\n",
        b"half a line\rerofs-edge: stage root\r\r\n",
        b"\x00erofs-edge: stage root\x07\n",
    ],
)
def test_a_marker_in_noise(line: bytes) -> None:
    assert [name for name in names(line) if name != "login"] == ["root"]


@pytest.mark.parametrize(
    "line",
    [
        b'setenv ee_all "echo erofs-edge: stage root"\n',
        b"the line erofs-edge: stage root is missing\n",
        b"erofs-edge: stage rooted\n",
        b"Last login: Mon Nov 24\n",
        b"no such login: today\n",
        b"U-Boot SPL 2025.01\n",
        b"erofs-edge: report roothash=ab sl\n",
    ],
)
def test_what_only_looks_like_a_marker(line: bytes) -> None:
    assert names(line) == []


def test_a_prompt_counts_before_its_line_ends_and_once() -> None:
    console = Console()
    assert console.feed(b"edge lo", 1.0) == []
    (event,) = console.feed(b"gin: ", 2.0)
    assert (event.at, event.match.name) == (2.0, "login")
    assert console.feed(b"root\r\nPassword: ", 3.0) == []
    assert [event.match.name for event in console.feed(b"\r\nedge login: ", 4.0)] == ["login"]


@pytest.mark.parametrize("first", ["edge", "edge "])
def test_a_prompt_that_another_line_has_broken_in_two(first: str) -> None:
    """As on a busy machine, between the writes of a getty: nothing more comes until somebody types."""
    console, rest = Console(), "edge login: ".removeprefix(first)
    assert console.feed(first.encode(), 1.0) == []
    assert console.feed(b"[  OK  ] Started ssh.service.\r\n", 2.0) == []
    assert [(event.at, event.match.name) for event in console.feed(rest.encode(), 3.0)] == [(3.0, "login")]


def test_a_stage_counts_only_when_its_line_has_ended() -> None:
    console = Console()
    assert console.feed(b"erofs-edge: stage root", 1.0) == []
    assert [event.at for event in console.feed(b"\r", 2.0)] == [2.0]


def test_fields_of_the_report() -> None:
    (event,) = Console().feed(b"erofs-edge: report root=erofs roothash=ab slot=a var=ext4:rw data=/dev/vda6\r\n", 0.0)
    assert event.match.kind == "report"
    assert event.match.fields == {
        "root": "erofs", "roothash": "ab", "slot": "a", "var": "ext4:rw", "data": "/dev/vda6",
    }  # fmt: skip


def test_the_last_lines_are_kept_clean_and_few() -> None:
    console = Console()
    for number in range(500):
        console.feed(f"\x1b[31mline {number}\x1b[0m {'x' * 5000}\r\n\r\n".encode(), 0.0)
    console.feed(b"unfinished", 0.0)
    lines = console.last_lines()
    assert lines[-1] == "unfinished"
    assert len(lines) <= TAIL_LINES + 1
    assert all(len(line) <= TAIL_WIDTH and "\x1b" not in line for line in lines)


def test_memory_stays_bounded_without_line_ends() -> None:
    console = Console()
    for _ in range(50):
        console.feed(b"y" * 100_000, 0.0)
    assert len(console._pending) <= LINE_MAX


def test_clean_shows_bytes_that_are_no_text() -> None:
    assert clean(b"\xff\x1b[2Kabc\t\x08d  ") == "\ufffdabc d"


def test_next_stage() -> None:
    assert next_stage([]) == "u-boot"
    assert next_stage(["u-boot", "kernel", "slot"]) == "initramfs"
    assert next_stage(NAMES) == "login"
