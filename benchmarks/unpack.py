# SPDX-License-Identifier: Apache-2.0
"""Unpacking packages: all .deb files of a lock, two at a time, against `dpkg-deb -x`.

usage: python benchmarks/unpack.py [--runs N] [--lock FILE]

Ours turns .deb files into a tree with readable contents (decompressed into an empty cache, hashed, parsed); dpkg-deb
unpacks each package into a folder of its own. Both write to the same file system.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from erofs_edge.manifest.load import load_lock
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import read_debs
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.sources.debian.unpack import unpack

AT_A_TIME = 2


def ours(debs: dict[str, Path], folder: Path) -> None:
    unpack(read_debs(debs, Cache(folder), jobs=AT_A_TIME))


def dpkg(debs: dict[str, Path], folder: Path) -> None:
    def one(item: tuple[str, Path]) -> None:
        subprocess.run(["dpkg-deb", "-x", str(item[1]), str(folder / item[0])], check=True)

    folder.mkdir()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(one, debs.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--lock", type=Path, default=Path("manifests/edge-base.lock"))
    options = parser.parse_args()
    debs = fetch(load_lock(options.lock).packages["system"], host_mirror, Cache())
    taken: dict[str, list[float]] = {"ours": [], "dpkg-deb -x": []}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(options.runs + 1):
            for name, run in (("ours", ours), ("dpkg-deb -x", dpkg)):
                folder = Path(scratch) / name
                start = time.monotonic()
                run(debs, folder)
                taken[name].append(time.monotonic() - start)
                shutil.rmtree(folder)
    print(f"{len(debs)} packages, {AT_A_TIME} at a time, median of {options.runs} runs\n")
    print("| way | s | speed |")
    print("| --- | --- | --- |")
    floor = median(taken["dpkg-deb -x"][1:])
    for name, seconds in taken.items():
        print(f"| {name} | {median(seconds[1:]):.2f} | {floor / median(seconds[1:]):.2f} |")


if __name__ == "__main__":
    main()
