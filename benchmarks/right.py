# SPDX-License-Identifier: Apache-2.0
"""`flash` of an emulated board whose disk is already right, against a full flash of the same.

usage: python benchmarks/right.py [--transport nbd|nbds|fastboot|serial …] [--runs N] [--out FOLDER] [--scratch DIR]

The build in --out (made if need be) is flashed to one disk over each transport (default: nbd), as a whole disk and as
one slot. A full flash and one that finds everything in place are run in turn. The first writes all and proves it, the
second only proves what starts next and writes nothing. Seconds are those of the command's record (without the start
and the end of the machine), and of the whole command. Prints a markdown table, medians of the runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

EDGE = str(Path(sys.executable).with_name("erofs-edge"))
BOARD = "boards/qemu-aarch64.yaml"
KINDS = {"whole disk": "--whole", "one slot": "--full"}
"""the option that makes a flash a full one"""


def flash(out: Path, transport: str, disk: Path, *more: str) -> tuple[float, float, int]:
    """Return the seconds in the record, those of the command, and the bytes written."""
    words = [EDGE, "flash", BOARD, "-o", str(out), "--to", f"qemu:{transport}", "--disk", str(disk)]
    start = time.monotonic()
    done = subprocess.run([*words, "--json", "--allow-unsigned", *more], check=True, stdout=subprocess.PIPE)
    record = json.loads(done.stdout)
    return record["seconds"], time.monotonic() - start, record["bytes_written"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", action="append", choices=["nbd", "nbds", "fastboot", "serial"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/qemu-aarch64"))
    parser.add_argument("--scratch", type=Path, help="folder for the disk (default: a temporary one)")
    options, _ = parser.parse_known_args()
    subprocess.run([EDGE, "build", BOARD, "-o", str(options.out), "--relock-if-gone"], check=True)
    print("| transport | what | right, s | full, s | ratio | whole command: right, s | full, s | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for transport in options.transport or ["nbd"]:
        with tempfile.TemporaryDirectory(dir=options.scratch) as name:
            disk = Path(name) / "disk.img"
            for kind, option in KINDS.items():
                full, right = [], []
                for _ in range(options.runs):
                    full.append(flash(options.out, transport, disk, option))
                    right.append(flash(options.out, transport, disk))
                    assert full[-1][2] and not right[-1][2]
                cells = []
                for seconds in range(2):
                    ours, theirs = (median(one[seconds] for one in runs) for runs in (right, full))
                    cells += [f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}x"]
                print(f"| {transport} | {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
