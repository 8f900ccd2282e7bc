# SPDX-License-Identifier: Apache-2.0
"""Parity of an image, against veritysetup. `repair.py` measures how much parity can repair.

usage: python benchmarks/fec.py [--image FILE] [--roots N …] [--runs N] [--scratch DIR]

Prints markdown tables for docs/benchmarks.md. Encoding: both make tree and parity of a copy of the same image, in turn;
the row 'tree' is the time of both without parity. The parities must be equal.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from erofs_edge.toolbox.prefix import find

EDGE = [sys.executable, "-c", "from erofs_edge.cli.main import main; main()", "verity"]
SALT = "--salt=00112233445566778899aabbccddeeff"
UUID = "--uuid=12345678-9abc-4def-8123-456789abcdef"


class Run(NamedTuple):
    """Wall seconds, CPU seconds, bytes, and the command's output."""

    wall: float
    cpu: float
    memory: int
    said: str


def measure(command: list[str], *, codes: tuple[int, ...] = (0,)) -> Run:
    """Run a command once. CPU is user and system time, memory the peak resident set."""
    start = time.monotonic()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    said, complaint = child.stdout.read().decode(), child.stderr.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in codes:
        raise SystemExit(f"{command} exited {child.returncode}: {complaint[-500:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, said)


def encode(image: Path, roots: int | None, runs: int, folder: Path) -> str:
    """Return the table's row for a number of roots; None is the tree alone."""
    pairs = []
    for _ in range(runs):
        measured = []
        for name, program in (("theirs", [str(find("veritysetup", host=False))]), ("ours", EDGE)):
            tree, parity = folder / f"{name}.tree", folder / f"{name}.fec"
            tree.unlink(missing_ok=True)
            parity.unlink(missing_ok=True)
            fec = [f"--fec-device={parity}", f"--fec-roots={roots}"] if roots else []
            where = [str(image), str(tree)] if name == "theirs" else [str(image), f"--hash-device={tree}"]
            measured.append(measure([*program, "format", SALT, UUID, *fec, *where]))
        pairs.append(measured)
        for kind in ("tree", "fec") if roots else ("tree",):
            if (folder / f"ours.{kind}").read_bytes() != (folder / f"theirs.{kind}").read_bytes():
                raise SystemExit(f"{kind} differs")
    peer, we = (
        Run(*(median(values) for values in zip(*(p[side][:3] for p in pairs), strict=True)), "")  # type: ignore[arg-type]
        for side in (0, 1)
    )
    cells = [
        f"tree and parity, {roots} roots" if roots else "tree",
        f"{we.wall:.2f} / {peer.wall:.2f} ({we.wall / peer.wall:.2f}x)",
        f"{we.cpu:.2f} / {peer.cpu:.2f} ({we.cpu / peer.cpu:.2f}x)",
        f"{we.memory / 1e6:.0f} / {peer.memory / 1e6:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def noise(image: Path) -> None:
    """Return 296 MB of noise, the same each time."""
    with image.open("wb") as file:
        for seed in range(296):
            file.write(random.Random(seed).randbytes(1_000_448 // 4096 * 4096))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="to protect (default: 296 MB of noise; the content does not matter)")
    parser.add_argument("--roots", type=int, action="append", help="default: 2, 8 and 24")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="folder for images (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        image = folder / "image"
        if options.image:
            shutil.copyfile(options.image, image)
            os.truncate(image, -(-image.stat().st_size // 4096) * 4096)
        else:
            noise(image)
        roots = options.roots or [2, 8, 24]
        print("| what | wall s, ours / veritysetup | CPU s | peak memory MB |")
        print("| --- | --- | --- | --- |")
        for count in (None, *roots):
            print(encode(image, count, options.runs, folder), flush=True)


if __name__ == "__main__":
    main()
