# SPDX-License-Identifier: Apache-2.0
"""`diff` of two images that have the same files, but their data in different order.

usage: python benchmarks/diff.py [--tree DIR] [--runs N] [--scratch DIR]

The second image has the largest files first (`--profile`). `diff` must find no differing path, but every moved block.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from statistics import median

from common import EDGE, Run, arguments, heads, measure, row, tree_of

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


def run(old: Path, new: Path) -> Run:
    """Run `diff` once. Stop unless it finds equal contents."""
    taken = measure([*EDGE, "diff", str(old), str(new), "--json"], codes=(0, 5))
    told, _ = json.JSONDecoder().raw_decode(taken.said)
    if not told["summary"][0].startswith("0 of ") or told["packages"]:
        raise SystemExit(f"contents that are equal are reported to differ: {told['summary']}")
    return taken


def main() -> None:
    options = arguments(__doc__, runs=5, trees=1).parse_args()
    tree = tree_of(options)
    heads("lz4hc,9, pclusters of", "MB", "wall s", "CPU s: least, median")
    for cluster in CLUSTERS:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            old, new = pair(tree, Path(scratch), cluster)
            wall, cpu = zip(*(run(old, new)[:2] for _ in range(options.runs)), strict=True)
            size = new.stat().st_size / 1e6
            row(cluster, f"{size:.1f}", f"{median(wall):.2f}", f"{min(cpu):.2f}, {median(cpu):.2f}")


if __name__ == "__main__":
    main()
