# SPDX-License-Identifier: Apache-2.0
"""Commands that need a build say which command makes one, with the folder and the board that the user named."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from erofs_edge.cli.main import cli


@pytest.mark.parametrize(
    ("command", "board"),
    [
        ("sbom write {} -o bill.json", "BOARD"),
        ("report {} -o report.html", "BOARD"),
        ("installer generic-uefi-arm64 -o {}", "generic-uefi-arm64"),
        ("diskless generic-uefi-arm64 -o {} --system nbd://192.0.2.1/system", "BOARD"),
    ],
)
def test_the_hint_names_what_was_given(
    command: str, board: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    words = [word.format("mine") for word in command.split()]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 1, done.output
    assert f"hint: erofs-edge build {board} -o mine" in done.stderr.splitlines()
