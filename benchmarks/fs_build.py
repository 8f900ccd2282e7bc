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

import argparse
import hashlib
import json
import os
import shutil
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


class Run(NamedTuple):
    """Seconds, seconds, bytes, bytes."""

    wall: float
    cpu: float
    memory: int
    size: int


def measure(argv: Sequence[str], image: Path, env: dict[str, str]) -> Run:
    """Run a builder once. CPU is user and system time, memory the peak resident set of one process."""
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
    """Return an image's content, file by file, in order."""
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
    """Stop unless both images have the same content."""
    for a, b in zip(contents(ours), contents(theirs), strict=True):
        if a != b:
            raise SystemExit(f"the images differ: {a} against {b}")


def environment(scratch: Path) -> dict[str, str]:
    """Return the environment for our runs: a separate cache, and compiled modules, which a first build leaves there."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env |= {"EROFS_EDGE_CACHE": str(scratch / "cache"), "PYTHONPYCACHEPREFIX": str(scratch / "compiled")}
    if not (scratch / "compiled").exists():
        (scratch / "empty").mkdir()
        first = [*OURS, str(scratch / "empty"), "-o", str(scratch / "first"), *HC]
        subprocess.run(first, env=env, stdout=subprocess.DEVNULL, check=True)
    return env


def run_cached(tree: Path, update: Path, runs: int, scratch: Path) -> list[str]:
    """Print rows: without a cache; with one that has the tree; the newer tree with that cache. Each image is compared
    with one built without a cache."""
    env, cache, kept = environment(scratch), scratch / "cache", scratch / "kept"
    ours, plain = scratch / "ours.erofs", scratch / "plain.erofs"

    def build(source: Path, out: Path, *more: str) -> Run:
        return measure([*OURS, str(source), "-o", str(out), *HC, *COMMON, *more], out, env)

    shutil.rmtree(cache, ignore_errors=True)
    build(tree, ours)
    cache.rename(kept)
    walls: dict[str, list[float]] = {"no cache": [], "unchanged": [], "update": []}
    for _ in range(runs):
        walls["no cache"].append(build(tree, plain, "--no-cache").wall)
        for name, source in (("unchanged", tree), ("update", update)):
            shutil.rmtree(cache, ignore_errors=True)
            shutil.copytree(kept, cache)
            os.sync()
            walls[name].append(build(source, ours).wall)
            if source is update:
                build(source, plain, "--no-cache")
            if ours.read_bytes() != plain.read_bytes():
                raise SystemExit(f"{name}: a cache changed the image")
    cold = median(walls["no cache"])
    return [f"| {name} | {median(times):.2f} | {median(times) / cold:.2f}x |" for name, times in walls.items()]


def run_overhead(mode: Mode, tree: Path, runs: int, scratch: Path) -> str:
    """Return the row of a mode: the output of --stats for the run with the median ratio."""
    env, out = environment(scratch), scratch / "ours.erofs"
    argv = [
        *OURS,
        str(tree),
        "-o",
        str(out),
        *(mode.ours or mode.arguments),
        *COMMON,
        "--no-cache",
        "--stats",
        "--json",
    ]
    said = []
    for _ in range(runs):
        out.unlink(missing_ok=True)
        said.append(json.loads(subprocess.run(argv, env=env, stdout=subprocess.PIPE, check=True).stdout)["time"])
    time_spent = sorted(said, key=lambda one: float(one["overhead"]))[runs // 2]
    return (
        f"| {mode.name} | {time_spent['wall']:.2f} | {time_spent['codec_wall']:.2f} | {time_spent['overhead']:.2f}x |"
    )


def run_mode(mode: Mode, tree: Path, mkfs: str, runs: int, scratch: Path) -> str:
    """Return the table's row of a mode."""
    ours, theirs = scratch / "ours.erofs", scratch / "theirs.erofs"
    env = environment(scratch)
    our_argv = [*OURS, str(tree), "-o", str(ours), *(mode.ours or mode.arguments), *COMMON]
    our_argv += [] if mode.warm else ["--no-cache"]
    # "-z NAME" as one word: mkfs.erofs wants optional arguments this way
    joined = [a + b for a, b in zip(mode.arguments[::2], mode.arguments[1::2], strict=True)]
    their_argv = [mkfs, *joined, *COMMON, "--workers=4", "--quiet", str(theirs), str(tree)]
    if mode.warm:
        measure(our_argv, ours, env)
    pairs = [(measure(their_argv, theirs, env), measure(our_argv, ours, env)) for _ in range(runs)]
    # in a separate process: the memory of this one would count in its children's peaks
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
    parser.add_argument("--cached", action="store_true", help="only what a cache is worth")
    parser.add_argument("--update", type=Path, help="a newer version of the tree (default: 'update' beside it)")
    parser.add_argument("--overhead", action="store_true", help="only builds against their codec calls")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="IMAGE", help="only compare two images")
    options = parser.parse_args()
    if options.compare:
        compare(*options.compare)
        return
    tree = options.tree or _corpus()
    mkfs = options.mkfs or str(find("mkfs.erofs-1.9", host=False))
    subprocess.run(["tar", "-cf", "-", "-C", str(tree), "."], stdout=subprocess.DEVNULL, check=True)
    modes = [mode for mode in MODES if not options.mode or mode.name in options.mode]
    print(f"Python {sys.version}")
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        if options.cached:
            print("| cache | wall s | of no cache |\n| --- | --- | --- |")
            print("\n".join(run_cached(tree, options.update or tree.with_name("update"), options.runs, folder)))
        elif options.overhead:
            print("| mode | wall s | codec calls alone, s | |\n| --- | --- | --- | --- |")
            for mode in (mode for mode in modes if mode.arguments and not mode.warm):
                print(run_overhead(mode, tree, options.runs, folder), flush=True)
        else:
            print("| mode | wall s, ours / mkfs.erofs | CPU s | image MB | peak memory MB |")
            print("| --- | --- | --- | --- | --- |")
            for mode in modes:
                print(run_mode(mode, tree, mkfs, options.runs, folder), flush=True)


def _corpus() -> Path:
    sys.path.insert(0, str(Path(__file__).parent))
    from corpus import corpus

    return corpus()


if __name__ == "__main__":
    main()
