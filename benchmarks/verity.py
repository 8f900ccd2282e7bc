# SPDX-License-Identifier: Apache-2.0
"""The cost of verification: `verity verify` against a plain sha256, the tree against the build, `verify` of a build.

usage: python benchmarks/verity.py [--image FILE] [--tree FOLDER] [--out FOLDER] [--runs N] [--scratch DIR]

Prints a markdown table for docs/benchmarks.md, medians of N runs in turn. CPU time is the figure that does not depend
on other load. `--tree` is a folder of which `fs build` makes an image (default: the corpus, see corpus.py, if it
exists); `--out` a build's output folder, made with a development key, for the row of `verify`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from corpus import default_folder
from fec import EDGE, Run, measure, noise

from erofs_edge.toolbox.prefix import find

EROFS_EDGE = EDGE[:-1]


def sha256(*paths: str) -> list[str]:
    """Return the command for a plain digest by the library that Python's hashlib also uses."""
    return [str(find("openssl")), "dgst", "-sha256", *paths]


def pairs(runs: int, ours: Callable[[], Run], peer: Callable[[], Run]) -> tuple[Run, Run]:
    """Return the medians of both, run in turn."""
    done = [(ours(), peer()) for _ in range(runs)]
    first, second = (
        Run(*(median(values) for values in zip(*(one[side][:3] for one in done), strict=True)), "")  # type: ignore[arg-type]
        for side in (0, 1)
    )
    return first, second


def row(what: str, ours: Run, peer: Run) -> str:
    """Return a line of the table."""
    wall, cpu = ours.wall / peer.wall, ours.cpu / peer.cpu
    return (
        f"| {what} | {ours.wall:.2f} / {peer.wall:.2f} ({wall:.2f}x) | {ours.cpu:.2f} / {peer.cpu:.2f} ({cpu:.2f}x) |"
    )


def verify_row(image: Path, runs: int) -> str:
    """Compare `verity verify` with the plain digest of the same file."""
    said = measure([*EDGE, "format", str(image)]).said
    root = next(line.split()[-1] for line in said.splitlines() if line.startswith("Root hash"))
    verify = [*EDGE, "verify", str(image), "--root-hash", root]
    return row(
        "`verity verify` / openssl dgst -sha256",
        *pairs(runs, lambda: measure(verify), lambda: measure(sha256(str(image)))),
    )


def build_row(tree: Path, folder: Path, runs: int) -> str:
    """Compare making the tree with building the image, compressed data not cached."""
    image = folder / "built.img"

    def build() -> Run:
        image.unlink(missing_ok=True)
        return measure([*EROFS_EDGE, "fs", "build", str(tree), "-o", str(image), "-zlz4hc", "--all-root", "--no-cache"])

    def tree_of() -> Run:
        (folder / "built.tree").unlink(missing_ok=True)
        return measure([*EDGE, "format", str(image), "--hash-device", str(folder / "built.tree")])

    build()
    return row("tree / `fs build` of the same image", *pairs(runs, tree_of, build))


def out_row(out: Path, runs: int) -> str:
    """Compare `verify OUT` with the plain digest of its files."""
    files = [str(path) for path in sorted(out.iterdir()) if path.is_file()]
    verify = [*EROFS_EDGE, "verify", str(out), "--key", str(out / "sign.pub.pem")]
    return row(
        "`verify OUT` / openssl dgst -sha256 of its files",
        *pairs(runs, lambda: measure(verify), lambda: measure(sha256(*files))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="to verify (default: 296 MB of noise; the content does not matter)")
    parser.add_argument("--tree", type=Path, default=default_folder(), help="folder to build an image of")
    parser.add_argument("--out", type=Path, help="output folder of a build")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="folder for images (default: a temporary one)")
    options = parser.parse_args()
    print("| what | wall s | CPU s |")
    print("| --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        image = folder / "image"
        if options.image:
            shutil.copyfile(options.image, image)
            os.truncate(image, -(-image.stat().st_size // 4096) * 4096)
        else:
            noise(image)
        print(verify_row(image, options.runs), flush=True)
        if options.tree.is_dir():
            print(build_row(options.tree, folder, options.runs), flush=True)
        if options.out:
            print(out_row(options.out, options.runs), flush=True)


if __name__ == "__main__":
    main()
