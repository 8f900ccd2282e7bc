# SPDX-License-Identifier: Apache-2.0
"""`fs build` against mkfs.erofs 1.9: the same tree, codec, level and pcluster size, run in turn.

usage: python benchmarks/fs_build.py [--tree DIR] [--mkfs PATH] [--runs N] [--mode NAME …] [--scratch DIR]
       python benchmarks/fs_build.py --cached [--update DIR]      builds with a cache against one without
       python benchmarks/fs_build.py --overhead [--mode NAME …]   builds against their codec calls alone

Prints a markdown table for docs/benchmarks.md: medians, and our median as a ratio of the peer's. mkfs.erofs runs with
the number of workers that is fastest on two processors, 4. Both images are read back and compared file by file. The
tree is read once beforehand, so that all runs find it in memory; publish figures of an idle machine only. Ours always
runs with compiled modules, as installed packages do, and in the Python that runs this script, whose version is printed:
one compiled without --enable-optimizations (pyenv's default) takes a tenth more time with lz4 than a distribution's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from common import EDGE, arguments, compiled, heads, measure, medians, row, tree_of, trees_of, versus

from erofs_edge.toolbox.prefix import find

UUID = "00112233-4455-6677-8899-aabbccddeeff"
COMMON = ["-T", "0", "-U", UUID, "--all-root"]
OURS = [*EDGE, "fs", "build"]


class Mode(NamedTuple):
    """A row: arguments for both programs, whether ours may use its cache (filled by an earlier run), and our arguments
    if they differ."""

    name: str
    arguments: list[str]
    warm: bool = False
    ours: list[str] | None = None


HC = ["-z", "lz4hc,9", "-C", "65536"]
MODES = [
    Mode("lz4hc,9 64K", ["-z", "lz4hc,9", "-C", "65536"]),
    Mode("lz4hc,9 64K (ours: levels by kind)", HC, ours=["-z", "lz4hc", "-C", "65536"]),
    Mode("lz4hc,9 64K, warm cache", ["-z", "lz4hc,9", "-C", "65536"], warm=True),
    Mode("lz4hc,9 4K", ["-z", "lz4hc,9", "-C", "4096"]),
    Mode("lz4hc,9 64K, ztailpacking", [*HC, "-E", "ztailpacking"]),
    Mode("lz4hc,9 64K, dedupe", [*HC, "-E", "dedupe"]),
    Mode("lz4hc,9 64K, fragments", [*HC, "-E", "fragments"]),
    Mode("lz4hc,9 64K, all-fragments,dedupe", [*HC, "-E", "all-fragments,dedupe"]),
    Mode("lz4hc,12 64K", ["-z", "lz4hc,12", "-C", "65536"]),
    Mode("lz4 64K", ["-z", "lz4", "-C", "65536"]),
    Mode("lz4 4K", ["-z", "lz4", "-C", "4096"]),
    Mode("zstd,3 64K", ["-z", "zstd,3", "-C", "65536"]),
    Mode("deflate,6 64K", ["-z", "deflate,6", "-C", "65536"]),
    Mode("lzma,6 64K", ["-z", "lzma,6", "-C", "65536"]),
    Mode("none", []),
]


class Build(NamedTuple):
    """Wall and CPU seconds, the peak resident set of one process and the image's size, in bytes."""

    wall: float
    cpu: float
    memory: int
    size: int


def build(argv: Sequence[str], image: Path, env: dict[str, str]) -> Build:
    """Run a builder once."""
    image.unlink(missing_ok=True)
    taken = measure(argv, env=env)
    return Build(taken.wall, taken.cpu, taken.memory, image.stat().st_size)


def environment(scratch: Path) -> dict[str, str]:
    """Return the environment for our runs: a separate cache, and compiled modules, which a first build leaves there."""
    env = compiled(scratch) | {"EROFS_EDGE_CACHE": str(scratch / "cache")}
    if not (scratch / "compiled").exists():
        (scratch / "empty").mkdir()
        build([*OURS, str(scratch / "empty"), "-o", str(scratch / "first"), *HC], scratch / "first", env)
    return env


