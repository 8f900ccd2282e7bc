# SPDX-License-Identifier: Apache-2.0
"""An update of a slot: bytes written and sent, against the block floor and `zstd --patch-from`; the cost of a plan.

usage: python benchmarks/update.py [--tree DIR] [--update DIR] [--runs N] [--scratch DIR]

A board has the tree as its system in both slots. Its newer version, built with and without `--baseline`, is flashed to
slot b of simulated targets with different abilities. The boot images are one block each, so that all numbers are of
the system and its hash tree. 'floor' counts the blocks of the system that are nowhere in the old one. Each flash is
checked by what the board would start, and zstd's patch by applying it. Last, the cost of proving that a target is
already up to date, against a full flash of the same image: bytes on the wire for remote targets, seconds for a file
and (as root) for a block device on the disk, with direct reads and writes. Prints markdown tables.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

from common import BLOCK, EDGE, arguments, blocks, heads, measure, row, trees_of
from same import compare

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


def patch_size(old: Path, new: Path, folder: Path) -> int:
    """Return the bytes of zstd's patch, which is also applied."""
    patch, back = folder / "patch", folder / "patched"
    words = [str(find("zstd", host=False)), "-q", "-f", "--long=30", f"--patch-from={old}"]
    subprocess.run([*words, "-3", str(new), "-o", str(patch)], check=True)
    subprocess.run([*words, "-d", str(patch), "-o", str(back)], check=True)
    if not filecmp.cmp(new, back, shallow=False):
        raise SystemExit("zstd's patch makes another image")
    back.unlink()
    return patch.stat().st_size


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
    run = measure([*EDGE, "flash", *map(str, words), "--json"])
    return run.wall, run.cpu, json.loads(run.said)


def proof(image: Path, kind: str, memory: bytes) -> list[str]:
    """Return the cells of one row: the bytes on the wire for a target that can only read, or that can hash."""
    crossed = []
    for wish in (Wish(full=True), Wish()):
        there = SimulatedTarget(SimulatedDisk(bytearray(memory)), KINDS[kind])
        todo = prepare(image, there, wish, quiet)  # type: ignore[arg-type]
        results = flash(todo.plan, there, quiet, found=todo.found, known=todo.known)  # type: ignore[arg-type]
        assert wish.full or not any(result.written or result.zeroed or result.copied for result in results)
        crossed.append((there.sent + there.answered) / 1e6)
    return [f"{crossed[1]:.2f} MB", f"{crossed[0]:.2f} MB", f"{crossed[1] / crossed[0]:.4f}x"]


def right_already(image: Path, target: Path, runs: int) -> list[str]:
    """Return the cells of one row: wall seconds of alternating flashes, minimum and median, and the least CPU seconds.
    A file is checked twice after each full flash: first it is partly on the disk, then in memory."""
    full, first, again = (list[tuple[float, float]]() for _ in range(3))
    for _ in range(runs):
        for taken, words in ((full, ["--full"]), (first, []), (again, [])):
            clock, processors, record = command(image, "--to", target, "--yes", *words)
            assert words or not record["bytes_written"]
            taken.append((clock, processors))
    cells = []
    for value in (min, median):
        clocks = [value(clock for clock, _ in taken) for taken in (again, first, full)]
        cells += [*(f"{seconds:.3f}" for seconds in clocks), f"{clocks[0] / clocks[2]:.2f}x"]
    return cells + [f"{min(processors for _, processors in taken):.2f}" for taken in (again, full)]


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


def images_of(tree: Path, newer: Path, folder: Path) -> tuple[Path, Path, Path]:
    """Build the tree, its newer version with the first image as a baseline, and its newer version without."""
    old, stable, fresh = (folder / word for word in ("old", "baseline", "fresh"))
    with CompressionCache(folder / "cache") as cache:
        options = WriteOptions(
            compression="lz4hc", level=9, pcluster=65536, epoch=0, times="fixed", all_root=True, cache=cache
        )
        write_image(scan(tree), old, options)
        write_image(scan(newer), stable, options.replaced(baseline=old))
        write_image(scan(newer), fresh, options)
    compare(stable, fresh)
    return old, stable, fresh


def sent(old: Path, systems: dict[Path, Path], first: Path, folder: Path) -> None:
    """Print what an update of the disk `first` to each system (image → disk) writes and sends."""
    memory, had = first.read_bytes(), set(blocks(old))
    heads(
        "update", "target", "written MB", "sent MB", "answered MB", "CPU s", "floor MB", "zstd -3 --patch-from MB"
    )  # fmt: skip
    for system, new in systems.items():
        floor = len(set(blocks(system)) - had) * BLOCK / 1e6
        delta = patch_size(old, system, folder) / 1e6
        for kind in KINDS:
            row(system.name, *flashed(first, new, kind, memory), f"{floor:.1f}", f"{delta:.1f}")


def proved(image: Path, new: Path, card: Path, runs: int) -> None:
    """Print what it costs to prove that a target is right already: an image in a file, a disk in `card`."""
    print()
    heads("target", "right already", "full flash", "ratio")
    now = card.read_bytes()
    for kind in ("read", "hash"):
        row(f"behind a wire: {kind}", *proof(new, kind, now))
    print()
    titles = "right, least s", "just written", "full", "ratio", "right, median s", "just written", "full", "ratio"
    heads("target", *titles, "CPU s: right", "full")
    plain = card.with_name("plain")
    shutil.copyfile(image, plain)
    row("file, one image", *right_already(image, plain, runs))
    row("file, a disk", *right_already(new, card, runs))
    with loop(card) as device:
        if device is not None:
            row("block device", *right_already(new, device, runs))
        else:
            print("\nblock device: not measured, as loop devices need root")


def main() -> None:
    options = arguments(__doc__, runs=5, trees=2).parse_args()
    tree, newer = trees_of(options)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        old, stable, fresh = images_of(tree, newer, folder)
        room = -(-max(path.stat().st_size for path in (old, stable, fresh)) * 102 // 100 >> 20) << 20
        first = disk(old, folder / "old.img", room, 1)
        systems = {
            system: disk(system, folder / f"{system.name}.img", room, version)
            for version, system in ((2, stable), (3, fresh))
        }
        sent(old, systems, first, folder)
        card, new = folder / "card.img", systems[stable]
        shutil.copyfile(first, card)
        print()
        heads("command", "clock s", "CPU s", "bytes written")
        commands = {"flash --plan": ["--plan"], "flash --full": ["--full"], "flash of what is there": []}
        for label, words in commands.items():
            clock, processors, record = command(new, "--to", card, *words)
            row(label, f"{clock:.2f}", f"{processors:.2f}", record["bytes_written"])
        proved(stable, new, card, options.runs)


if __name__ == "__main__":
    main()
