# SPDX-License-Identifier: Apache-2.0
"""Forecasts: counts on images made for it; the frames are those that a device unpacks."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from erofs_edge.build.record import outputs, write_json
from erofs_edge.cli.forecast import forecast as command
from erofs_edge.errors import ErofsEdgeError, VerificationError
from erofs_edge.release.forecast import BLOCK, LINKS, forecast, forecast_record
from erofs_edge.release.make import newest

BLOCKS = [random.Random(number).randbytes(BLOCK) for number in range(40)]


def release(folder: Path, order: list[int], *, board: str = "b", extra: bytes = b"") -> Path:
    folder.mkdir()
    (folder / "system.img").write_bytes(b"".join(BLOCKS[number] for number in order) + extra)
    record = {"format": 1, "board": board, "system": {"root_hash": "ab" * 32}, "sign": {"rollback_index": 3}}
    record["files"] = outputs(folder, ["system.img"])
    write_json(folder / "release.json", record)
    return folder


def test_what_moves_what_is_new_and_what_stays(tmp_path: Path) -> None:
    old = release(tmp_path / "old", list(range(30)))
    new = release(tmp_path / "new", [*range(20), 21, 20, *range(30, 40)])
    found = forecast(old, new)
    assert (found.blocks, found.written, found.novel, found.version) == (32, 12, 10, 3)
    assert 10 * BLOCK <= found.patch < 11 * BLOCK, "what is new, and little more"
    assert list(found.methods.values()) == [32 * BLOCK, 12 * BLOCK, 10 * BLOCK, found.patch]
    (record,) = forecast_record([found])
    assert record["seconds"]["1 Mbit/s"]["whole image"] == round(32 * BLOCK / LINKS["1 Mbit/s"], 1)


def test_the_same_image_costs_nothing(tmp_path: Path) -> None:
    old, new = (release(tmp_path / name, list(range(30))) for name in ("old", "new"))
    found = forecast(old, new)
    assert (found.written, found.novel) == (0, 0) and found.patch < 200


def test_the_patch_is_what_zstd_makes(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    """The reference tool, at the same level with long matches, needs about as much."""
    old, new = release(tmp_path / "old", list(range(30))), release(tmp_path / "new", list(range(10, 40)), extra=b"end")
    out = tmp_path / "patch"
    program = [oracle("zstd"), "-q", "-3", "--long=27", f"--patch-from={old / 'system.img'}", str(new / "system.img")]
    subprocess.run([*program, "-o", str(out)], check=True)
    assert abs(forecast(old, new).patch - out.stat().st_size) < BLOCK


def test_bad_input(tmp_path: Path) -> None:
    new = release(tmp_path / "new", [1])
    with pytest.raises(ErofsEdgeError, match="a release of board 'other'"):
        forecast(release(tmp_path / "old", [1], board="other"), new)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ErofsEdgeError, match="nothing has been built here"):
        forecast(tmp_path / "empty", new)
    with (new / "system.img").open("ab") as image:
        image.write(b"more")
    with pytest.raises(VerificationError, match=r"new/system\.img: differs from what release\.json lists"):
        forecast(release(tmp_path / "second", [1]), new)
    (new / "system.img").unlink()
    with pytest.raises(ErofsEdgeError, match="cannot read"):
        forecast(release(tmp_path / "third", [1]), new)


def test_the_newest_release(tmp_path: Path) -> None:
    """By the date of its locks, not by how folders are called or named."""
    folders = [release(tmp_path / name, [1]) for name in ("3", "1", "2")]
    for folder, epoch in zip(folders, (5, 9, 9), strict=True):
        write_json(folder / "release.json", json.loads((folder / "release.json").read_text()) | {"epoch": epoch})
    assert newest(folders).name == "2" and newest(folders[:2]).name == "1" and newest(folders[::-1]).name == "1"


def test_the_command(tmp_path: Path) -> None:
    old, new = release(tmp_path / "old", list(range(30))), release(tmp_path / "new", list(range(5, 35)))
    result = CliRunner().invoke(command, [str(new), "--from", str(old)])
    assert "30 of 30 blocks must be written" in result.stdout and "blocks that are new  20.0 KiB" in result.stdout
    record = json.loads(CliRunner().invoke(command, [str(new), "--from", str(old), "--json"]).stdout)
    assert record[0]["bytes_on_wire"]["blocks that are new"] == 5 * BLOCK


@pytest.mark.parametrize("lost", ["board", "system", "sign"])
def test_a_record_that_lacks_something(lost: str, tmp_path: Path) -> None:
    new = release(tmp_path / "new", [1])
    record = json.loads((new / "release.json").read_text())
    del record[lost]
    write_json(new / "release.json", record)
    with pytest.raises(ErofsEdgeError, match=f"release.json is damaged: it has no '{lost}'"):
        forecast(new, new)
