# SPDX-License-Identifier: Apache-2.0
"""`fs build` against mkfs.erofs 1.9: the same tree, codec, level and pcluster size, run in turn.

usage: python benchmarks/fs_build.py [--tree DIR] [--mkfs PATH] [--runs N] [--mode NAME …] [--scratch DIR]

Prints a markdown table for docs/benchmarks.md: medians, and our median as a ratio of the peer's. mkfs.erofs runs with
its fastest number of workers on two processors, 4. Both images are read back and compared file by file. The tree is
read once before, so that all runs find it in memory; write the figures down only from an idle machine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from erofs_edge.erofs.read import Image
from erofs_edge.toolbox.prefix import find

UUID = "00112233-4455-6677-8899-aabbccddeeff"
COMMON = ["-T", "0", "-U", UUID, "--all-root"]
OURS = [sys.executable, "-c", "from erofs_edge.cli.main import main; main()", "fs", "build"]
PIECE = 4 << 20


class Mode(NamedTuple):
    """A row: arguments for both, and whether we may use our cache (filled by a run before); ours, where they differ."""

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


class Run(NamedTuple):
    """Seconds, seconds, bytes, bytes."""

    wall: float
    cpu: float
    memory: int
    size: int


def measure(argv: Sequence[str], image: Path, env: dict[str, str]) -> Run:
    """Run a builder once. CPU is user and system time, memory the peak resident set."""
    image.unlink(missing_ok=True)
    start = time.monotonic()
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{argv[0]} exited {child.returncode}: {said.decode(errors='replace')[-500:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, image.stat().st_size)


def contents(path: Path) -> Iterator[tuple[object, ...]]:
    """What an image holds, file by file, in order."""
    with Image(path) as image:
        digests: dict[int, str] = {}
        for name, node in image.tree().walk():
            key = id(node)
            if node.is_file and key not in digests:
                state = hashlib.sha256()
                for offset in range(0, node.size, PIECE):
                    assert node.content is not None
                    state.update(node.content.read(offset, PIECE))
                digests[key] = state.hexdigest()
            yield name, node.mode, node.uid, node.gid, node.mtime_ns, node.target, node.size, digests.get(key)


def compare(ours: Path, theirs: Path) -> None:
    """Stop unless both images hold the same."""
    for a, b in zip(contents(ours), contents(theirs), strict=True):
        if a != b:
            raise SystemExit(f"the images differ: {a} against {b}")


def run_mode(mode: Mode, tree: Path, mkfs: str, runs: int, scratch: Path) -> str:
    """The table's row of a mode."""
    ours, theirs = scratch / "ours.erofs", scratch / "theirs.erofs"
    env = {**os.environ, "EROFS_EDGE_CACHE": str(scratch / "cache")}
    our_argv = [*OURS, str(tree), "-o", str(ours), *(mode.ours or mode.arguments), *COMMON]
    our_argv += [] if mode.warm else ["--no-cache"]
    # "-z NAME" as one word, the way mkfs.erofs wants optional arguments
    joined = [a + b for a, b in zip(mode.arguments[::2], mode.arguments[1::2], strict=True)]
    their_argv = [mkfs, *joined, *COMMON, "--workers=4", "--quiet", str(theirs), str(tree)]
    if mode.warm:
        measure(our_argv, ours, env)
    pairs = [(measure(their_argv, theirs, env), measure(our_argv, ours, env)) for _ in range(runs)]
    # in a process of its own: what this one has in memory would count in its children's peaks
    subprocess.run([sys.executable, __file__, "--compare", str(ours), str(theirs)], check=True)
    peer = Run(*(median(values) for values in zip(*(p for p, _ in pairs), strict=True)))  # type: ignore[arg-type]
    we = Run(*(median(values) for values in zip(*(w for _, w in pairs), strict=True)))  # type: ignore[arg-type]
    cells = [
        mode.name,
        f"{we.wall:.2f} / {peer.wall:.2f} ({we.wall / peer.wall:.2f}x)",
        f"{we.cpu:.2f} / {peer.cpu:.2f} ({we.cpu / peer.cpu:.2f}x)",
        f"{we.size / 1e6:.2f} / {peer.size / 1e6:.2f} ({we.size / peer.size:.4f}x)",
        f"{we.memory / 1e6:.0f} / {peer.memory / 1e6:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, help="what to build (default: benchmarks/corpus.py's)")
    parser.add_argument("--mkfs", default=os.environ.get("EROFS_EDGE_MKFS"), help="mkfs.erofs (default: the prefix's)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--mode", action="append", choices=[mode.name for mode in MODES], help="default: all")
    parser.add_argument("--scratch", type=Path, help="folder for images (default: a temporary one)")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="IMAGE", help="only compare two images")
    options = parser.parse_args()
    if options.compare:
        compare(*options.compare)
        return
    tree = options.tree or _corpus()
    mkfs = options.mkfs or str(find("mkfs.erofs-1.9", host=False))
    subprocess.run(["tar", "-cf", "-", "-C", str(tree), "."], stdout=subprocess.DEVNULL, check=True)
    print("| mode | wall s, ours / mkfs.erofs | CPU s | image MB | peak memory MB |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        for mode in MODES:
            if not options.mode or mode.name in options.mode:
                print(run_mode(mode, tree, mkfs, options.runs, Path(folder)), flush=True)


def _corpus() -> Path:
    sys.path.insert(0, str(Path(__file__).parent))
    from corpus import corpus

    return corpus()


if __name__ == "__main__":
    main()
