# SPDX-License-Identifier: Apache-2.0
"""A folder with a valid board and a valid manifest, and a way to write variants of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifest_samples import BOARD, SYSTEM, Write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: demo.yaml, demo-system.yaml, files/."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files/motd").write_text("hi\n")
    (tmp_path / "demo.yaml").write_text(BOARD)
    (tmp_path / "demo-system.yaml").write_text(SYSTEM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def variant(folder: Path) -> Write:
    """`variant("demo.yaml", "old", "new")`: the file with one text replaced, which must be there once."""

    def write(name: str, old: str, new: str) -> Path:
        text = Path(name).read_text()
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {name}"
        Path(name).write_text(text.replace(old, new))
        return Path(name)

    return write
