# SPDX-License-Identifier: Apache-2.0
"""Repair of a slot over the network, by the initramfs's script under the host's shell: see repair_stage.py. The network
programs are stand-ins; a small web server, good or bad, answers them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from repair_stage import BLOCK, BLOCKS, Board, set_stage, spoil

PLACE = "http://192.0.2.1:8080/lab%41/system.img"
BAD = "erofs-edge: slot b is damaged and cannot be repaired"
SERVER = """
import os, re, sys
root, mode = os.environ["ROOT"], os.environ.get("MODE", "good")
assert sys.argv[1:] == ["192.0.2.1", "8080"], sys.argv
asked = sys.stdin.buffer.read().decode()
with open(root + "/asked", "a") as log:
    log.write(asked.splitlines()[0] + "\\n")
head, _, rest = asked.partition("\\r\\n")
assert head == "GET /lab%41/system.img HTTP/1.0" and asked.endswith("\\r\\n\\r\\n"), asked
assert "\\r\\nHost: 192.0.2.1:8080\\r\\n" in asked
first, last = map(int, re.search(r"\\r\\nRange: bytes=(\\d+)-(\\d+)\\r\\n", asked).groups())
data = open(root + "/source", "rb").read()[first : last + 1]
out = sys.stdout.buffer
if mode == "silent":
    sys.exit(1)
if mode == "absent":
    out.write(b"HTTP/1.1 404 Not Found\\r\\n\\r\\n")
elif mode == "whole":
    out.write(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + data)
elif mode == "endless":
    out.write(b"HTTP/1.1 206 Partial Content\\r\\n")
    try:
        while True:
            out.write(b"X: " + b"x" * 4000 + b"\\r\\n")
    except BrokenPipeError:
        os._exit(0)
else:
    body = {"good": data, "lies": bytes(len(data)), "short": data[:-1], "more": data + b"!"}[mode]
    out.write(b"HTTP/1.0 206 Partial Content\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
"""


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """A board with one network interface, and a server that has what the board lacks."""
    board = set_stage(tmp_path, network=True)
    (tmp_path / "sys/class/net/eth0").mkdir(parents=True)
    (tmp_path / "sys/class/net/lo").mkdir()
    (tmp_path / "source").write_bytes(board.whole)
    programs = {
        "nc": f"#!{sys.executable} -S{SERVER}",
        "ip": '#!/bin/sh\necho "$*" >>"$ROOT/network"\n',
        "udhcpc": '#!/bin/sh\necho "udhcpc $*" >>"$ROOT/network"\n[ "${MODE:-}" != cable ]\n',
        "sleep": "#!/bin/sh\n",
    }
    for name, program in programs.items():
        (tmp_path / "bin" / name).write_text(program)
        (tmp_path / "bin" / name).chmod(0o755)
    return board


def repaired(count: int) -> str:
    return f"erofs-edge: {count} blocks of slot b were repaired from 192.0.2.1"


def test_what_the_other_slot_lacks_comes_from_the_network(board: Board) -> None:
    for block in (10, 11, 12, BLOCKS - 1):
        spoil(board.b, block)
    spoil(board.a, 12)
    damaged = bytes(board.a)
    lines = board.mend(repair_from=PLACE)
    assert lines == ["erofs-edge: 3 blocks of slot b were repaired from slot a", repaired(1)]
    assert board.b == board.whole and board.a == damaged
    assert len((board.root / "asked").read_text().splitlines()) == 1, "only what is bad is asked for"
    network = (board.root / "network").read_text()
    assert network.startswith("link set lo up\nlink set eth0 up\nudhcpc ")
    assert network.endswith("addr flush dev eth0\nlink set eth0 down\n"), "the system finds it as it was"


@pytest.mark.parametrize("block", [0, 2])
def test_a_board_with_one_slot_gets_its_tree_too(board: Board, block: int) -> None:
    spoil(board.b, board.info.hash_start_block + block)
    spoil(board.b, 3)
    assert board.mend("b", repair_from=PLACE) == [repaired(2)]
    assert board.b == board.whole


def test_nothing_is_asked_where_nothing_is_needed(board: Board) -> None:
    spoil(board.b, 7)
    assert board.mend(repair_from=PLACE) == ["erofs-edge: 1 blocks of slot b were repaired from slot a"]
    assert board.mend(repair_from=PLACE) == ["erofs-edge: slot b has failed before, but nothing in it is damaged"]
    assert not (board.root / "network").exists() and board.b == board.whole


@pytest.mark.parametrize(("mode", "where"), [("lies", "data"), ("short", "data"), ("more", "tree")])
def test_what_does_not_hash_right_is_never_written(board: Board, mode: str, where: str) -> None:
    spoil(board.b, 17 if where == "data" else board.info.hash_start_block + 1)
    before = bytes(board.b)
    given_up = ["erofs-edge: nothing to repair slot b with from 192.0.2.1: another system is there"]
    assert board.mend("b", repair_from=PLACE, MODE=mode) == [*(given_up if where == "tree" else []), BAD]
    assert board.b == before
    assert len((board.root / "asked").read_text().splitlines()) == (8 if where == "tree" else 1)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("silent", "no answer"),
        ("absent", "HTTP/1.1 404 Not Found"),
        ("whole", "HTTP/1.1 200 OK"),
        ("cable", "no interface gets an address"),
    ],
)
def test_why_there_is_no_repair_is_told_once(board: Board, mode: str, reason: str) -> None:
    for block in (3, 40, 200):
        spoil(board.b, block)
    before = bytes(board.b)
    lines = board.mend("b", repair_from=PLACE, MODE=mode)
    assert lines == [f"erofs-edge: nothing to repair slot b with from 192.0.2.1: {reason}", BAD]
    assert board.b == before
    asked = board.root / "asked"
    assert len(asked.read_text().splitlines() if asked.exists() else []) <= 1


def test_an_answer_without_end_is_cut(board: Board) -> None:
    spoil(board.b, 3)
    assert board.mend("b", repair_from=PLACE, MODE="endless") == [BAD]
    assert board.b[3 * BLOCK :][:BLOCK] == b"\xa5" * BLOCK
