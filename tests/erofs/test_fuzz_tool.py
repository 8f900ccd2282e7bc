# SPDX-License-Identifier: Apache-2.0
"""tools/fuzz-erofs: it runs what it is told to, and keeps the smallest form of what fails or dies."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erofs_edge import erofs
from erofs_edge.tree import BytesContent, FileTree, Inode

TOOL = Path(__file__).parent.parent.parent / "tools/fuzz-erofs"


def test_a_campaign_without_findings(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--cases", "84", "--jobs", "2", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("84 cases in ")
    assert not (tmp_path / "out").exists()


def test_a_campaign_against_fsck(oracle: Callable[[str], str]) -> None:
    """fsck.erofs accepts what `fs check` accepts; a case that must be reported is."""
    assert oracle("fsck.erofs-1.9")
    command = [sys.executable, str(TOOL) + "-peer", "--cases", "2", "--seed", "500000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " agreed, " in done.stdout and " refused" in done.stdout


def test_what_fsck_refuses_is_told(tmp_path: Path) -> None:
    names = runpy.run_path(str(TOOL) + "-peer")
    tree = FileTree(Inode(0o040755, children={b"a": Inode(0o100644, content=BytesContent(b"x" * 5000))}))
    erofs.build(tree, tmp_path / "image", compression="none", epoch=0)
    fsck = tmp_path / "fsck"
    for script, told in (("exit 3", "exit code 3"), ('mkdir "${1#*=}"; echo y >"${1#*=}/a"', "b'a' reads differently")):
        fsck.write_text(f"#!/bin/sh\n{script}\n")
        fsck.chmod(0o755)
        assert told in names["verdict"](tmp_path / "image", str(fsck), tmp_path / "out")


@pytest.fixture
def tool() -> dict[str, Any]:
    return runpy.run_path(str(TOOL))


def broken_judge(tool: dict[str, Any], what: str) -> None:
    """A reader that rejects the third inode number of a directory."""
    real = tool["judge"]

    def judge(path: Path, device: Path | None, *, write: bool) -> bool:
        if path.read_bytes()[1024 + 16] != base_inos:  # super.inos
            if what == "dies":
                os.kill(os.getpid(), 9)
            while what == "hangs":
                pass
            raise MemoryError if what == "eats" and not bytearray(1 << 40) else IndexError
        return bool(real(path, device, write=write))

    base_inos = 11
    tool["fails"].__globals__["judge"] = judge


@pytest.mark.parametrize(
    ("what", "told"), [("raises", "IndexError"), ("eats", "MemoryError"), ("hangs", "CaseTooLong"), ("dies", "ended")]
)
def test_findings_are_kept(what: str, told: str, tool: dict[str, Any], tmp_path: Path) -> None:
    broken_judge(tool, what)
    names = tool["fails"].__globals__
    names["SECONDS"] = 0.3 if what == "hangs" else 60.0
    names["KINDS"] = ["-T1"]
    campaign = tool["Campaign"](1, 150, 0, tmp_path / "out", tmp_path)
    campaign.run()
    assert campaign.done == 150
    assert campaign.findings
    assert all(told in line for line in campaign.findings)
    kept = sorted((tmp_path / "out").glob("*.txt"))
    assert len(kept) == len(campaign.findings)
    assert told in kept[0].read_text()
    if what == "raises":
        assert all(line.count("->") == 1 and "super.inos" in line for line in campaign.findings)
        image = kept[0].with_suffix(".img").read_bytes()
        assert image[1024 + 16] != 11
