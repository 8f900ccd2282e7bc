# SPDX-License-Identifier: Apache-2.0
"""The content of the initramfs, and its recovery by the kernel's decompression."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lz4.block
import pytest
from elf_samples import file, kernel_tree, program_elf

from erofs_edge.boot.initramfs import InitConfig, build_initramfs, compress
from erofs_edge.boot.modules import KernelModules, Module
from erofs_edge.boot.packed import cached_pack
from erofs_edge.errors import SourceError
from erofs_edge.sources.cache import Cache
from erofs_edge.tree import FileTree, Inode

LIB = "usr/lib/aarch64-linux-gnu"
LOADER = "/lib/ld-linux-aarch64.so.1"
CONFIG = InitConfig(
    root_hash="ab" * 32,
    salt="",
    block_size=4096,
    data_blocks=1000,
    hash_start=1001,
    system="system",
    slots=("a", "b"),
    data="data",
    on_corruption="restart",
)


def packages() -> FileTree:
    """Programs as in Debian: busybox static, the others dynamic, libraries behind symlinks."""
    tree = FileTree()
    tree.add("usr/bin/busybox", file(program_elf([]), 0o100755))
    tree.add("usr/sbin/dmsetup", file(program_elf(["libdm.so.1", "libc.so.6"], LOADER), 0o100755))
    for name in ("mke2fs", "resize2fs"):
        tree.add(f"usr/sbin/{name}", file(program_elf(["libc.so.6"], LOADER), 0o100755))
    tree.add(f"{LIB}/libdm.so.1", Inode(0o120777, target=b"libdm.so.1.02"))
    tree.add(f"{LIB}/libdm.so.1.02", file(program_elf(["libudev.so.1", "ld-linux-aarch64.so.1"])))
    tree.add(f"{LIB}/libudev.so.1", file(program_elf(["libc.so.6"])))
    tree.add(f"{LIB}/libc.so.6", file(program_elf(["ld-linux-aarch64.so.1"])))
    tree.add(f"{LIB}/ld-linux-aarch64.so.1", file(program_elf([])))
    tree.add("usr/lib/ld-linux-aarch64.so.1", Inode(0o120777, target=b"aarch64-linux-gnu/ld-linux-aarch64.so.1"))
    tree.add(f"{LIB}/libunused.so.1", file(b"not wanted"))
    return tree


def blocks(image: bytes) -> list[bytes]:
    """Yield the blocks of a legacy LZ4 frame, decompressed as lib/decompress_unlz4.c does."""
    assert image[:4] == struct.pack("<I", 0x184C2102)
    position, out = 4, []
    while position < len(image):
        (size,) = struct.unpack_from("<I", image, position)
        block = image[position + 4 : position + 4 + size]
        out.append(lz4.block.decompress(block, uncompressed_size=8 << 20))
        position += 4 + size
    return out


def unpack(image: bytes) -> bytes:
    return b"".join(blocks(image))


def build(tree: FileTree) -> bytes:
    kernel = KernelModules(kernel_tree())
    disk, erofs = kernel.streams(["virtio_blk", "dm_verity"], ["erofs"])
    return build_initramfs(tree, {"disk": disk, "erofs": erofs, "data": []}, CONFIG, epoch=1_700_000_000)


def test_contents(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    image = build(packages())
    assert image == build(packages())
    # the tool reads only one of several archives in a row; the kernel reads all
    *early, late = blocks(image)
    run = {"input": b"".join(early), "cwd": tmp_path, "capture_output": True}
    config = subprocess.run([oracle("cpio"), "-it", "--quiet"], input=late, check=True, capture_output=True).stdout
    assert config == b"config\n"
    listing = subprocess.run([oracle("cpio"), "-it", "--quiet"], check=True, **run).stdout.decode().splitlines()
    files = {
        name
        for name in listing
        if name.startswith(("modules/", "usr/lib/", "bin/dm", "bin/mke", "bin/res", "init", "conf", "grow"))
    }
    assert files == {
        "init", "grow", "bin/dmsetup", "bin/mke2fs", "bin/resize2fs",
        "modules/disk", "modules/disk/00-virtio_blk.ko", "modules/disk/01-dm_mod.ko",
        "modules/disk/02-reed_solomon.ko", "modules/disk/03-dm_bufio.ko", "modules/disk/04-dm_verity.ko",
        "modules/erofs", "modules/erofs/00-crc32c_generic.ko", "modules/erofs/01-libcrc32c.ko",
        "modules/erofs/02-erofs.ko",
        "usr/lib/ld-linux-aarch64.so.1", LIB, f"{LIB}/libdm.so.1", f"{LIB}/libudev.so.1", f"{LIB}/libc.so.6",
    }  # fmt: skip
    subprocess.run([oracle("cpio"), "-id", "--quiet", "--no-preserve-owner", "[!d]*"], check=True, **run)
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / f"{LIB}/libdm.so.1").read_bytes() == program_elf(["libudev.so.1", "ld-linux-aarch64.so.1"])


def test_config_is_what_the_shell_reads(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(CONFIG.text())
    script = '. ./config; printf "%s|" "$ROOT_HASH" "$SALT" "$SECTORS" "$HASH_START" "$VERITY_OPTIONS" "$SLOTS" "$DATA"'
    done = subprocess.run(["sh", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{'ab' * 32}|-|8000|1001|restart_on_corruption|a b|data|"


def test_repair_over_a_network_is_there_where_it_is_wanted(tmp_path: Path) -> None:
    streams: dict[str, list[Module]] = {"disk": [], "erofs": [], "data": [], "net": []}
    plain = unpack(build_initramfs(packages(), streams, CONFIG, epoch=5))
    assert b"REPAIR_" not in plain and b"open_network" not in plain and b"bin/nc\0" not in plain
    far = replace(CONFIG, repair_from="http://192.0.2.1/a%20b/x.img")
    with_it = unpack(build_initramfs(packages(), streams, far, epoch=5))
    for part in (b"open_network", b"bin/nc\0", b"bin/sha256sum\0", b"repair-lease\0"):
        assert part in with_it, part
    (tmp_path / "config").write_text(far.text())
    script = '. ./config; printf "%s|" "$REPAIR_HOST" "$REPAIR_PORT" "$REPAIR_PATH"'
    done = subprocess.run(["sh", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "192.0.2.1|80|/a%20b/x.img|"


@pytest.mark.parametrize(
    ("missing", "words"),
    [("usr/sbin/mke2fs", "a program for the initramfs is missing"), (f"{LIB}/libudev.so.1", "library libudev.so.1")],
)
def test_missing_pieces_are_named(missing: str, words: str) -> None:
    tree = packages()
    tree.remove(missing)
    with pytest.raises(SourceError, match=words):
        build(tree)


def test_only_the_last_block_is_another_for_another_system(tmp_path: Path) -> None:
    """So a build finds the other blocks in its cache, and gets the same bytes."""
    cache = Cache(tmp_path)
    kernel = KernelModules(kernel_tree())
    streams = dict(zip(("disk", "erofs"), kernel.streams(["virtio_blk"], ["erofs"]), strict=True)) | {"data": []}
    packed: list[bytes] = []
    for root_hash in ("ab" * 32, "cd" * 32, "ab" * 32):
        config = replace(CONFIG, root_hash=root_hash)
        image = build_initramfs(packages(), streams, config, epoch=5, pack=cached_pack(cache))
        assert image == build_initramfs(packages(), streams, config, epoch=5)
        packed.append(image)
    one, two, three = map(blocks, packed)
    assert one == three and one[:-1] == two[:-1] and one[-1] != two[-1]
    assert sum(1 for _ in (tmp_path / "derived/initramfs-block-1").rglob("*") if _.is_file()) == 3


def test_large_archives_are_cut_into_blocks() -> None:
    archive = bytes(range(256)) * (70 << 10)
    assert unpack(compress(archive)) == archive
