# SPDX-License-Identifier: Apache-2.0
"""How much of a damaged image can be repaired: by `verity repair`, and by a real kernel's FEC while reading, in QEMU.

usage: python benchmarks/repair_kernel.py [--mib N] [--roots N] [--sectors N …] [--kind spread|burst] [--timeout S]
       [--native LINUX] [--scratch DIR]

Prints a markdown table for docs/benchmarks.md. Each image is damaged as in repair.py, in its data only, and read once
from end to end in blocks, bypassing the page cache, which would request a bad block twice; the unreadable blocks are
counted. Beside them are the result of `repair.by_the_kernel` for the same damage (equal columns confirm the computed
table of repair.py) and what `verity repair` then does to the same file. The kernel and the programs are those of the
stock board, the machine is QEMU's without KVM. Of 10,000 scattered sectors hardly any can be repaired; that takes
longest, since for each bad block 253 others are read. dm-bufio gets enough memory to keep all of them, otherwise each
would be read again.

--native runs the kernel as a program on this machine (Linux' `make ARCH=um tinyconfig linux` with the options of
NATIVE): the same source, without emulation. Its root is this machine's, read-only, and so are sh, dd and dmsetup; the
scratch folder must not be below /dev. Linux 6.12 cannot restore the registers of processors with AMX: there
`have_xstate_support` in arch/x86/um/os-Linux/registers.c must stay 0.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from pathlib import Path

from common import arguments, heads, measure, row
from fec import VERITY
from guest import add_file, console, machine
from repair import SECTORS, by_the_kernel, damage

from erofs_edge.tree import FileTree
from erofs_edge.verity.fec import Places, write_parity
from erofs_edge.verity.tree import append

INIT = """#!/bin/busybox sh
export PATH=/bin DM_DISABLE_UDEV=1
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in /modules/disk/*.ko; do insmod $module; done
echo $((256 << 20)) >/sys/module/dm_bufio/parameters/max_cache_size_bytes
while read -r serial sectors table; do
    for disk in /sys/block/vd*; do
        [ "$(cat $disk/serial)" = "$serial" ] && device=/dev/${disk##*/}
    done
    table="0 $sectors verity 1 $device $device $table use_fec_from_device $device $(cat /fec-$serial)"
    /bin/dmsetup create $serial --readonly --table "$table"
    words="bs=4096 iflag=direct conv=noerror"
    errors=$(dd if=/dev/mapper/$serial of=/dev/null $words 2>&1 | /bin/busybox grep -c 'rror')
    corrected=$(/bin/busybox dmesg -c | /bin/busybox grep -c 'verity-fec.*corrected')
    echo "repair: $serial unreadable $errors corrected $corrected"
    /bin/dmsetup remove $serial
done </jobs
echo "repair: done"
reboot -f
"""

NATIVE = """64BIT PRINTK FUTEX EPOLL MULTIUSER SHMEM TMPFS POSIX_TIMERS BINFMT_ELF BINFMT_SCRIPT PROC_FS SYSFS DEVTMPFS
DEVTMPFS_MOUNT BLOCK BLK_DEV BLK_DEV_UBD HOSTFS MD BLK_DEV_DM DM_VERITY DM_VERITY_FEC CRYPTO CRYPTO_SHA256
STDERR_CONSOLE TTY HZ_100 CC_OPTIMIZE_FOR_PERFORMANCE"""
NATIVE_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DM_DISABLE_UDEV=1 LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sysfs /sys
dmsetup mknodes
echo $((256 << 20)) >/sys/module/dm_bufio/parameters/max_cache_size_bytes
disks=abcdefghijklmnop
while read -r serial sectors table; do
    device=/dev/ubd${disks%${disks#?}} disks=${disks#?}
    table="0 $sectors verity 1 $device $device $table use_fec_from_device $device $(cat HERE/fec-$serial)"
    dmsetup create $serial --readonly --table "$table" --addnodeoncreate
    errors=$(dd if=/dev/mapper/$serial of=/dev/null bs=4096 iflag=direct conv=noerror 2>&1 | grep -c 'rror')
    echo "repair: $serial unreadable $errors corrected $(dmesg -c | grep -c 'verity-fec.*corrected')"
    dmsetup remove $serial
done <HERE/jobs
echo "repair: done"
sleep 60
"""


