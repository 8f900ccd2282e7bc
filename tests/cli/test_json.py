# SPDX-License-Identifier: Apache-2.0
"""All verbs follow the same rules for the output of `--json` (docs/exit-codes.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner

from erofs_edge.cli.main import cli
from erofs_edge.disk import journal
from erofs_edge.flash.image import Image
from erofs_edge.simulator.images import disk_image


def record(*words: object) -> dict:  # type: ignore[type-arg]
    done = CliRunner().invoke(cli, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """All kinds of files, one of them with a name that is not UTF-8."""
    kinds = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "fifo": tarfile.FIFOTYPE}
    kinds |= {"null": tarfile.CHRTYPE, "disk": tarfile.BLKTYPE, os.fsdecode(b"caf\xe9"): tarfile.REGTYPE}
    path = tmp_path / "all.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in kinds.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.mtime = kind, 0o4750, 1_000_000_000
            entry.linkname = "file" if name == "link" else ""
            entry.devmajor, entry.devminor = (8, 17) if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE) else (0, 0)
            tar.addfile(entry)
    return path


def test_fs_ls_and_fs_stat_say_the_same(archive: Path, tmp_path: Path) -> None:
    image = tmp_path / "all.img"
    built = record("fs", "build", "--tar-index", archive, "-o", image)
    listed = {entry["path"]: entry for entry in record("fs", "ls", image)}
    assert len(listed) == 7 and "caf\udce9" in listed
    for name, entry in listed.items():
        shown = record("fs", "stat", image, name)
        assert {key: shown[key] for key in entry if key != "path"} == {k: v for k, v in entry.items() if k != "path"}
    assert (listed["file"]["type"], listed["file"]["mode"]) == ("regular file", "4750")
    assert (listed["null"]["type"], listed["null"]["rdev"]) == ("char dev", [8, 17])
    assert (listed["link"]["type"], listed["link"]["target"]) == ("symlink", "file")
    text = CliRunner().invoke(cli, ["fs", "stat", str(image), "disk"]).stdout
    assert {"Rdev: 8:17", "Mode: 4750"} <= {" ".join(line.split()) for line in text.splitlines()}
    assert UUID(built["uuid"]).bytes.hex() != built["uuid"] == record("fs", "dump", image)["uuid"]


@pytest.mark.parametrize("words", [("fs", "check", "missing"), ("fs", "stat"), ("fs", "check", "a", "--jobs", "x")])
def test_a_mistake_in_the_command_line_is_a_record_too(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, [*words, "--json"], prog_name="erofs-edge")
    error = json.loads(done.stdout)["error"]
    assert (done.exit_code, error["kind"], error["exit_code"]) == (2, "UsageError", 2)
    assert error["message"] in done.stderr and error["hint"] == f"erofs-edge {' '.join(words[:2])} --help"
    assert CliRunner().invoke(cli, list(words)).stdout == ""


def test_a_mistake_that_stops_the_parser_is_a_record_too() -> None:
    """--json is behind the mistake. Commands without it, such as `fs cat`, print no record."""
    program = [sys.executable, "-m", "erofs_edge", "fs"]
    for words in (["ls", "--nonsense", "--json"], ["build", "--workers=2", "--json"]):
        done = subprocess.run([*program, *words], capture_output=True, text=True, check=False)
        error = json.loads(done.stdout)["error"]
        assert (done.returncode, error["kind"]) == (2, "UsageError") and error["message"] in done.stderr
    assert subprocess.run([*program, "cat", "--nonsense", "--json"], capture_output=True, check=False).stdout == b""


def test_slots_have_small_letters(tmp_path: Path) -> None:
    card = disk_image(tmp_path / "card.img", 1)
    with Image(card) as image:
        table = image.table()
    assert table is not None
    with card.open("r+b") as file:
        for offset, data in journal.writes(journal.Journal("B", "ab" * 32)):
            file.seek(table.places()["misc"][0] + offset)
            file.write(data)
    shown = record("slots", "show", card)
    assert shown["under_way"] == {"slot": "b", "image": "ab" * 32}
    assert [slot["name"] for slot in shown["slots"]] == ["a", "b"]
    assert [slot["incomplete"] for slot in shown["slots"]] == [False, True]
