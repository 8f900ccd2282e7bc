# SPDX-License-Identifier: Apache-2.0
"""BOARD on the command line: a file, or the name of a stock board, for every command; and the folder of its build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.build.pipeline import BuildResult
from erofs_edge.cli.main import cli

BOARDS = ("flash", "serve", "boot", "diskless", "installer")
MORE = {"flash": ("--to", "target.img", "-o", "nowhere"), "diskless": ("--system", "nbd://10.0.0.1/system")}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EROFS_EDGE_KEYS", str(tmp_path / "keys"))
    return tmp_path


@pytest.mark.parametrize("verb", BOARDS)
def test_a_stock_board_is_named_wherever_a_board_is(verb: str) -> None:
    """`build` names the board as it was given when it prints how to boot and flash it: those commands must work."""
    result = run(verb, "qemu-aarch64", *MORE.get(verb, ()))
    assert result.exit_code in (1, 3), result.output  # nothing is built, or the board has no such firmware
    assert "does not exist" not in result.stderr and "no such" not in result.stderr
    assert any(word in result.stderr for word in ("out/qemu-aarch64", "nowhere", "UEFI firmware")), result.stderr


@pytest.mark.parametrize("verb", ["boot", "diskless", "installer"])
def test_a_folder_of_the_boards_name_is_not_the_board(verb: str, folder: Path) -> None:
    """`build qemu-aarch64 -o qemu-aarch64` makes such a folder, and names the board in the commands that it prints."""
    (folder / "qemu-aarch64").mkdir()
    result = run(verb, "qemu-aarch64", *MORE.get(verb, ()))
    assert "is a directory" not in result.stderr
    assert any(word in result.stderr for word in ("out/qemu-aarch64", "UEFI firmware")), result.stderr


@pytest.mark.parametrize("verb", [*BOARDS, "build", "explain", "lock", "provision"])
def test_a_name_that_is_none_is_told_with_those_that_are(verb: str) -> None:
    result = run(verb, "qemu-arch64", *MORE.get(verb, ()))
    assert result.exit_code in (2, 3) and "qemu-arch64" in result.stderr
    assert "qemu-aarch64" in result.stderr.replace("qemu-arch64", ""), result.stderr
    result = run(verb, "quux", *MORE.get(verb, ()))
    assert result.exit_code in (2, 3) and "rpi4" in result.stderr, result.stderr


@pytest.mark.parametrize(("board", "emulated"), [("qemu-aarch64", True), ("generic-uefi-arm64", True), ("rpi4", False)])
def test_a_build_names_the_commands_that_work(
    board: str, emulated: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"files": {}, "system": {"root_hash": "00"}, "sign": {"development": False}}
    monkeypatch.setattr("erofs_edge.build.pipeline.build_board", lambda *_: BuildResult(folder / "o", record, True))
    result = run("build", board)
    assert result.exit_code == 0, result.output
    assert f"erofs-edge flash {board} -o {folder / 'o'} --to /dev/sdX" in result.output
    assert (f"erofs-edge boot {board}" in result.output) == emulated


def test_a_manifest_is_named_too() -> None:
    result = run("build", "qemu-aarch64", "--system", "edge-bas")
    assert result.exit_code == 3 and "did you mean edge-base?" in result.stderr


@pytest.mark.parametrize("verb", ["flash", "boot", "diskless", "installer"])
def test_the_build_of_another_board_is_refused(verb: str, folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "disk.img").write_bytes(bytes(4096))
    (folder / "out" / "release.json").write_text(json.dumps({"format": 1, "board": "rpi4"}))
    more = {"flash": ("--to", "target.img"), "boot": ("--smoke",), **MORE} | {"flash": ("--to", "target.img")}
    result = run(verb, "qemu-aarch64", "-o", "out", *more.get(verb, ()))
    assert result.exit_code == 2, result.output
    assert "out: this is the build of board 'rpi4', not of 'qemu-aarch64'" in result.stderr
    assert not (folder / "target.img").exists()
