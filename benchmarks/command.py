# SPDX-License-Identifier: Apache-2.0
"""The command line itself: its start-up time, and a build with nothing to do.

usage: python benchmarks/command.py [--runs N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

EDGE = str(Path(sys.executable).with_name("erofs-edge"))


def seconds(command: list[str], runs: int) -> float:
    """Return the median wall time of a command, after an uncounted first run."""
    taken = []
    for _ in range(runs + 1):
        start = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken.append(time.monotonic() - start)
    return median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/qemu-aarch64"))
    options = parser.parse_args()
    build = [EDGE, "build", "boards/qemu-aarch64.yaml", "-o", str(options.out), "--relock-if-gone"]
    print("| command | s |")
    print("| --- | --- |")
    for title, command in (
        ("`erofs-edge --help`", [EDGE, "--help"]),
        ("`python -c pass` (floor)", [sys.executable, "-c", "pass"]),
        ("`build`, everything cached, nothing changed", build),
        ("`build --force`, everything cached", [*build, "--force"]),
        ("`build --force --no-cache`, packages cached", [*build, "--force", "--no-cache"]),
    ):
        print(f"| {title} | {seconds(command, options.runs):.3f} |", flush=True)


if __name__ == "__main__":
    main()
