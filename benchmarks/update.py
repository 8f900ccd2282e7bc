# SPDX-License-Identifier: Apache-2.0
"""An update of a slot: bytes written and sent, against the block floor and `zstd --patch-from`; the cost of a plan.

usage: python benchmarks/update.py [--tree DIR] [--update DIR] [--scratch DIR]

A board has the tree (default: benchmarks/corpus.py's) as its system in both slots. Its newer version (default: `update`
beside it), built with and without `--baseline`, is flashed to slot b of simulated targets with different abilities. The
boot images are one block each, so that all numbers are of the system and its hash tree. 'floor' counts the blocks of
the system that are nowhere in the old one. Each flash is checked by what the board would start. Last, the cost of
proving that a target is already up to date, against a full flash of the same image: bytes on the wire for remote
targets, seconds for a file and (as root) for a block device on the disk, with direct reads and writes. Prints markdown
tables.
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
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.write import write_image
from erofs_edge.flash.execute import flash
from erofs_edge.flash.prepare import Wish, prepare
from erofs_edge.flash.target import Ability
from erofs_edge.simulator import images
from erofs_edge.simulator.boot import System, start
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.target import SimulatedTarget
from erofs_edge.sources.directory import scan
from erofs_edge.toolbox.prefix import find
from erofs_edge.verity.tree import append

BLOCK = 4096
KINDS = {
    "read": Ability.READ,
    "hash": Ability.READ | Ability.HASH,
    "hash, copy": Ability.READ | Ability.HASH | Ability.COPY,
    "hash, unpack, --from": Ability.READ | Ability.HASH | Ability.PATCH,
}


def quiet(_label: str) -> nullcontext[object]:
    return nullcontext(lambda done, total: None)


def disk(system: Path, out: Path, room: int, version: int) -> Path:
    """Return a board's disk with this system in both slots, followed by its hash tree."""
    with_tree = out.with_suffix(".tree")
    shutil.copyfile(system, with_tree)
    info = append(with_tree)

    def made(path: Path, *_: object) -> System:
        shutil.move(with_tree, path)
        return System(info.root_hash, info.hash_offset)

    original, images.system_image = images.system_image, made  # type: ignore[assignment]
    try:
        return images.disk_image(out, version, images.Sizes(boot=2 * BLOCK, system=room, misc=1 << 20))
    finally:
        images.system_image = original


def blocks(path: Path) -> list[bytes]:
    raw = memoryview(path.read_bytes())
    return [hashlib.blake2b(raw[at : at + BLOCK], digest_size=16).digest() for at in range(0, len(raw), BLOCK)]


def patch_size(old: Path, new: Path, out: Path) -> int:
    command = [find("zstd", host=False), "-q", "-f", "-3", "--long=30", f"--patch-from={old}", new, "-o", out]
    subprocess.run([str(word) for word in command], check=True)
    return out.stat().st_size


def flashed(old: Path, new: Path, kind: str, memory: bytes) -> list[str]:
    """Return one row: what is sent to a target with these abilities."""
    there = SimulatedTarget(SimulatedDisk(bytearray(memory)), KINDS[kind])
    wish = Wish(baseline=old if "--from" in kind else None)
    begun = time.process_time()
    todo = prepare(new, there, wish, quiet)  # type: ignore[arg-type]
    results = flash(todo.plan, there, quiet, found=todo.found, known=todo.known)  # type: ignore[arg-type]
    seconds = time.process_time() - begun
    view = memoryview(there.disk.memory)
    started = start(lambda offset, length: bytes(view[offset : offset + length]), len(view), images.opened)
    assert started is not None and started.slot == "B"
    written = sum(result.written + result.copied for result in results)
    return [kind, f"{written / 1e6:.1f}", f"{there.sent / 1e6:.1f}", f"{there.answered / 1e6:.1f}", f"{seconds:.1f}"]


