# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge slots` on images and devices: it shows what the boot script and RAUC would do."""

from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli
from erofs_edge.disk import journal, slots
from erofs_edge.disk.slots import SlotState
from erofs_edge.flash.image import Image
from erofs_edge.flash.local import FileTarget
from erofs_edge.flash.slot_state import WHOLE
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.fastboot import FastbootDevice, serve_tcp
from erofs_edge.simulator.images import disk_image
from erofs_edge.simulator.partitions import DiskPartitions


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["slots", *map(str, arguments)])


def shown(*arguments: str | Path) -> dict[str, tuple[str, int, bool]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return {s["name"]: (s["standing"], s["left"], s["next"]) for s in json.loads(result.stdout)["slots"]}


def misc(path: Path) -> int:
    with Image(path) as image:
        table = image.table()
    assert table is not None
    return table.places()["misc"][0]


def poke(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(misc(path) + offset)
        file.write(data)


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return disk_image(tmp_path / "card.img", 1)


def test_a_fresh_disk(card: Path) -> None:
    assert shown("show", card) == {"a": ("pending", 3, True), "b": ("pending", 3, False)}
    lines = run("show", card).stdout.splitlines()
    assert [line.rstrip() for line in lines] == [
        "slot  state",
        "a     pending (3 starts left)  next",
        "b     pending (3 starts left)",
    ]


def test_activate_and_mark(card: Path) -> None:
    assert shown("mark", card, "a", "good")["a"] == ("good", 4, True)
    assert shown("activate", card, "b") == {"b": ("pending", 3, True), "a": ("good", 4, False)}
    assert shown("mark", card, "b", "bad") == {"b": ("bad", 0, False), "a": ("good", 4, True)}
    assert shown("mark", card, "B", "pending")["b"] == ("pending", 3, True)
    assert shown("activate", card, "a") == {"a": ("good", 4, True), "b": ("pending", 3, False)}


@pytest.mark.parametrize(("call", "arguments"), [("read", ["show"]), ("write", ["mark", "a", "good"])])
def test_a_disk_that_fails(card: Path, monkeypatch: pytest.MonkeyPatch, call: str, arguments: list[str]) -> None:
    """There is no --resume here: the hint is to run the same command again."""

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(FileTarget, call, fail)
    result = run(arguments[0], card, *arguments[1:])
    assert result.exit_code == 8
    assert "'slot state' failed: Input/output error\nhint: run the same command again\n" in result.stderr


def test_what_cannot_be(card: Path, tmp_path: Path) -> None:
    assert run("activate", card, "c").exit_code == 2
    assert run("mark", card, "a", "great").exit_code == 2
    assert run("show", tmp_path / "missing.img").exit_code == 2
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(1 << 20))
    assert "no slot state here: not a disk with slots" in run("show", raw).stderr
    assert not (tmp_path / "missing.img").exists()


def test_a_slot_that_was_left_half_written(card: Path) -> None:
    for offset, record in journal.writes(journal.Journal("B", "12" * 32)):
        poke(card, offset, record)
    result = run("activate", card, "b")
    assert (result.exit_code, "was left half written" in result.stderr) == (7, True)
    assert "half written" in run("show", card).stdout
    assert shown("show", card)["a"][2]
    assert shown("activate", card, "b", "--force")["b"][2]
    assert "half written" not in run("show", card).stdout


def test_a_disk_that_was_left_half_written(card: Path) -> None:
    for offset, record in journal.writes(journal.Journal(WHOLE, "0" * 64)):
        poke(card, offset, record)
    for slot in "ab":
        result = run("activate", card, slot)
        assert (result.exit_code, f"slot {slot} was left half written" in result.stderr) == (7, True)
    assert run("show", card).stdout.count("half written") == 2
    assert shown("activate", card, "b", "--force")["b"][2]
    assert run("show", card).stdout.count("half written") == 2, "no slot is proved by that"


def test_damage(card: Path) -> None:
    poke(card, 5, b"x")  # one copy: the other one counts
    assert json.loads(run("show", card, "--json").stdout)["damaged"] is False
    poke(card, slots.ENV_OFFSETS[1] + 5, b"x")
    record = json.loads(run("show", card, "--json").stdout)
    assert record["damaged"] is True
    assert [slot["name"] for slot in record["slots"]] == ["a", "b"]
    assert "the board starts from these defaults" in run("show", card).stderr
    assert shown("activate", card, "b")["b"][2]
    assert json.loads(run("show", card, "--json").stdout)["damaged"] is False


def test_on_a_board(card: Path) -> None:
    disk = SimulatedDisk(bytearray(card.read_bytes()))
    with serve_tcp(FastbootDevice(DiskPartitions(disk))) as address:
        to = "fastboot://" + address.removeprefix("tcp:")
        assert run("show", to).exit_code == 2  # where its partitions are, the image must tell
        assert shown("activate", to, "b", "--image", card)["b"] == ("pending", 3, True)
    at = misc(card)
    assert slots.decode_state(bytes(disk.memory[at : at + slots.STATE_SIZE]))[0].order == ("B", "A")


def rauc(state: SlotState) -> tuple[str | None, dict[str, str]]:
    """Return RAUC's view of the variables, by its U-Boot backend: the primary slot, and 'good' or 'bad' for each
    slot."""
    tried = [name for name in state.order if state.left.get(name, 0) > 0]
    good = {name: "good" if name in state.order and state.left[name] > 0 else "bad" for name in state.left}
    return (tried[0] if tried else None), good


@pytest.mark.parametrize("order", [("A", "B"), ("B", "A"), ("B",)])
@pytest.mark.parametrize("left", [{"A": a, "B": b} for a in (0, 1, 3, 4) for b in (0, 2, 4)])
def test_rauc_would_say_the_same(order: tuple[str, ...], left: dict[str, int]) -> None:
    state = SlotState(order, left)
    primary, good = rauc(state)
    if primary is not None:
        assert slots.active(state) == primary
    for name in left:
        assert (slots.standing(state, name) == "bad") == (good[name] == "bad")


@pytest.mark.oracle
def test_u_boots_tools_see_and_change_the_same(card: Path, tmp_path: Path, oracle: Callable[[str], str]) -> None:
    """fw_printenv and fw_setenv, which RAUC uses, with the configuration of the stock systems."""
    config = tmp_path / "fw_env.config"
    config.write_text(f"{card} {misc(card):#x} 0x4000\n")

    def tool(name: str, *arguments: str) -> str:
        return subprocess.run(
            [oracle(name), "-c", str(config), *arguments], check=True, capture_output=True, text=True
        ).stdout

    run("activate", card, "b")
    assert tool("fw_printenv", "BOOT_ORDER", "BOOT_A_LEFT", "BOOT_B_LEFT").split() == [
        "BOOT_ORDER=B",
        "A",
        "BOOT_A_LEFT=3",
        "BOOT_B_LEFT=3",
    ]
    tool("fw_setenv", "BOOT_B_LEFT", "4")  # what RAUC does to mark it good, with boot-attempts=4
    assert shown("show", card)["b"] == ("good", 4, True)
    tool("fw_setenv", "BOOT_B_LEFT", "0")
    assert shown("show", card)["b"] == ("bad", 0, False)
