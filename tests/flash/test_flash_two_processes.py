# SPDX-License-Identifier: Apache-2.0
"""Two files compared by this process and a forked one: what both find, and what happens to the other's unfinished
part."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import two_process_cases


@pytest.mark.parametrize("case", two_process_cases.CASES)
def test_files_are_compared_by_two_processes(case: str, tmp_path: Path) -> None:
    command = [sys.executable, two_process_cases.__file__, case, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "")
