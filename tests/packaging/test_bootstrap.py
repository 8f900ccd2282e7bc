# SPDX-License-Identifier: Apache-2.0
"""tools/bootstrap: which Python it takes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def python(path: Path, lacks: str) -> Path:
    """A program that is asked like Python, has all modules but one, writes down its name, and can do nothing else."""
    path.write_text(
        f'#!/bin/sh\necho {path.name} "$1" >>{path.parent}/asked\n'
        f'[ "$1" = -c ] || exit 1\ncase $2 in *{lacks or "nothing"}*) exit 1;; esac\n'
    )
    path.chmod(0o755)
    return path


def bootstrap(repository: Path, folder: Path, pythons: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", repository / "tools/bootstrap", folder / "venv"],
        env={**os.environ, "PYTHON": pythons}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("order", [("whole", "bare"), ("bare", "whole")])
def test_one_with_pip_before_one_without(repository: Path, tmp_path: Path, order: tuple[str, str]) -> None:
    lacks = {"whole": "", "bare": "ensurepip"}
    pythons = [python(tmp_path / name, lacks[name]) for name in order]
    assert bootstrap(repository, tmp_path, " ".join(map(str, pythons))).returncode
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "whole -m"


def test_one_without_pip_will_do(repository: Path, tmp_path: Path) -> None:
    assert bootstrap(repository, tmp_path, str(python(tmp_path / "bare", "ensurepip"))).returncode
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "bare -m"


def test_none_is_said(repository: Path, tmp_path: Path) -> None:
    done = bootstrap(repository, tmp_path, str(python(tmp_path / "old", "version_info")))
    assert done.returncode == 1
    assert "Python 3.11 or newer is not there" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_no_folder_is_a_usage_error(repository: Path) -> None:
    done = subprocess.run(["sh", repository / "tools/bootstrap"], capture_output=True, text=True, check=False)
    assert done.returncode and "usage: [PYTHON=python3.X] tools/bootstrap VENV [EXTRA]" in done.stderr
