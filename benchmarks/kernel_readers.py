# SPDX-License-Identifier: Apache-2.0
"""Readers of one tree on this machine's kernel: EROFS, erofsfuse on the same image, squashfs. Needs root.

usage: python benchmarks/kernel_readers.py [--tree DIR] [--runs N] [--seq MIB] [--random N] [--erofsfuse PROGRAM]

Without erofsfuse (Debian's package of that name), its row is missing.

Prints a markdown table for docs/benchmarks.md. Each measurement has a new mount, so that nothing of the file system is
cached; the image is in the page cache, so no disk is measured. Names are read by a walk with lstat, then the largest
files one after the other, then single blocks of 4 KiB in random places. Each round runs all readers in turn; the table
has the fastest run of each. If the sha256 of what they read differs, there is no table. Memory is that of the daemon.
Both images are compressed with lz4hc, EROFS in 64 KiB, squashfs in its usual 128 KiB.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common import arguments, heads, row, tree_of

from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.write import write_image
from erofs_edge.sources.directory import scan
from erofs_edge.toolbox.prefix import find

PIECE = 1 << 17
Places = list[tuple[str, int]]


def files_of(tree: Path, mib: int, count: int) -> tuple[list[str], Places]:
    """Return (the largest files, `mib` in total; (file, byte) of `count` random blocks in files of at least a
    block)."""
    found: dict[int, tuple[int, str]] = {}
    for path in sorted(tree.rglob("*")):
        info = path.lstat()
        if stat.S_ISREG(info.st_mode) and info.st_size >= 4096:
            found.setdefault(info.st_ino, (info.st_size, str(path.relative_to(tree))))
    chosen, size = [], 0
    for length, name in sorted(found.values(), reverse=True):
        if size < mib << 20:
            chosen.append(name)
            size += length
    rng = random.Random(1)
    files = list(found.values())
    picked = rng.choices(files, weights=[length for length, _ in files], k=count)
    return chosen, [(name, rng.randrange(length // 4096) * 4096) for length, name in picked]


def reader_arguments(doc: str | None, *, rounds: int, mib: int, blocks: int) -> argparse.ArgumentParser:
    """Return a parser for both benchmarks of readers, with the defaults of one."""
    parser = arguments(doc, runs=rounds, trees=1)
    parser.add_argument("--seq", type=int, default=mib, help=f"MiB of large files (default: {mib})")
    parser.add_argument("--random", type=int, default=blocks, help=f"blocks (default: {blocks})")
    return parser


def images_of(tree: Path, folder: Path) -> dict[str, Path]:
    """Build the tree as EROFS and as squashfs, both with lz4hc, in `folder`."""
    images = {"erofs": folder / "erofs.img", "squashfs": folder / "squashfs.img"}
    write_image(scan(tree), images["erofs"], WriteOptions(compression="lz4hc", pcluster=65536, all_root=True))
    squash = [str(find("mksquashfs")), str(tree), str(images["squashfs"]), "-comp", "lz4", "-Xhc"]
    subprocess.run([*squash, "-all-root", "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
    return images


@contextmanager
def mounted(reader: str, image: Path, where: Path, program: str | None) -> Iterator[None]:
    """Mount the image for one measurement; `program` is erofsfuse."""
    if reader == "erofsfuse":
        command = [str(program), str(image), str(where)]
    else:
        command = ["mount", "-t", reader, "-o", "loop,ro", str(image), str(where)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run(["umount", str(where)], check=True)


def walk(where: Path) -> str:
    """Read the names, kinds and sizes of all files."""
    lines = []
    for folder, folders, files in os.walk(where):
        for name in [*folders, *files]:
            info = os.lstat(f"{folder}/{name}")
            size = info.st_size if stat.S_ISREG(info.st_mode) else 0
            lines.append(f"{folder}/{name} {info.st_mode} {size}")
    return hashlib.sha256("\n".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()


def sequential(where: Path, names: list[str]) -> str:
    """Read all of these files."""
    state = hashlib.sha256()
    for name in names:
        with (where / name).open("rb", buffering=0) as file:
            while data := file.read(PIECE):
                state.update(data[:64])
    return state.hexdigest()


def scattered(where: Path, places: Places) -> str:
    """Read one block of each file."""
    state = hashlib.sha256()
    for name, at in places:
        fd = os.open(where / name, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        state.update(os.pread(fd, 4096, at))
        os.close(fd)
    return state.hexdigest()


def daemon_memory(image: Path) -> int:
    """Return the KiB of private memory of an image's daemon."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(image) in (process / "cmdline").read_bytes().split(b"\0"):
                found = re.search(r"RssAnon:\s+(\d+)", (process / "status").read_text())
                return int(found[1]) if found else 0
        except OSError:
            continue
    return 0


def main() -> None:
    parser = reader_arguments(__doc__, rounds=5, mib=128, blocks=2000)
    parser.add_argument("--erofsfuse", default=shutil.which("erofsfuse"), help="default: the one on PATH")
    options = parser.parse_args()
    if os.geteuid():
        print("not measured: mounts need root")
        return
    tree = tree_of(options)
    readers = ["erofs", *(["erofsfuse"] if options.erofsfuse else []), "squashfs"]
    taken: dict[tuple[str, str], list[float]] = {}
    read: dict[str, set[str]] = {}
    memory = 0
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        images = images_of(tree, folder)
        images["erofsfuse"] = images["erofs"]
        names, places = files_of(tree, options.seq, options.random)
        (where := folder / "m").mkdir()
        work: dict[str, Callable[[], str]] = {
            "walk": lambda: walk(where),
            "sequential": lambda: sequential(where, names),
            "random": lambda: scattered(where, places),
        }
        for _ in range(options.runs):
            for what, do in work.items():
                for reader in readers:
                    with mounted(reader, images[reader], where, options.erofsfuse):
                        start = time.monotonic()
                        read.setdefault(what, set()).add(do())
                        taken.setdefault((reader, what), []).append(time.monotonic() - start)
                        if reader == "erofsfuse":
                            memory = max(memory, daemon_memory(images[reader]))
        sizes = {reader: path.stat().st_size / 1e6 for reader, path in images.items()}
        size = sum((tree / path).stat().st_size for path in names) / 1e6
    if any(len(sums) != 1 for sums in read.values()):
        raise SystemExit(f"the readers do not read the same: {read}")
    heads(
        "reader", "image MB", "walk s", f"{size:.0f} MB of large files s", f"{len(places)} blocks s", "daemon KiB"
    )  # fmt: skip
    for reader in readers:
        seconds = [f"{min(taken[reader, what]):.3f}" for what in work]
        row(reader, f"{sizes[reader]:.1f}", *seconds, memory if reader == "erofsfuse" else 0)


if __name__ == "__main__":
    main()
