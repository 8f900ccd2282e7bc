# SPDX-License-Identifier: Apache-2.0
"""`fs extract` and `fs check` against `fsck.erofs --extract` 1.9, and `fs ls -R` and `fs stat`.

usage: python benchmarks/reader.py [--tree DIR] [--fsck PATH] [--runs N] [--scratch DIR]

All read the image of the corpus, lz4hc,9 with 64 KiB pclusters, in turn. fsck.erofs has one thread; `fs extract` and
`fs check` use all processors. Both extracted trees are compared: names, modes, times, links and content. Trees are
deleted at the end only, and take the disk space of all runs: ext4 creates files slowly where others were deleted a few
minutes before. Prints a markdown table, medians of the runs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from corpus import corpus

from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.write import write_image
from erofs_edge.sources.directory import scan
from erofs_edge.toolbox.prefix import find

OURS = [sys.executable, "-c", "from erofs_edge.cli.main import main; main()", "fs"]


def taken(words: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Return the wall and CPU seconds of a command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(words, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def contents(top: Path) -> Iterator[tuple[object, ...]]:
    """Yield what is in a tree, sorted by name."""
    for path in sorted(top.rglob("*")):
        info = path.lstat()
        detail: object = os.readlink(path) if path.is_symlink() else None
        if detail is None and path.is_file():
            detail = hashlib.sha256(path.read_bytes()).hexdigest()
        yield path.relative_to(top), info.st_mode, info.st_mtime_ns, info.st_nlink, detail


def compare(ours: Path, theirs: Path) -> None:
    """Stop unless both trees are the same."""
    for a, b in zip(contents(ours), contents(theirs), strict=True):
        if a != b:
            raise SystemExit(f"the extracted trees differ: {a} against {b}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, help="default: the corpus")
    parser.add_argument("--fsck", help="fsck.erofs (default: the prefix's)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="folder for the image and its files (default: a temporary one)")
    options, _ = parser.parse_known_args()
    fsck = options.fsck or str(find("fsck.erofs-1.9", host=False))
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
        image, ours, theirs = folder / "image", folder / "ours", folder / "theirs"
        layout = WriteOptions(compression="lz4hc", level=9, pcluster=65536, epoch=0, all_root=True)
        write_image(scan(options.tree or corpus()), image, layout)
        commands = {
            "`fsck.erofs --extract`": [fsck, f"--extract={theirs}", "--preserve", "-d0", str(image)],
            "`fs extract`": [*OURS, "extract", str(image), str(ours)],
            "`fs check`": [*OURS, "check", str(image)],
            "`fs ls -R`": [*OURS, "ls", "-R", str(image)],
            "`fs stat`": [*OURS, "stat", str(image), "/usr/bin/python3"],
        }
        runs: dict[str, list[tuple[float, float]]] = {title: [] for title in commands}
        for number in range(options.runs + 1):
            for title, words in commands.items():
                os.sync()  # what the command before wrote is not this one's work
                once = taken(words, env)
                if number:  # the first round fills the memory and compiles the modules
                    runs[title].append(once)
            if not number:
                compare(ours, theirs)
            for tree in (ours, theirs):
                tree.rename(f"{tree}-{number}")
        print("| command | wall s | of fsck.erofs's | CPU s |\n| --- | --- | --- | --- |")
        peer = median(wall for wall, _ in runs["`fsck.erofs --extract`"])
        for title, all_of in runs.items():
            wall, used = (median(values) for values in zip(*all_of, strict=True))
            print(f"| {title} | {wall:.2f} | {wall / peer:.2f}x | {used:.2f} |", flush=True)


if __name__ == "__main__":
    main()
