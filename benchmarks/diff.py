# SPDX-License-Identifier: Apache-2.0
"""`diff` of two images that have the same files, but their data in different order.

usage: python benchmarks/diff.py [--tree DIR] [--runs N] [--scratch DIR]

The second image has the largest files first (`--profile`). `diff` must find no differing path, but every moved block.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

EDGE = [sys.executable, "-c", "from erofs_edge.cli.main import main; main()"]
FIRST = 60  # files at the front of the second image
CLUSTERS = ("4096", "65536")


def pair(tree: Path, scratch: Path, cluster: str) -> tuple[Path, Path]:
    """Build two images of a tree, in different orders."""
    files = [Path(folder) / name for folder, _, names in os.walk(tree) for name in names]
    files = sorted(
        (one for one in files if one.is_file() and not one.is_symlink()), key=lambda one: -one.stat().st_size
    )
    profile = scratch / "profile"
    profile.write_text("".join(f"/{one.relative_to(tree)}\n" for one in files[:FIRST]))
    made = scratch / "old", scratch / "new"
    for image, more in ((made[0], []), (made[1], ["--profile", str(profile)])):
        options = ["-z", "lz4hc,9", "-C", cluster, "-T", "0", "--all-root", *more]
        subprocess.run([*EDGE, "fs", "build", str(tree), "-o", str(image), *options], check=True, capture_output=True)
    return made


def run(old: Path, new: Path) -> tuple[float, float]:
    """Return the (wall, user and system) seconds of one run."""
    start, before = time.monotonic(), os.times()
    done = subprocess.run([*EDGE, "diff", str(old), str(new), "--json"], capture_output=True, text=True, check=False)
    wall, after = time.monotonic() - start, os.times()
    told, _ = json.JSONDecoder().raw_decode(done.stdout)
    if not told["summary"][0].startswith("0 of ") or told["packages"]:
        raise SystemExit(f"contents that are equal are told to differ: {told['summary']}")
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, help="what the images hold (default: benchmarks/corpus.py's)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    tree = options.tree or _corpus()
    print("| lz4hc,9, pclusters of | MB | wall s | CPU s: least, median |")
    print("| --- | --- | --- | --- |")
    for cluster in CLUSTERS:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            old, new = pair(tree, Path(scratch), cluster)
            taken = [run(old, new) for _ in range(options.runs)]
            wall, cpu = median(one for one, _ in taken), sorted(two for _, two in taken)
            size = new.stat().st_size / 1e6
            print(f"| {cluster} | {size:.1f} | {wall:.2f} | {cpu[0]:.2f}, {median(cpu):.2f} |", flush=True)


def _corpus() -> Path:
    sys.path.insert(0, str(Path(__file__).parent))
    from corpus import corpus

    return corpus()


if __name__ == "__main__":
    main()
