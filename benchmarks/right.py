# SPDX-License-Identifier: Apache-2.0
"""`flash` of an emulated board whose disk is already right, against a full flash of the same.

usage: python benchmarks/right.py [--transport nbd|nbds|fastboot|serial …] [--system stock|large …] [--runs N]
                                  [--out FOLDER] [--scratch DIR]

A build is flashed to one disk over each transport (default: nbd), as a whole disk and as one slot: that of the stock
board in --out (made if need be), and that of a board with a large system, 308 MB with its hash tree (default: both). A
full flash and one that finds everything in place are run in turn. The first writes all and proves it, the second only
proves what starts next and writes nothing. Seconds are those of the command's record (without the start and the end of
the machine), of the whole command, and of processors, QEMU's included. Prints a markdown table, medians of the runs.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from common import BOARD, EDGE, ROOT, arguments, build_board, heads, measure, medians, row

KINDS = {"whole disk": "--whole", "one slot": "--full"}
"""the option that makes a flash a full one"""
SYSTEMS = ("stock", "large")
NOISE = 240  # MB that no codec makes smaller
MANIFEST = """\
system: large
extends: edge-base
overlay+: [{from: noise, to: /opt}]
size_budget: {partition: 400M}
"""
LARGE = """\
extends: qemu-aarch64
disk: {partitions: {system: {size: 512M, slots: [a, b], content: large.yaml}}}
"""


class Taken(NamedTuple):
    """Seconds in the record, of the whole command, and of processors."""

    record: float
    wall: float
    cpu: float


def large(folder: Path) -> tuple[Path, Path]:
    """Build the stock board with a system as large as in other benchmarks; return its file and the build's folder."""
    noise, board, out = folder / "noise", folder / "board.yaml", folder / "out"
    noise.mkdir(parents=True)
    with (noise / "noise").open("wb") as file:
        for seed in range(NOISE):
            file.write(random.Random(seed).randbytes(1_000_000))
    (folder / "large.yaml").write_text(MANIFEST)
    board.write_text(LARGE)
    shutil.copyfile(BOARD.with_suffix(".lock"), board.with_suffix(".lock"))
    shutil.copyfile(ROOT / "manifests/edge-base.lock", folder / "large.lock")
    build_board(out, board=board)
    return board, out


def flash(board: Path, out: Path, transport: str, disk: Path, *more: str) -> tuple[Taken, int]:
    """Return what it took, and the bytes written."""
    words = [*EDGE, "flash", str(board), "-o", str(out), "--to", f"qemu:{transport}", "--disk", str(disk)]
    run = measure([*words, "--json", "--allow-unsigned", *more])
    record = json.loads(run.said)
    return Taken(record["seconds"], run.wall, run.cpu), record["bytes_written"]


def pairs(board: Path, out: Path, transport: str, disk: Path, option: str, runs: int) -> list[str]:
    """Return cells: each figure of the flash that is right and of the full one, and their ratio."""
    full, right = list[Taken](), list[Taken]()
    for _ in range(runs):
        for taken, words in ((full, [option]), (right, [])):
            seconds, written = flash(board, out, transport, disk, *words)
            assert bool(written) is bool(words)
            taken.append(seconds)
    cells = []
    for ours, theirs in zip(medians(right), medians(full), strict=True):
        cells += [f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}x"]
    return cells


def main() -> None:
    parser = arguments(__doc__, runs=5, board=True)
    parser.add_argument("--transport", action="append", choices=["nbd", "nbds", "fastboot", "serial"])
    parser.add_argument("--system", action="append", choices=SYSTEMS)
    options = parser.parse_args()
    figures = [f"{title}right, s | full, s | ratio" for title in ("", "whole command: ", "CPU: ")]
    heads("system", "transport", "what", *" | ".join(figures).split(" | "))
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        for system in options.system or SYSTEMS:
            if system == "large":
                board, out = large(Path(name) / system)
            else:
                board, out = BOARD, options.out
                build_board(out)
            for transport in options.transport or ["nbd"]:
                disk = Path(name) / f"{system}-{transport}.img"
                for kind, option in KINDS.items():
                    row(system, transport, kind, *pairs(board, out, transport, disk, option, options.runs))
                disk.unlink()


if __name__ == "__main__":
    main()
