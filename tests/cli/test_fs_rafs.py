# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge fs rafs` never replaces or stores what belongs to another image."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    (tmp_path / "src/d").mkdir(parents=True)
    (tmp_path / "src/file").write_bytes(b"what it says " * 1000)
    (tmp_path / "blobs").mkdir()
    return tmp_path


def rafs(*words: str) -> Result:
    return CliRunner().invoke(cli, ["fs", "rafs", "src", *words])


def test_a_file_of_the_tree_is_not_replaced(folder: Path) -> None:
    before = Path("src/file").read_bytes()
    done = rafs("-o", "src/file", "--blob-dir", "blobs")
    assert done.exit_code == 2 and "that is no EROFS image" in done.output
    assert Path("src/file").read_bytes() == before and os.listdir("blobs") == []


@pytest.mark.parametrize("blobs", ["src", "src/d", "blobs/../src/d"])
def test_blobs_do_not_become_part_of_the_tree(blobs: str, folder: Path) -> None:
    done = rafs("-o", "boot", "--blob-dir", blobs)
    assert done.exit_code == 2 and "would become part of its next image" in done.output
    assert sorted(os.listdir("src")) == ["d", "file"] and not Path("boot").exists()


def test_an_older_bootstrap_inside_the_tree_is_left_out(folder: Path) -> None:
    first, second = (rafs("-o", "src/d/boot", "--blob-dir", "blobs", "-T", "0", "--json") for _ in range(2))
    assert json.loads(first.stdout)["warnings"] == []
    assert json.loads(second.stdout)["warnings"] == ["src/d/boot is inside src: the older image there is left out"]
    assert json.loads(first.stdout)["inodes"] == json.loads(second.stdout)["inodes"] == 3
