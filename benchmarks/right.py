# SPDX-License-Identifier: Apache-2.0
"""`flash` of an emulated board whose disk is already right, against a full flash of the same.

usage: python benchmarks/right.py [--transport nbd|nbds|fastboot|serial …] [--runs N] [--out FOLDER] [--scratch DIR]

The build in --out (made if need be) is flashed to one disk over each transport (default: nbd), as a whole disk and as
one slot. A full flash and one that finds everything in place are run in turn. The first writes all and proves it, the
second only proves what starts next and writes nothing. Seconds are those of the command's record (without the start
and the end of the machine), and of the whole command. Prints a markdown table, medians of the runs.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from common import BOARD, EDGE, arguments, build_board, heads, measure, medians, row

KINDS = {"whole disk": "--whole", "one slot": "--full"}
"""the option that makes a flash a full one"""


def flash(out: Path, transport: str, disk: Path, *more: str) -> tuple[float, float, int]:
    """Return the seconds in the record, those of the command, and the bytes written."""
    words = [*EDGE, "flash", str(BOARD), "-o", str(out), "--to", f"qemu:{transport}", "--disk", str(disk)]
    run = measure([*words, "--json", "--allow-unsigned", *more])
    record = json.loads(run.said)
    return record["seconds"], run.wall, record["bytes_written"]


def main() -> None:
    parser = arguments(__doc__, runs=5, board=True)
    parser.add_argument("--transport", action="append", choices=["nbd", "nbds", "fastboot", "serial"])
    options = parser.parse_args()
    build_board(options.out)
    heads("transport", "what", "right, s", "full, s", "ratio", "whole command: right, s", "full, s", "ratio")
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
                for ours, theirs in list(zip(medians(right), medians(full), strict=True))[:2]:
                    cells += [f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}x"]
                row(transport, kind, *cells)


if __name__ == "__main__":
    main()
