# SPDX-License-Identifier: Apache-2.0
"""Start-up time in QEMU: the verified system against the minimum that the same boot chain allows.

usage: python benchmarks/boot.py [--runs N] [--out FOLDER]

The peer is the same U-Boot, the same signature check and the same kernel with a bare initramfs: busybox and a shell.
Ours is measured until the EROFS root is mounted from dm-verity, and until the login prompt. Runs alternate.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

from common import BOARD, arguments, build_board, heads, row

from erofs_edge.boot.cpio import write_cpio
from erofs_edge.boot.fdt import parse
from erofs_edge.boot.fit import Image, build_fit
from erofs_edge.boot.initramfs import compress
from erofs_edge.manifest.load import load_board, load_lock, lock_path
from erofs_edge.qemu.built import load_built, machine_command
from erofs_edge.qemu.machine import Wiring, find_qemu
from erofs_edge.qemu.scratch import copy_sparse
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import read_deb
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.trust.signer import open_signer

MARKS = {"bare": b"bare: shell", "root": b"erofs-edge: stage root", "login": b"login: "}
LIMIT = 300.0


def bare_disk(out: Path, folder: Path) -> Path:
    """Copy the disk, with a bare initramfs for the same kernel in its boot partitions, signed with the same key."""
    board = load_board(BOARD).value
    lock = load_lock(lock_path(BOARD))
    if (relocked := out / "locks" / lock_path(BOARD).name).exists():
        lock = load_lock(relocked)
    cache = Cache()
    busybox = [package for package in lock.packages["initramfs"] if package.name == "busybox-static"]
    data = read_deb(fetch(busybox, host_mirror, cache)["busybox-static"], cache).data
    program = data.get("usr/bin/busybox")
    assert program is not None
    tree = FileTree()
    tree.directory("dev")
    tree.add("dev/console", Inode(stat.S_IFCHR | 0o600, rdev=(5, 1)))
    tree.add("bin/busybox", Inode(stat.S_IFREG | 0o755, content=program.content))
    script = b"#!/bin/busybox sh\necho 'bare: shell'\nexec /bin/busybox sh\n"
    tree.add("init", Inode(stat.S_IFREG | 0o755, content=BytesContent(script)))
    root = parse((out / "boot.fit").read_bytes()).root
    kernel = root.at("/images/kernel")
    assert kernel is not None
    images = {
        "kernel": Image("kernel_noload", kernel.props["data"], "Linux"),
        "ramdisk": Image("ramdisk", compress(write_cpio(tree, epoch=0)), "a shell"),
    }
    fit = build_fit(
        images,
        description="bare",
        epoch=0,
        signer=open_signer(board.sign.key),
        load_address=board.boot.load_address,
    )
    disk = copy_sparse(out / "disk.img", folder / "bare.img")
    partitions = json.loads((out / "release.json").read_text())["partitions"]
    fd = os.open(disk, os.O_WRONLY)
    for name in ("boot_a", "boot_b"):
        os.pwrite(fd, fit, partitions[name]["start"])
    os.close(fd)
    return disk


def seconds_until(command: list[str], marks: list[str]) -> dict[str, float]:
    """Return the seconds from QEMU's start until each mark is on the console; QEMU is stopped at the last one."""
    start = time.monotonic()
    found: dict[str, float] = {}
    console = b""
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)
    assert machine.stdout is not None
    try:
        while len(found) < len(marks) and time.monotonic() - start < LIMIT:
            piece = machine.stdout.read(4096)
            if not piece:
                raise SystemExit(f"the machine ended early:\n{console[-2000:].decode(errors='replace')}")
            console += piece
            for mark in marks:
                if mark not in found and MARKS[mark] in console:
                    found[mark] = time.monotonic() - start
    finally:
        machine.kill()
        machine.wait()
    return found


def main() -> None:
    options = arguments(__doc__, runs=5, board=True).parse_args()
    build_board(options.out)
    board, built, emulator = load_board(BOARD).value, load_built(options.out), find_qemu()
    rows: dict[str, list[float]] = {mark: [] for mark in MARKS}
    with tempfile.TemporaryDirectory(dir=options.out) as name:
        folder = Path(name)
        peer = machine_command(board, built, emulator, folder, Wiring(bare_disk(options.out, folder)))
        ours = machine_command(board, built, emulator, folder, Wiring(built.disk))
        for _ in range(options.runs):
            for found in (seconds_until(peer, ["bare"]), seconds_until(ours, ["root", "login"])):
                for mark, value in found.items():
                    rows[mark].append(value)
    middle = {mark: median(values) for mark, values in rows.items()}
    heads("QEMU start to", "s", "against the bare shell")
    titles = {
        "bare": "bare initramfs shell (peer)",
        "root": "EROFS root mounted from dm-verity",
        "login": "login prompt",
    }
    for mark, title in titles.items():
        row(title, f"{middle[mark]:.2f}", f"{middle[mark] / middle['bare']:.2f}x")


if __name__ == "__main__":
    main()
