# SPDX-License-Identifier: Apache-2.0
"""Debian's arm64 kernel maps files of our images from persistent memory (DAX): nothing of them is in the page cache.

A machine with busybox, an initramfs of its own, and a part of its memory that the device tree calls persistent.
"""

from __future__ import annotations

import hashlib
import random
import re
import stat
import subprocess
from pathlib import Path

import pytest

from erofs_edge.boot.cpio import write_cpio
from erofs_edge.boot.fdt import Node, parse, string, write
from erofs_edge.boot.initramfs import compress
from erofs_edge.boot.modules import KernelModules
from erofs_edge.build.inputs import gather
from erofs_edge.build.stages import fetch_debs, quiet
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.write import write_image
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import read_deb
from erofs_edge.sources.directory import scan
from erofs_edge.toolbox.emulator import find_qemu
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.vm.machine import arguments, kind_of

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu"), pytest.mark.long, pytest.mark.timeout(900)]
MIB = 1 << 20
PMEM = 0x7000_0000
"""guest address: RAM of the machine `virt` starts at 1 GiB, and the kernel is given 768 MiB of it"""
MODULES = ["of_pmem", "nd_pmem", "erofs"]
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in /modules/*.ko; do insmod $module; done
mkdir -p /m
turns=100
until [ -b /dev/pmem0 ] || [ $turns = 0 ]; do sleep 0.1; turns=$((turns - 1)); done
say() { echo "told: $*"; }
cached() { awk '/^Cached/ {print $2}' /proc/meminfo; }
for way in always never; do
    mount -t erofs -o ro,dax=$way /dev/pmem0 /m || continue
    before=$(cached); sum=$(cd /m && cat * | sha256sum | cut -d ' ' -f 1)
    say $way $sum $(($(cached) - before)) $(grep ' /m ' /proc/mounts | cut -d ' ' -f 4)
    umount /m
done
dmesg | grep -i -E 'erofs|pmem|nd_' | tail -20
say done
reboot -f
"""


def tree(folder: Path) -> Path:
    folder.mkdir()
    for number in range(4):
        (folder / f"file{number}").write_bytes(random.Random(number).randbytes(3 * MIB + 4096 * number))
    (folder / "text").write_text("tail\n" * 100)
    return folder


def machine(image: Path, folder: Path) -> list[str]:
    """QEMU's command: busybox and the modules in an initramfs, `image` as persistent memory."""
    cache = Cache(None)
    debs = fetch_debs(gather(Path(__file__).parents[2] / "boards/qemu-aarch64.yaml"), cache, quiet)
    kernel = read_deb(debs.kernel, cache).data
    busybox = read_deb(debs.initramfs["busybox-static"], cache).data.get("usr/bin/busybox", follow=True)
    assert busybox is not None
    files = FileTree()
    for name in ("bin", "dev", "modules", "proc", "sys"):
        files.directory(name)
    files.add("dev/console", Inode(stat.S_IFCHR | 0o600, rdev=(5, 1)))
    files.add("bin/busybox", Inode(stat.S_IFREG | 0o755, content=busybox.content))
    files.add("init", Inode(stat.S_IFREG | 0o755, content=BytesContent(INIT.encode())))
    modules = KernelModules(kernel)
    for number, module in enumerate(modules.closure(modules.select(MODULES))):
        content = BytesContent(module.data)
        files.add(f"modules/{number:02}-{module.name}.ko", Inode(stat.S_IFREG | 0o644, content=content))
    vmlinuz, made = folder / "vmlinuz", folder / "initramfs"
    vmlinuz.write_bytes(next(node for path, node in kernel.walk() if b"/vmlinuz-" in path).read())
    made.write_bytes(compress(write_cpio(files, epoch=0)))
    command = arguments(kind_of("arm64"), kernel=vmlinuz, initramfs=made, disks={}, memory=1 << 30, epoch=0)
    program = str(find_qemu().program)
    dump, described = folder / "dump.dtb", folder / "pmem.dtb"
    subprocess.run([program, *command, "-machine", f"dumpdtb={dump}"], check=True, capture_output=True, timeout=60)
    devices = parse(dump.read_bytes())
    # the last part of memory is not the kernel's, and holds the image from the beginning
    where = PMEM.to_bytes(8, "big") + image.stat().st_size.to_bytes(8, "big")
    devices.root.children[f"pmem@{PMEM:x}"] = Node({"compatible": string("pmem-region"), "reg": where})
    described.write_bytes(write(devices))
    command[command.index("-append") + 1] += " mem=768M"
    return [
        program, *command, "-dtb", str(described),
        "-device", f"loader,file={image},addr={PMEM:#x},force-raw=on",
    ]  # fmt: skip


def test_dax_on_persistent_memory(tmp_path: Path) -> None:
    """With DAX the files are right, and reading 12 MiB of them leaves hardly a page in the cache; without it, all."""
    source, image = tree(tmp_path / "source"), tmp_path / "image"
    write_image(scan(source), image, WriteOptions(compression="none", epoch=0))
    with image.open("ab") as file:
        file.write(bytes(-image.stat().st_size % (2 * MIB)))
    done = subprocess.run(
        machine(image, tmp_path), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        check=False, timeout=800,
    )  # fmt: skip
    told = {words[0]: words[1:] for line in re.findall(r"told: (.*)", done.stdout) if (words := line.split())}
    assert {"always", "never", "done"} <= told.keys(), f"{done.stdout[-4000:]}\n{done.stderr}"
    want = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(source.iterdir()))).hexdigest()
    assert told["always"][0] == told["never"][0] == want
    assert "dax=always" in told["always"][2]
    assert int(told["always"][1]) < 1024, "KiB"
    assert int(told["never"][1]) > 12 * 1024, "KiB"