def command(*words: object) -> tuple[float, float, dict[str, object]]:
    """Return the wall and CPU seconds of a flash, and its record."""
    begun, before = time.monotonic(), _children()
    done = subprocess.run(
        [sys.executable, "-m", "erofs_edge", "flash", *map(str, words), "--json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return time.monotonic() - begun, _children() - before, json.loads(done.stdout)


def _children() -> float:
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def proof(image: Path, kind: str, memory: bytes) -> str:
    """Return one row: the bytes on the wire for a target that can only read, or that can hash."""
    crossed = []
    for wish in (Wish(full=True), Wish()):
        there = SimulatedTarget(SimulatedDisk(bytearray(memory)), KINDS[kind])
        todo = prepare(image, there, wish, quiet)  # type: ignore[arg-type]
        results = flash(todo.plan, there, quiet, found=todo.found, known=todo.known)  # type: ignore[arg-type]
        assert wish.full or not any(result.written or result.zeroed or result.copied for result in results)
        crossed.append((there.sent + there.answered) / 1e6)
    return f"| behind a wire: {kind} | {crossed[1]:.2f} MB | {crossed[0]:.2f} MB | {crossed[1] / crossed[0]:.4f}x |"


def right_already(image: Path, target: Path, runs: int = 5) -> str:
    """Return one row: wall seconds of alternating flashes, minimum and median, and the minimum of CPU seconds. A file
    is checked twice after each full flash: first it is partly on the disk, then in memory."""
    full, first, again = (list[tuple[float, float]]() for _ in range(3))
    for _ in range(runs):
        for taken, words in ((full, ["--full"]), (first, []), (again, [])):
            clock, processors, record = command(image, "--to", target, "--yes", *words)
            assert words or not record["bytes_written"]
            taken.append((clock, processors))
    cells = ["block device" if target.is_block_device() else "file"]
    for value in (min, median):
        clocks = [value(clock for clock, _ in taken) for taken in (again, first, full)]
        cells += [*(f"{seconds:.3f}" for seconds in clocks), f"{clocks[0] / clocks[2]:.2f}x"]
    cells += [f"{min(processors for _, processors in taken):.2f}" for taken in (again, full)]
    return f"| {' | '.join(cells)} |"


@contextmanager
def loop(file: Path) -> Iterator[Path | None]:
    """Yield a block device for a file; None without permission for one."""
    words = ["losetup", "--find", "--show", "--direct-io=on", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False) if os.geteuid() == 0 else None
    if done is None or done.returncode:
        yield None
        return
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", str(device)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--update", type=Path)
    parser.add_argument("--scratch", type=Path, help="folder for images (default: a temporary one)")
    given, _ = parser.parse_known_args()
    tree = given.tree or _corpus()
    newer = given.update or tree.with_name("update")
    with tempfile.TemporaryDirectory(dir=given.scratch) as name:
        folder = Path(name)
        old, stable, fresh = (folder / word for word in ("old", "baseline", "fresh"))
        with CompressionCache(folder / "cache") as cache:
            options = WriteOptions(
                compression="lz4hc", level=9, pcluster=65536, epoch=0, times="fixed", all_root=True, cache=cache
            )

            write_image(scan(tree), old, options)
            write_image(scan(newer), stable, options.replaced(baseline=old))
            write_image(scan(newer), fresh, options)
        room = -(-max(path.stat().st_size for path in (old, stable, fresh)) * 102 // 100 >> 20) << 20
        first = disk(old, folder / "old.img", room, 1)
        memory, had = first.read_bytes(), set(blocks(old))
        print("| update | target | written MB | sent MB | answered MB | CPU s | floor MB | zstd -3 --patch-from MB |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for version, system in ((2, stable), (3, fresh)):
            new = disk(system, folder / f"{system.name}.img", room, version)
            floor = len(set(blocks(system)) - had) * BLOCK / 1e6
            delta = patch_size(old, system, folder / "delta") / 1e6
            for kind in KINDS:
                row = [system.name, *flashed(first, new, kind, memory), f"{floor:.1f}", f"{delta:.1f}"]
                print(f"| {' | '.join(row)} |", flush=True)
        card = folder / "card.img"
        shutil.copyfile(first, card)
        new = folder / "baseline.img"
        print("\n| command | clock s | CPU s | bytes written |\n| --- | --- | --- | --- |")
        for label, words in (
            ("flash --plan", ["--plan"]),
            ("flash --full", ["--full"]),
            ("flash of what is there", []),
        ):
            clock, processors, record = command(new, "--to", card, *words)
            print(f"| {label} | {clock:.2f} | {processors:.2f} | {record['bytes_written']} |", flush=True)
        print("\n| target | right already | full flash | ratio |\n| --- | --- | --- | --- |")
        now = card.read_bytes()
        for kind in ("read", "hash"):
            print(proof(new, kind, now), flush=True)
        heads = "right, least s", "just written", "full", "ratio", "right, median s", "just written", "full", "ratio"
        print(f"\n| target | {' | '.join(heads)} | CPU s: right | full |\n| {' | '.join(['---'] * 11)} |")
        shutil.copyfile(stable, folder / "plain")  # an image without partitions
        print(right_already(stable, folder / "plain").replace("file", "file, one image"), flush=True)
        print(right_already(new, card), flush=True)
        with loop(card) as device:
            if device is not None:
                print(right_already(new, device), flush=True)


def _corpus() -> Path:
    sys.path.insert(0, str(Path(__file__).parent))
    from corpus import corpus

    return corpus()


if __name__ == "__main__":
    main()