class Job:
    """An image, its damage, and how a kernel opens it."""

    def __init__(self, image: Path, serial: str, mib: int, roots: int) -> None:
        with image.open("wb") as file:
            for seed in range(mib):
                file.write(random.Random(seed).randbytes(1 << 20))
        self.image, self.serial, self.roots = image, serial, roots
        self.verity = append(image)
        self.layout = write_parity(Places(image, image, roots=roots), self.verity.superblock)
        self.places: list[int] = []

    def table(self) -> str:
        """Return a line of /jobs: the mapping without its parity."""
        v = self.verity
        words = f"4096 4096 {v.data_blocks} {v.hash_start_block} sha256 {v.root_hash.hex()} {v.salt.hex()} 8"
        return f"{self.serial} {v.data_blocks * 8} {words}\n"

    def fec(self) -> str:
        """Return the rest of the mapping."""
        return f"fec_roots {self.roots} fec_blocks {self.layout.blocks} fec_start {self.layout.offset // 4096}\n"

    def ours(self) -> int:
        """Return the number of blocks that `verity repair` repairs."""
        where = [f"--hash-offset={self.verity.hash_offset}", f"--fec-offset={self.layout.offset}"]
        fec = [f"--fec-device={self.image}", f"--fec-roots={self.roots}"]
        command = [*VERITY, "repair", str(self.image), f"--root-hash={self.verity.root_hash.hex()}", *where, *fec]
        record = json.loads(measure([*command, "--json"], codes=(0, 4)).said)
        return int(record["repaired_data_blocks"]["total"])


Found = dict[str, tuple[int, int]]
"""serial → blocks that could not be read, lines about corrections"""


def native(linux: Path, jobs: list[Job], folder: Path) -> list[str]:
    """Return the command of the kernel that runs as a program."""
    init = folder / "init"
    init.write_text(NATIVE_INIT.replace("HERE", str(folder)))
    init.chmod(0o755)
    (folder / "jobs").write_text("".join(job.table() for job in jobs))
    for job in jobs:
        (folder / f"fec-{job.serial}").write_text(job.fec())
    disks = [f"ubd{chr(ord('a') + number)}r={job.image}" for number, job in enumerate(jobs)]
    root = ["root=/dev/root", "rootfstype=hostfs", "ro", f"init={init}"]
    return [str(linux), *disks, *root, "mem=1G", "con0=fd:0,fd:1", "loglevel=0"]


def emulated(jobs: list[Job], folder: Path) -> list[str]:
    """Return the command of QEMU's machine with the stock board's kernel."""
    extra = FileTree()
    add_file(extra, "jobs", "".join(job.table() for job in jobs))
    for job in jobs:
        add_file(extra, f"fec-{job.serial}", job.fec())
    return machine(INIT, extra, ["virtio_blk", "dm_verity"], {job.serial: job.image for job in jobs}, folder)


def read_through(command: list[str], timeout: float) -> Found:
    """Return what the machine reports until it has read everything, or is stopped."""
    found: Found = {}
    with console(command, timeout) as lines:
        for line in lines:
            if told := re.search(r"repair: (\w+) unreadable (\d+) corrected (\d+)", line):
                found[told[1]] = int(told[2]), int(told[3])
            if "repair: done" in line:
                break
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--mib", type=int, default=32, help="size of each image")
    parser.add_argument("--roots", type=int, default=2)
    parser.add_argument("--sectors", type=int, action="append", help="default: 1 to 10,000")
    parser.add_argument("--kind", choices=("spread", "burst"), help="one of both alone")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for the machine")
    parser.add_argument("--native", type=Path, help="Linux as a program of this machine, in place of QEMU's machine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder, jobs = Path(name), list[Job]()
        for sectors in options.sectors or SECTORS:
            for burst in [False, True] if options.kind is None else [options.kind == "burst"]:
                serial = f"{'burst' if burst else 'spread'}{sectors}"
                job = Job(folder / serial, serial, options.mib, options.roots)
                job.places = damage(job.image, sectors, burst, job.verity.superblock.data_size)
                jobs.append(job)
        command = native(options.native, jobs, folder) if options.native else emulated(jobs, folder)
        found = read_through(command, options.timeout)
        damaged = f"damage, {options.mib} MiB, {options.roots} roots"
        heads(damaged, "bad blocks", "repaired by us", "read by the kernel", "computed")
        for job in jobs:
            computed, bad = by_the_kernel(
                job.places, job.roots, job.layout.blocks, job.verity.hash_start_block, job.verity.data_blocks
            )  # fmt: skip
            shares = [f"{count} ({count / bad:.1%})" for count in (job.ours(), computed)]
            if job.serial in found:
                read = bad - found[job.serial][0]
                shares.insert(1, f"{read} ({read / bad:.1%})")
            else:
                shares.insert(1, f"not within {options.timeout:g} s")
            row(job.serial, bad, *shares)
        print(f"\n<!-- {json.dumps(found)} -->")


if __name__ == "__main__":
    main()