def run_cached(tree: Path, update: Path, runs: int, scratch: Path) -> None:
    """Print rows: without a cache; with one that has the tree; the newer tree with that cache. Each image is compared
    with one built without a cache."""
    env, cache, kept = environment(scratch), scratch / "cache", scratch / "kept"
    ours, plain = scratch / "ours.erofs", scratch / "plain.erofs"

    def one(source: Path, out: Path, *more: str) -> Build:
        return build([*OURS, str(source), "-o", str(out), *HC, *COMMON, *more], out, env)

    shutil.rmtree(cache, ignore_errors=True)
    one(tree, ours)
    cache.rename(kept)
    walls: dict[str, list[float]] = {"no cache": [], "unchanged": [], "update": []}
    for _ in range(runs):
        walls["no cache"].append(one(tree, plain, "--no-cache").wall)
        for name, source in (("unchanged", tree), ("update", update)):
            shutil.rmtree(cache, ignore_errors=True)
            shutil.copytree(kept, cache)
            os.sync()
            walls[name].append(one(source, ours).wall)
            if source is update:
                one(source, plain, "--no-cache")
            if ours.read_bytes() != plain.read_bytes():
                raise SystemExit(f"{name}: a cache changed the image")
    cold = median(walls["no cache"])
    for name, times in walls.items():
        row(name, f"{median(times):.2f}", f"{median(times) / cold:.2f}x")


def run_overhead(mode: Mode, tree: Path, runs: int, scratch: Path) -> None:
    """Print the row of a mode: the output of --stats for the run with the median ratio."""
    env, out = environment(scratch), scratch / "ours.erofs"
    options = mode.ours or mode.arguments
    argv = [*OURS, str(tree), "-o", str(out), *options, *COMMON, "--no-cache", "--stats", "--json"]
    said = []
    for _ in range(runs):
        out.unlink(missing_ok=True)
        said.append(json.loads(measure(argv, env=env).said)["time"])
    middle = sorted(said, key=lambda one: float(one["overhead"]))[runs // 2]
    row(mode.name, f"{middle['wall']:.2f}", f"{middle['codec_wall']:.2f}", f"{middle['overhead']:.2f}x")


def run_mode(mode: Mode, tree: Path, mkfs: str, runs: int, scratch: Path) -> None:
    """Print the table's row of a mode."""
    ours, theirs = scratch / "ours.erofs", scratch / "theirs.erofs"
    env = environment(scratch)
    our_argv = [*OURS, str(tree), "-o", str(ours), *(mode.ours or mode.arguments), *COMMON]
    our_argv += [] if mode.warm else ["--no-cache"]
    # "-z NAME" as one word: mkfs.erofs wants optional arguments this way
    joined = [a + b for a, b in zip(mode.arguments[::2], mode.arguments[1::2], strict=True)]
    their_argv = [mkfs, *joined, *COMMON, "--workers=4", "--quiet", str(theirs), str(tree)]
    if mode.warm:
        build(our_argv, ours, env)
    pairs = [(build(their_argv, theirs, env), build(our_argv, ours, env)) for _ in range(runs)]
    # in a separate process: the memory of this one would count in its children's peaks
    subprocess.run([sys.executable, Path(__file__).with_name("same.py"), ours, theirs], check=True)
    peer, we = (Build(*medians([pair[side] for pair in pairs])) for side in (0, 1))  # type: ignore[arg-type]
    row(
        mode.name,
        versus(we.wall, peer.wall),
        versus(we.cpu, peer.cpu),
        f"{we.size / 1e6:.2f} / {peer.size / 1e6:.2f} ({we.size / peer.size:.4f}x)",
        f"{we.memory / 1e6:.0f} / {peer.memory / 1e6:.0f}",
    )


def main() -> None:
    parser = arguments(__doc__, runs=5, trees=2)
    parser.add_argument("--mkfs", default=os.environ.get("EROFS_EDGE_MKFS"), help="mkfs.erofs (default: the prefix's)")
    parser.add_argument("--mode", action="append", choices=[mode.name for mode in MODES], help="default: all")
    parser.add_argument("--cached", action="store_true", help="only what a cache is worth")
    parser.add_argument("--overhead", action="store_true", help="only builds against their codec calls")
    options = parser.parse_args()
    tree, newer = trees_of(options) if options.cached else (tree_of(options), None)
    mkfs = options.mkfs or str(find("mkfs.erofs-1.9", host=False))
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.read_bytes()
    modes = [mode for mode in MODES if not options.mode or mode.name in options.mode]
    print(f"Python {sys.version}")
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        if newer is not None:
            heads("cache", "wall s", "of no cache")
            run_cached(tree, newer, options.runs, folder)
        elif options.overhead:
            heads("mode", "wall s", "codec calls alone, s", "ratio")
            for mode in (mode for mode in modes if mode.arguments and not mode.warm):
                run_overhead(mode, tree, options.runs, folder)
        else:
            heads("mode", "wall s, ours / mkfs.erofs", "CPU s", "image MB", "peak memory MB")
            for mode in modes:
                run_mode(mode, tree, mkfs, options.runs, folder)


if __name__ == "__main__":
    main()
