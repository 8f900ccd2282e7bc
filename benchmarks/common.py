# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: their options, the command and the board that they run, and how they measure."""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import corpus

ROOT = Path(__file__).resolve().parent.parent
BOARD = ROOT / "boards/qemu-aarch64.yaml"
EDGE = [sys.executable, "-c", "from erofs_edge.__main__ import main; main()"]
"""our command as installed, in the Python that runs the benchmark"""
BLOCK, MIB = 4096, 1 << 20


def arguments(
    doc: str | None, *, runs: int | None = None, trees: int = 0, board: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks accept, and show those that this one uses: `runs` is the
    default of --runs, `trees` how many trees it needs, `board` whether it needs a build of the stock board."""

    def shown(used: object, text: str) -> str:
        return text if used else argparse.SUPPRESS

    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs, help=shown(runs, f"of each command (default: {runs})"))
    parser.add_argument("--tree", type=Path, help=shown(trees, "a folder (default: corpus.py's root)"))
    parser.add_argument(
        "--update",
        type=Path,
        help=shown(trees > 1, "its newer version (default: corpus.py's update, or 'update' beside DIR)"),
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "out/qemu-aarch64",
        help=shown(board, "folder of the stock board's build, made if need be (default: out/qemu-aarch64)"),
    )  # fmt: skip
    parser.add_argument("--scratch", type=Path, help="folder for large files (default: a temporary one)")
    return parser


def tree_of(options: argparse.Namespace) -> Path:
    """Return the tree to measure with."""
    tree: Path = options.tree or corpus.corpus()
    return tree


def trees_of(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return the tree to measure with, and its newer version. Stop if there is none."""
    older = tree_of(options)
    newer: Path = options.update or (older.with_name("update") if options.tree else corpus.update())
    if not newer.is_dir():
        raise SystemExit(f"{newer} does not exist: name a newer version of {older} with --update")
    return older, newer


def build_board(out: Path, *more: str, board: Path = BOARD) -> None:
    """Build the stock board, unless it is up to date."""
    words = [*EDGE, "build", str(board), "-o", str(out), "--relock-if-gone", *more]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def compiled(folder: Path) -> dict[str, str]:
    """Return an environment in which Python keeps its byte code, as for an installed package."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return env | {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}


class Run(NamedTuple):
    """Wall seconds, CPU seconds (user and system), the peak resident set of one process in bytes, the output."""

    wall: float
    cpu: float
    memory: int
    said: str


def measure(command: Sequence[str], *, env: dict[str, str] | None = None, codes: tuple[int, ...] = (0,)) -> Run:
    """Run a command once. Stop if it ends with another code."""
    with tempfile.TemporaryFile() as complaints:
        start = time.monotonic()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, env=env)
        assert child.stdout is not None
        said = child.stdout.read().decode()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - start
        child.stdout.close()
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode not in codes:
            complaints.seek(0)
            complaint = complaints.read().decode(errors="replace")[-500:]
            raise SystemExit(f"{command[0]} exited {child.returncode}: {complaint}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, said)


def children() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def running(pid: int | str) -> float:
    """Return the CPU seconds of a running process: utime and stime of proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def medians(rows: Iterable[Sequence[float]]) -> list[float]:
    """Return the median of each column."""
    return [median(column) for column in zip(*rows, strict=True)]


def versus(ours: float, theirs: float, digits: int = 2) -> str:
    """Return a cell: both figures and their ratio."""
    return f"{ours:.{digits}f} / {theirs:.{digits}f} ({ours / theirs:.2f}x)"


def row(*cells: object) -> None:
    """Print a row of a markdown table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def heads(*names: str) -> None:
    """Print the head of a markdown table."""
    row(*names)
    row(*["---"] * len(names))


def blocks(path: Path) -> list[bytes]:
    """Return a digest of each block of a file."""
    found = []
    with path.open("rb") as file:
        while data := file.read(BLOCK):
            found.append(hashlib.blake2b(data, digest_size=16).digest())
    return found


def image_in(folder: Path, given: Path | None) -> Path:
    """Return a copy of an image in whole blocks; without one, 296 MB of noise, the same each time."""
    image = folder / "image"
    if given:
        shutil.copyfile(given, image)
        os.truncate(image, -(-image.stat().st_size // BLOCK) * BLOCK)
        return image
    with image.open("wb") as file:
        for seed in range(296):
            file.write(random.Random(seed).randbytes(1_000_448 // BLOCK * BLOCK))
    return image
