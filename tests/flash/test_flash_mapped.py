# SPDX-License-Identifier: Apache-2.0
"""Two files that a child compares where the kernel has them: what it finds, and what becomes of what it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mapped_cases
import pytest

from erofs_edge.flash import mapped


@pytest.mark.parametrize("case", mapped_cases.CASES)
def test_files_are_compared_by_a_child(case: str, tmp_path: Path) -> None:
    command = [sys.executable, mapped_cases.__file__, case, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("answer", "there"), [(1, True), (BlockingIOError(), False), (OSError(95, "unsupported"), True), (None, True)]
)
def test_the_kernel_is_asked_what_it_has(
    monkeypatch: pytest.MonkeyPatch, answer: int | OSError | None, there: bool
) -> None:
    """Where it cannot be asked, or has no answer, all may be there."""
    asked: list[int] = []

    def preadv(_file: int, _buffers: object, place: int, _flags: int) -> int:
        asked.append(place)
        if isinstance(answer, OSError):
            raise answer
        return 1

    monkeypatch.setattr(os, "preadv", preadv)
    if answer is None:
        monkeypatch.delattr(os, "RWF_NOWAIT")
    assert mapped._is_there(0, 4096, 2 << 20) is there
    assert asked == ([4096, 4096 + (1 << 20)] if answer == 1 else [] if answer is None else [4096])
