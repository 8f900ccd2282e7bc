# SPDX-License-Identifier: Apache-2.0
"""The command line itself: its start-up time, and a build with nothing to do.

usage: python benchmarks/command.py [--runs N] [--out FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

from common import BOARD, arguments, build_board, compiled, heads, measure, row

INSTALLED = str(Path(sys.executable).with_name("erofs-edge"))


def seconds(command: list[str], runs: int, env: dict[str, str]) -> float:
    """Return the median wall time of a command, after an uncounted first run."""
    return median([measure(command, env=env).wall for _ in range(runs + 1)][1:])


def main() -> None:
    options = arguments(__doc__, runs=5, board=True).parse_args()
    build_board(options.out)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        env = compiled(Path(name))
        build = [INSTALLED, "build", str(BOARD), "-o", str(options.out), "--relock-if-gone"]
        heads("command", "s")
        for title, command in (
            ("`erofs-edge --help`", [INSTALLED, "--help"]),
            ("`python -c pass` (floor)", [sys.executable, "-c", "pass"]),
            ("`build`, everything cached, nothing changed", build),
            ("`build --force`, everything cached", [*build, "--force"]),
            ("`build --force --no-cache`, packages cached", [*build, "--force", "--no-cache"]),
        ):
            row(title, f"{seconds(command, options.runs, env):.3f}")


if __name__ == "__main__":
    main()
