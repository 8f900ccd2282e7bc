# SPDX-License-Identifier: Apache-2.0
"""Blocks of more than 4 KiB, which only kernels with equally large pages mount: Debian's arm64 kernel with 16 KiB
pages.

One emulated machine mounts the images one after the other; every pair of the writer's features is in one of them. It
reports names, modes, owners, sizes, times and contents of everything as one hash.
"""

from __future__ import annotations

import hashlib
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from covering import Row, covering, pairs_of
from writer_check import write
from writer_trees import file, mixed, noise, text

from erofs_edge.boot.cpio import write_cpio
from erofs_edge.boot.initramfs import compress
from erofs_edge.boot.modules import KernelModules
from erofs_edge.build.inputs import gather
from erofs_edge.build.stages import fetch_debs, quiet
from erofs_edge.erofs.check import check
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.errors import UsageError
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.apt import open_apt
from erofs_edge.sources.debian.deb import read_deb
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.toolbox.emulator import find_qemu
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.vm.machine import arguments, kind_of

KERNEL = "linux-image-arm64-16k"
PROCESSOR = "cortex-a76"
"""QEMU's -cpu: the first of Arm's that supports 16 KiB pages"""
ALIGN = 64 << 10  # bytes
FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "block": {
        "16K": {"block_size": 16384},
        "8K": {"block_size": 8192},
        "4K": {"block_size": 4096},
        "1K": {"block_size": 1024},
        "512": {"block_size": 512},
    },
    "codec": {
        "lz4": {"compression": "lz4"},
        "none": {"compression": "none"},
        "lz4hc": {"compression": "lz4hc"},
        "zstd": {"compression": "zstd"},
        "deflate": {"compression": "deflate", "level": 1},
        "lzma": {"compression": "lzma", "level": 0},
    },
    "pcluster": {"block": {}, "32K": {"pcluster": 32768}, "64K": {"pcluster": 65536}},
    "tail": {
        "blocks": {},
        "ztailpacking": {"ztailpacking": True},
        "fragments": {"fragments": "tails"},
        "all-fragments": {"fragments": "all"},
    },
    "dedupe": {"no": {}, "yes": {"dedupe": True}},
    "chunks": {"no": {}, "16K": {"chunk_size": 16384}, "indexes": {"chunk_size": 32768, "chunk_indexes": True}},
    "inode": {"auto": {}, "extended": {"inode_form": "extended"}},
    "inline": {"yes": {}, "no": {"inline_tails": False}},
    "index": {"compact": {}, "full": {"full_index": True}},
}
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin LC_ALL=C
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
for module in /modules/*.ko; do insmod $module; done
mkdir -p /m
turns=100
until [ -b /dev/vda ] || [ $turns = 0 ]; do sleep 0.1; turns=$((turns - 1)); done
echo "told: pages $(getconf PAGESIZE 2>/dev/null || awk '/KernelPageSize/ {print $2; exit}' /proc/self/smaps)"
while read -r number offset; do
    losetup -r -o "$offset" /dev/loop0 /dev/vda
    if mount -t erofs -o ro /dev/loop0 /m; then
        cd /m
        {
            find . -exec stat -c '%n %f %u %g %Y' {} +
            find . -type f -exec stat -c '%n %s' {} +
            find . -type f -exec sha256sum {} +
        } | sort >/tmp-all
        cd /
        echo "told: $number $(sha256sum </tmp-all | cut -d ' ' -f 1)"
        umount /m
    else
        echo "told: $number refused"
    fi
    losetup -d /dev/loop0
done </images
dmesg | grep -i erofs | tail -40
echo "told: done"
reboot -f
"""


def options_of(row: Row) -> dict[str, Any]:
    return {key: value for name, choice in row.items() for key, value in FACTORS[name][choice].items()}


def allowed(row: Row) -> bool:
    try:
        WriteOptions(**options_of(row))
    except UsageError:
        return False
    return True


ROWS, IMPOSSIBLE = covering({name: list(values) for name, values in FACTORS.items()}, allowed)


def test_large_blocks_are_in_every_pair() -> None:
    covered = set().union(*map(pairs_of, ROWS))
    for block in ("16K", "8K"):
        for name, choices in FACTORS.items():
            if name != "block":
                pairs = {frozenset([("block", block), (name, choice)]) for choice in choices}
                assert pairs <= covered | IMPOSSIBLE
                assert len(pairs & covered) >= len(pairs) - 1


def sample() -> FileTree:
    tree = FileTree()
    sizes = [0, 1, 60, 511, 4096, 8191, 8192, 8193, 9000, 16_383, 16_384, 16_385, 32_769, 70_001]
    for number, size in enumerate(sizes):
        for kind in (text, mixed):
            tree.add(f"{kind.__name__}-{size}", file(kind(size, number), mtime_ns=number * 10**9))
    common = mixed(150_000, 77)
    tree.add("part/1", file(noise(3333) + common))
    tree.add("part/2", file(text(9999, 3) + common[:100_001], 0o755))
    tree.add("part/twin", file(common, mtime_ns=5 * 10**9))
    tree.add("part/again", file(common, mtime_ns=6 * 10**9))
    tree.add("sparse", file(b"a" * 16_384 + bytes(163_840) + b"b" * 5000))
    tree.add("noise", file(b"\xfd7zXZ\0" + noise(60_000, 4)))
    tree.add("link", Inode(stat.S_IFLNK | 0o777, target=b"part/1"))
    for number in range(700):
        tree.add(f"many/entry-with-a-name-of-some-length-{number:04}", file(b"%d" % number))
    return tree


def expected(tree: FileTree) -> str:
    """Return what the machine reports for this tree."""
    found = {b"." + (path if path != b"/" else b""): inode for path, inode in tree.walk()}
    lines = []
    for name, inode in found.items():
        lines.append(b"%s %x %d %d %d" % (name, inode.mode, inode.uid, inode.gid, inode.mtime_ns // 10**9))
        if inode.is_file:
            lines.append(b"%s %d" % (name, inode.size))
            lines.append(hashlib.sha256(inode.read()).hexdigest().encode() + b"  " + name)
    return hashlib.sha256(b"".join(line + b"\n" for line in sorted(lines))).hexdigest()


def machine(images: list[Path], folder: Path) -> list[str]:
    """Return QEMU's command: a kernel with large pages, busybox and modules in an initramfs, all images on one disk."""
    cache = Cache(None)
    (folder / "debs").mkdir()
    with open_apt(host_mirror(), "trixie", "arm64") as apt:
        debs = apt.download([KERNEL], folder / "debs")
    kernel = read_deb(next(deb for deb in debs if re.match(r"linux-image-[\d.]+", deb.name)), cache).data
    board = fetch_debs(gather(Path(__file__).parents[2] / "boards/qemu-aarch64.yaml"), cache, quiet)
    busybox = read_deb(board.initramfs["busybox-static"], cache).data.get("usr/bin/busybox", follow=True)
    assert busybox is not None
    files = FileTree()
    for name in ("bin", "dev", "modules", "proc", "sys"):
        files.directory(name)
    files.add("dev/console", Inode(stat.S_IFCHR | 0o600, rdev=(5, 1)))
    files.add("bin/busybox", Inode(stat.S_IFREG | 0o755, content=busybox.content))
    modules = KernelModules(kernel)
    for number, module in enumerate(modules.closure(modules.select(["virtio_blk", "loop", "erofs"]))):
        content = BytesContent(module.data)
        files.add(f"modules/{number:02}-{module.name}.ko", Inode(stat.S_IFREG | 0o644, content=content))
    disk, lines = folder / "disk", []
    with disk.open("wb") as out:
        for number, image in enumerate(images):
            lines.append(f"{number} {out.tell()}\n")
            out.write(image.read_bytes())
            out.write(bytes(-out.tell() % ALIGN))
    files.add("images", Inode(stat.S_IFREG | 0o644, content=BytesContent("".join(lines).encode())))
    files.add("init", Inode(stat.S_IFREG | 0o755, content=BytesContent(INIT.encode())))
    vmlinuz, made = folder / "vmlinuz", folder / "initramfs"
    vmlinuz.write_bytes(next(node for path, node in kernel.walk() if b"/vmlinuz-" in path).read())
    made.write_bytes(compress(write_cpio(files, epoch=0)))
    command = arguments(
        kind_of("arm64"), kernel=vmlinuz, initramfs=made, disks={"input": disk}, memory=1 << 30, epoch=0
    )
    command = [PROCESSOR if word == kind_of("arm64").emulated else word for word in command]
    return [str(find_qemu().program), *command]


@pytest.mark.qemu
@pytest.mark.xdist_group("qemu")
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_kernel_with_large_pages_sees_the_input(tmp_path: Path) -> None:
    tree = sample()
    images = []
    for number, row in enumerate(ROWS):
        images.append(tmp_path / f"{number}.img")
        write(tree, images[-1], **options_of(row))
        assert [str(finding) for finding in check(images[-1]).findings] == []
    done = subprocess.run(
        machine(images, tmp_path), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        check=False, timeout=1500,
    )  # fmt: skip
    told = {words[0]: words[1] for line in re.findall(r"told: (.*)", done.stdout) if len(words := line.split()) == 2}
    assert "told: done" in done.stdout, f"{done.stdout[-4000:]}\n{done.stderr}"
    assert told["pages"] in ("16384", "16")
    want = expected(tree)
    wrong = {" ".join(row.values()): told.get(str(n)) for n, row in enumerate(ROWS) if told.get(str(n)) != want}
    assert not wrong, f"{wrong}\n{done.stdout[-6000:]}"
