# SPDX-License-Identifier: Apache-2.0
"""What Debian's arm64 kernel does with our images beyond block devices: DAX on pmem, mounts of files, files as devices.

One machine for all of it, with busybox and an initramfs of its own.
"""

from __future__ import annotations

import hashlib
import random
import re
import stat
import struct
import subprocess
from collections.abc import Iterator
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
from erofs_edge.tree import BytesContent, FileContent, FileTree, Inode
from erofs_edge.vm.machine import arguments, kind_of

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu"), pytest.mark.long, pytest.mark.timeout(900)]
MIB = 1 << 20
PMEM = 0x7000_0000
"""guest address: RAM of the machine `virt` starts at 1 GiB, and the kernel is given 768 MiB of it"""
MODULES = ["of_pmem", "nd_pmem", "erofs", "loop"]
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in /modules/*.ko; do insmod $module; done
mkdir -p /m
say() { echo "told: $*"; }
sum() { (cd /m && find . -type f | sort | xargs cat | sha256sum | cut -d ' ' -f 1); }
say kernel $(uname -r)
ls /dev/pmem0 > /dev/null 2>&1 && say pmem /dev/pmem0
if mount -t erofs -o ro,dax=always /dev/pmem0 /m; then
    say dax $(sum) $(grep ' /m ' /proc/mounts | cut -d ' ' -f 4)
    before=$(awk '/^Cached/ {print $2}' /proc/meminfo); cat /m/* > /dev/null
    say cached $(($(awk '/^Cached/ {print $2}' /proc/meminfo) - before))
    umount /m
fi
mkdir /files && mount -t ramfs ramfs /files && cp /images/* /files
for image in plain lz4 onbase; do
    options=; [ $image = onbase ] && options=device=/files/plain
    /mountfile /files/$image /m erofs "$options" || continue
    say file-$image $(sum) $(ls /sys/block/loop0/loop 2> /dev/null | wc -l)
    umount /m
done
dmesg | grep -i erofs | tail -20
say done
reboot -f
"""


def mountfile() -> bytes:
    """A program for arm64: mount(2) of its first three arguments, read-only, with the fourth as data.

    The mounts of busybox and of util-linux make a loop device of a file by themselves.
    """
    code = (
        0xF9400BE0, 0xF9400FE1, 0xF94013E2,  # ldr x0, [sp, 16]; ldr x1, [sp, 24]; ldr x2, [sp, 32]
        0xD2800023, 0xF94017E4,  # mov x3, MS_RDONLY; ldr x4, [sp, 40]
        0xD2800508, 0xD4000001,  # mov x8, 40 (mount); svc 0
        0xCB0003E0, 0xD2800BA8, 0xD4000001,  # neg x0, x0; mov x8, 93 (exit); svc 0
    )  # fmt: skip
    text = struct.pack(f"<{len(code)}I", *code)
    base, start = 0x400000, 64 + 56
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 183, 1, base + start, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    size = start + len(text)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x10000) + text


def tree(folder: Path) -> Path:
    folder.mkdir()
    for number in range(4):
        (folder / f"file{number}").write_bytes(random.Random(number).randbytes(3 * MIB + 4096 * number))
    (folder / "text").write_text("tail\n" * 100)
    return folder


def sum_of(folder: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    """What the machine says, by its first word, and 'want': the sums of the two trees."""
    folder = tmp_path_factory.mktemp("mounts")
    one = tree(folder / "one")
    two = tree(folder / "two")
    (two / "zz-new").write_bytes(b"new" * 5000)
    images = {name: folder / f"{name}.img" for name in ("plain", "lz4", "onbase")}
    write_image(scan(one), images["plain"], WriteOptions(compression="none", epoch=0))
    write_image(scan(one), images["lz4"], WriteOptions(compression="lz4", epoch=0))
    write_image(scan(two), images["onbase"], WriteOptions(compression="none", epoch=0, bases=(images["plain"],)))
    pmem = folder / "pmem"
    data = images["plain"].read_bytes()
    pmem.write_bytes(data + bytes(-len(data) % (2 * MIB)))
    command = machine(images, pmem, folder)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, timeout=800
    )
    found = {words[0]: words[1:] for line in re.findall(r"told: (.*)", done.stdout) if (words := line.split())}
    assert "done" in found, f"{done.stdout[-4000:]}\n{done.stderr}"
    found["want"] = [sum_of(one), sum_of(two)]
    found["console"] = [done.stdout]
    yield found


def machine(images: dict[str, Path], pmem: Path, folder: Path) -> list[str]:
    """QEMU's command: busybox, the modules and the images in an initramfs, `pmem` as persistent memory."""
    cache = Cache(None)
    debs = fetch_debs(gather(Path(__file__).parents[2] / "boards/qemu-aarch64.yaml"), cache, quiet)
    kernel = read_deb(debs.kernel, cache).data
    busybox = read_deb(debs.initramfs["busybox-static"], cache).data.get("usr/bin/busybox", follow=True)
    assert busybox is not None
    files = FileTree()
    for name in ("bin", "dev", "images", "modules", "proc", "sys"):
        files.directory(name)
    files.add("dev/console", Inode(stat.S_IFCHR | 0o600, rdev=(5, 1)))
    files.add("bin/busybox", Inode(stat.S_IFREG | 0o755, content=busybox.content))
    files.add("init", Inode(stat.S_IFREG | 0o755, content=BytesContent(INIT.encode())))
    files.add("mountfile", Inode(stat.S_IFREG | 0o755, content=BytesContent(mountfile())))
    for name, path in images.items():
        files.add(f"images/{name}", Inode(stat.S_IFREG | 0o644, content=FileContent(path, path.stat().st_size)))
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
    where = PMEM.to_bytes(8, "big") + pmem.stat().st_size.to_bytes(8, "big")
    devices.root.children[f"pmem@{PMEM:x}"] = Node({"compatible": string("pmem-region"), "reg": where})
    described.write_bytes(write(devices))
    command[command.index("-append") + 1] += " mem=768M"
    return [
        program, *command, "-dtb", str(described),
        "-device", f"loader,file={pmem},addr={PMEM:#x},force-raw=on",
    ]  # fmt: skip


def test_dax_on_persistent_memory(told: dict[str, list[str]]) -> None:
    """Mounted with dax=always; the files are right, and reading 12 MiB of them leaves no page in the cache."""
    assert told["pmem"] == ["/dev/pmem0"]
    sum_read, options = told["dax"]
    assert sum_read == told["want"][0]
    assert "dax=always" in options
    assert int(told["cached"][0]) < 1024


def test_files_are_mounted_without_a_loop_device(told: dict[str, list[str]]) -> None:
    for name in ("plain", "lz4"):
        assert told[f"file-{name}"] == [told["want"][0], "0"]


def test_a_file_as_device_of_a_file(told: dict[str, list[str]]) -> None:
    assert told["file-onbase"] == [told["want"][1], "0"]
