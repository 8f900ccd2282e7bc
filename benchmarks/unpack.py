# SPDX-License-Identifier: Apache-2.0
"""Unpacking packages: all .deb files of a lock, two at a time, against `dpkg-deb -x`.

usage: python benchmarks/unpack.py [--runs N] [--lock FILE] [--scratch DIR]

Ours turns .deb files into a tree with readable contents (decompressed into an empty cache, hashed, parsed); dpkg-deb
unpacks each package into a folder of its own. Both write to the same file system. What both made is compared. Prints a
markdown table.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from common import ROOT, arguments, heads, row

from erofs_edge.manifest.load import load_lock
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import read_debs
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.sources.debian.unpack import unpack
from erofs_edge.tree import FileTree

AT_A_TIME = 2


def ours(debs: dict[str, Path], folder: Path) -> FileTree:
    return unpack(read_debs(debs, Cache(folder), jobs=AT_A_TIME))


def dpkg(debs: dict[str, Path], folder: Path) -> None:
    def one(item: tuple[str, Path]) -> None:
        subprocess.run(["dpkg-deb", "-x", str(item[1]), str(folder / item[0])], check=True)

    folder.mkdir()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(one, debs.items()))


def compare(tree: FileTree, folder: Path) -> None:
    """Stop unless the tree has every file and link of the folders, one per package, with the same content."""
    for package in folder.iterdir():
        for path in package.rglob("*"):
            name = path.relative_to(package)
            node = tree.get(os.fsencode(name))
            if path.is_symlink():
                same = node is not None and node.target == os.fsencode(path.readlink())
            elif path.is_file():
                same = node is not None and node.read() == path.read_bytes()
            else:
                same = node is not None
            if not same:
                raise SystemExit(f"{package.name}: {name} is not the same")


def main() -> None:
    parser = arguments(__doc__, runs=3)
    parser.add_argument("--lock", type=Path, default=ROOT / "manifests/edge-base.lock", help="default: edge-base's")
    options = parser.parse_args()
    debs = fetch(load_lock(options.lock).packages["system"], host_mirror, Cache())
    taken: dict[str, list[float]] = {"ours": [], "dpkg-deb -x": []}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        mine, theirs = Path(scratch) / "ours", Path(scratch) / "theirs"
        for _ in range(options.runs + 1):
            start = time.monotonic()
            tree = ours(debs, mine)
            between = time.monotonic()
            dpkg(debs, theirs)
            taken["dpkg-deb -x"].append(time.monotonic() - between)
            taken["ours"].append(between - start)
            if len(taken["ours"]) == 1:
                compare(tree, theirs)
            shutil.rmtree(mine)
            shutil.rmtree(theirs)
    print(f"{len(debs)} packages, {AT_A_TIME} at a time, median of {options.runs} runs\n")
    heads("way", "s", "speed to dpkg-deb")
    floor = median(taken["dpkg-deb -x"][1:])
    for name, seconds in taken.items():
        row(name, f"{median(seconds[1:]):.2f}", f"{floor / median(seconds[1:]):.2f}x")


if __name__ == "__main__":
    main()
