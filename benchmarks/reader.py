# SPDX-License-Identifier: Apache-2.0
"""`fs extract` and `fs check` against `fsck.erofs --extract` 1.9, and `fs ls -R` and `fs stat`.

usage: python benchmarks/reader.py [--tree DIR] [--fsck PATH] [--runs N] [--scratch DIR] [--delete]

All read the image of the corpus, lz4hc,9 with 64 KiB pclusters, in turn. fsck.erofs has one thread; `fs extract` and
`fs check` use all processors. Both extracted trees are compared: names, modes, times, links and content. Trees are
deleted at the end only, and take the disk space of all runs: ext4 creates files slowly where others were deleted a few
minutes before. With a --scratch in memory (/dev/shm), use --delete: memory that a virtual machine has not used for a
while must first be given to it by its host, which can take several times as long as the extraction. Prints a markdown
table, medians of the runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import EDGE, Run, arguments, compiled, heads, measure, medians, row, tree_of

from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.write import write_image
from erofs_edge.sources.directory import scan
from erofs_edge.toolbox.prefix import find


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
    parser = arguments(__doc__, runs=5, trees=1)
    parser.add_argument("--fsck", help="fsck.erofs (default: the prefix's)")
    parser.add_argument(
        "--delete", action="store_true", help="delete the trees of each round at once, so that their memory is reused"
    )
    options = parser.parse_args()
    fsck = options.fsck or str(find("fsck.erofs-1.9", host=False))
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        env = compiled(folder)
        image, ours, theirs = folder / "image", folder / "ours", folder / "theirs"
        layout = WriteOptions(compression="lz4hc", level=9, pcluster=65536, epoch=0, all_root=True)
        write_image(scan(tree_of(options)), image, layout)
        commands = {
            "`fsck.erofs --extract`": [fsck, f"--extract={theirs}", "--preserve", "-d0", str(image)],
            "`fs extract`": [*EDGE, "fs", "extract", str(image), str(ours)],
            "`fs check`": [*EDGE, "fs", "check", str(image)],
            "`fs ls -R`": [*EDGE, "fs", "ls", "-R", str(image)],
            "`fs stat`": [*EDGE, "fs", "stat", str(image), "/usr/bin/python3"],
        }
        runs: dict[str, list[Run]] = {title: [] for title in commands}
        for number in range(options.runs + 1):
            for title, words in commands.items():
                os.sync()  # what the command before wrote is not this one's work
                once = measure(words, env=env)
                if number:  # the first round fills the memory and compiles the modules
                    runs[title].append(once)
            if not number:
                compare(ours, theirs)
            for tree in (ours, theirs):
                if options.delete:
                    shutil.rmtree(tree)
                else:
                    tree.rename(f"{tree}-{number}")
    heads("command", "wall s", "of fsck.erofs's", "CPU s")
    peer = 0.0
    for title, all_of in runs.items():
        wall, cpu = medians((run.wall, run.cpu) for run in all_of)
        peer = peer or wall
        row(title, f"{wall:.2f}", f"{wall / peer:.2f}x", f"{cpu:.2f}")


if __name__ == "__main__":
    main()
