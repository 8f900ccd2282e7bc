# SPDX-License-Identifier: Apache-2.0
"""Readers of one tree in an emulated machine: the kernel's EROFS, erofsfuse on the same image, squashfs in the kernel.

usage: python benchmarks/kernel_readers_guest.py [--tree FOLDER] [--runs N] [--seq MIB] [--random N] [--scratch DIR]

Prints a markdown table for docs/benchmarks.md. Debian's arm64 kernel, Debian's arm64 erofsfuse, QEMU without KVM: only
the ratios are meaningful. With nothing cached, the machine reads names (find), the largest files of the tree one after
the other, and single blocks of 4 KiB; each round runs all readers in turn. Each block is read by a dd, whose time for a
file in memory is subtracted. Memory is the decrease of MemAvailable from before the mount to after find and the large
files. If the sha256 of what the readers read differs, there is no table. Both images are compressed with lz4hc, EROFS
in 64 KiB, squashfs in its usual 128 KiB.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from statistics import median

from common import heads, row, tree_of
from guest import add_file, console, machine
from kernel_readers import files_of, images_of, reader_arguments

from erofs_edge.boot.initramfs import add_program
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.apt import open_apt
from erofs_edge.sources.debian.deb import read_deb
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.tree import FileTree

READERS = ("erofs", "erofsfuse", "squashfs")
PACKAGES = ["erofsfuse"]
INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /m /tmp
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
for module in /modules/disk/*.ko; do insmod $module; done
give_up() { echo "reader: $reader cannot be mounted: $(cat /tmp/fuse)"; reboot -f; }
for disk in /sys/block/vd*; do ln -s /dev/${disk##*/} /tmp/disk-$(cat $disk/serial); done
now() { read -r seconds _ </proc/uptime; echo $seconds; }
free() { awk '/^MemAvailable/ {print $2}' /proc/meminfo; }
cold() { sync; echo 3 >/proc/sys/vm/drop_caches; }
blocks() { while read -r path block; do dd if="$1${2:+/$path}" bs=4096 count=1 skip="$block" 2>/dev/null; done; }
dd if=/dev/urandom of=/tmp/floor bs=4096 count=64 2>/dev/null
cut -d ' ' -f 1 /places | awk '{print $1, NR % 64}' >/tmp/nowhere
for round in $(seq "$(cat /rounds)"); do
    start=$(now); blocks /tmp/floor </tmp/nowhere >/dev/null
    echo "reader: floor random $start $(now)"
    for reader in erofs erofsfuse squashfs; do
        cold
        before=$(free)
        case $reader in
            erofsfuse) erofsfuse /tmp/disk-erofs /m >/tmp/fuse 2>&1 || give_up ;;
            *) mount -t $reader -o ro /tmp/disk-$reader /m || give_up ;;
        esac
        start=$(now); names=$(find /m | wc -l)
        echo "reader: $reader find $start $(now)"
        start=$(now); sum=$(cd /m && xargs cat </sequential | sha256sum | cut -c 1-64)
        echo "reader: $reader hashed $start $(now)"
        echo "reader: $reader memory 0 $((before - $(free)))"
        cold
        start=$(now); (cd /m && xargs cat </sequential >/dev/null)
        echo "reader: $reader sequential $start $(now)"
        cold
        start=$(now); single=$(blocks /m yes </places | sha256sum | cut -c 1-64)
        echo "reader: $reader random $start $(now)"
        echo "told: $reader $names $sum $single"
        umount /m
    done
done
echo "reader: done"
reboot -f
"""


def plain_files(tree: Path, mib: int, count: int) -> tuple[list[str], list[tuple[str, int]]]:
    """Return (the largest files, `mib` in total; (file, block) of `count` random blocks), with paths of plain
    characters only."""
    plain = re.compile(r"[\w./+-]+").fullmatch
    large, places = files_of(tree, mib, count)
    return [name for name in large if plain(name)], [(name, at // 4096) for name, at in places if plain(name)]


def programs_of_fuse(cache: Cache, folder: Path) -> FileTree:
    """Return Debian's erofsfuse for arm64, with its dependencies."""
    found = FileTree()
    with open_apt(host_mirror(), "trixie", "arm64") as apt:
        debs = apt.download(PACKAGES, folder)
    for deb in debs:
        found.merge(read_deb(deb, cache).data)
    return found


def run(command: list[str], timeout: float) -> tuple[dict[tuple[str, str], list[float]], dict[str, set[str]]]:
    """Return ((reader, what) → seconds or KiB of each round, reader → what it read). Raises SystemExit if the machine
    does not finish."""
    figures: dict[tuple[str, str], list[float]] = {}
    told: dict[str, set[str]] = {}
    done = False
    with console(command, timeout) as lines:
        for line in lines:
            if found := re.search(r"reader: (\w+) (\w+) ([\d.-]+) ([\d.-]+)", line):
                figures.setdefault((found[1], found[2]), []).append(float(found[4]) - float(found[3]))
            elif found := re.search(r"told: (\w+) (.*\w)", line):
                told.setdefault(found[1], set()).add(found[2])
            done = done or "reader: done" in line
    if not done:
        raise SystemExit("the machine did not come to its end")
    return figures, told


def main() -> None:
    parser = reader_arguments(__doc__, rounds=3, mib=64, blocks=100)
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for the machine")
    options = parser.parse_args()
    tree = tree_of(options)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        images = images_of(tree, folder)
        sequential, places = plain_files(tree, options.seq, options.random)
        extra = FileTree()
        add_file(extra, "rounds", f"{options.runs}\n")
        add_file(extra, "sequential", "".join(f"{path}\n" for path in sequential))
        add_file(extra, "places", "".join(f"{path} {block}\n" for path, block in places))
        add_program(extra, programs_of_fuse(Cache(None), folder), "usr/bin/erofsfuse")
        command = machine(INIT, extra, ["virtio_blk", "erofs", "squashfs", "fuse"], images, folder)
        figures, told = run(command, options.timeout)
        sizes = {name: path.stat().st_size for name, path in images.items()}
        size = sum((tree / path).stat().st_size for path in sequential)
    if len(set().union(*told.values())) != 1 or set(told) != set(READERS):
        raise SystemExit(f"the readers do not read the same: {told}")
    floor = median(figures["floor", "random"])
    heads(
        f"reader, {size / 1e6:.0f} MB of large files", "image MB", "find s", "sequential s", "random s", "memory KiB"
    )  # fmt: skip
    for reader in READERS:
        found = {what: median(figures[reader, what]) for what in ("find", "sequential", "random", "memory")}
        found["random"] -= floor
        seconds = (f"{found[what]:.2f}" for what in ("find", "sequential", "random"))
        image = sizes["squashfs" if reader == "squashfs" else "erofs"] / 1e6
        row(reader, f"{image:.1f}", *seconds, f"{found['memory']:.0f}")


if __name__ == "__main__":
    main()
