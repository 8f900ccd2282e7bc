# SPDX-License-Identifier: Apache-2.0
"""The provisioning initramfs: busybox, nbdkit, zstd, modules for a board's storage and network, and what starts them.

Its packages are pinned by a separate lock beside this file; the kernel is the board's.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.boot.assemble import STORAGE_MODULES, vmlinuz
from erofs_edge.boot.cpio import write_cpio
from erofs_edge.boot.fit import Image, build_fit
from erofs_edge.boot.initramfs import add_program, compress
from erofs_edge.boot.modules import KernelModules
from erofs_edge.errors import SourceError
from erofs_edge.manifest.load import load_system
from erofs_edge.manifest.lockfile import load_lock, lock_path
from erofs_edge.manifest.model import Board, Lock
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import read_deb
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.trust.signer import Signer

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "provisioning.yaml"
PROGRAMS = ("usr/bin/b2sum", "usr/bin/busybox", "usr/bin/zstd", "usr/bin/nbdkit", "usr/sbin/veritysetup")
SPARSE = ("usr/bin/dd", "gdd")
"""GNU's dd, and its name beside busybox's, which starts in half the time but cannot skip zeros"""
PLUGINS = ("file", "sh")
FILTERS = ("exportname", "nozero", "noextents", "fua", "rotational", "multi-conn", "nocache")  # of nbdkit: init.sh
APPLETS = (
    "blockdev", "cat", "cut", "dd", "grep", "insmod", "ip", "mkdir", "mount", "poweroff", "reboot", "rm", "sh",
    "sha256sum", "sleep", "stat", "sync", "tr", "udhcpc",
)  # fmt: skip
SCRIPTS = {"init": "init.sh", "bin/control": "control.sh", "bin/work": "work.sh"}
SCRIPTS |= {"bin/leased": "leased.sh", "bin/unpacks": "unpacks.sh"}
NETWORK = ("virtio_net",)
NETWORK_PATH = "drivers/net/"


@dataclass(frozen=True, slots=True)
class Provisioning:
    """A kernel (an arm64 Image) and its initramfs; the board's device tree, None if the firmware has it.
    `epoch`: seconds since 1970, the newest date of the locks."""

    version: str
    kernel: bytes
    initramfs: bytes
    device_tree: bytes | None
    epoch: int

    def fit(self, signer: Signer, address: int) -> bytes:
        """All of it in one FIT, signed like the board's own: `bootm` starts it wherever the key is known.

        address  where it will be in memory
        """
        images = {
            "kernel": Image("kernel_noload", self.kernel, f"Linux {self.version}"),
            "ramdisk": Image("ramdisk", self.initramfs, "provisioning"),
        }
        if self.device_tree is not None:
            images["fdt"] = Image("flat_dt", self.device_tree, "device tree")
        return build_fit(
            images, description="provisioning", epoch=self.epoch, signer=signer, load_address=address
        )  # fmt: skip


def build_provisioning(
    board: Board,
    board_lock: Lock,
    cache: Cache,
    credentials: Mapping[str, bytes] | None = None,
    *,
    packed: bool = True,
) -> Provisioning:
    """Make it for one board: the same lock files, and the same credentials, give the same bytes.

    credentials  name → PEM, see credentials.py: with them the board requires TLS and the host's certificate; without,
                 it accepts anyone who reaches it
    packed       whether to compress the initramfs, to send it over a network: the slowest part of making it

    Raises as `fetch` does, SourceError if a package lacks a program or a module.
    """
    load_system(MANIFEST)  # a lock without its manifest cannot be checked
    lock = load_lock(lock_path(MANIFEST))
    debs = fetch(lock.packages["system"], host_mirror, cache)
    (kernel_deb,) = fetch(board_lock.packages["kernel"], host_mirror, cache).values()
    tree = read_deb(kernel_deb, cache).data
    kernel = KernelModules(tree)
    epoch = max(lock.date, board_lock.date)
    archive = _initramfs(board, kernel, debs, cache, epoch, credentials or {})
    initramfs = compress(archive) if packed else archive
    dtb = None if board.boot.fdt == "control" else _device_tree(tree, kernel.version, board.boot.fdt)
    return Provisioning(kernel.version, vmlinuz(tree, kernel.version), initramfs, dtb, epoch)


def _device_tree(tree: FileTree, version: str, name: str) -> bytes:
    inode = tree.get(f"usr/lib/linux-image-{version}/{name}", follow=True)
    if inode is None or not inode.is_file:
        raise SourceError("the kernel package has no such device tree", where=name)
    return inode.read()


def _initramfs(
    board: Board,
    kernel: KernelModules,
    debs: Mapping[str, Path],
    cache: Cache,
    epoch: int,
    credentials: Mapping[str, bytes],
) -> bytes:
    programs = FileTree()
    for name in sorted(debs):
        programs.merge(read_deb(debs[name], cache).data)
    tree = FileTree()
    for folder in ("bin", "dev", "modules", "proc", "run", "sys", "tmp", "usr/lib", *(["tls"] if credentials else [])):
        tree.directory(folder)
    tree.add("lib", Inode(stat.S_IFLNK | 0o777, target=b"usr/lib"))
    tree.add("dev/console", Inode(stat.S_IFCHR | 0o600, rdev=(5, 1)))
    for place, name in SCRIPTS.items():
        tree.add(place, _file((FOLDER / name).read_bytes()))
    for path in PROGRAMS:
        add_program(tree, programs, path)
    add_program(tree, programs, *SPARSE)
    for applet in APPLETS:
        tree.add(f"bin/{applet}", Inode(stat.S_IFLNK | 0o777, target=b"busybox"))
    for kind, names in (("plugin", PLUGINS), ("filter", FILTERS)):
        for name in names:
            tree.add(*_part(programs, kind, name))
    for index, module in enumerate(kernel.closure(_modules(board, kernel))):
        tree.add(f"modules/{index:03}-{module.name}.ko", _file(module.data))
    for name, pem in credentials.items():
        tree.add(f"tls/{name}", Inode(stat.S_IFREG | 0o600, content=BytesContent(pem)))
    return write_cpio(tree, epoch=epoch)


def _modules(board: Board, kernel: KernelModules) -> list[str]:
    """Storage drivers, and every network driver that the board's system has."""
    of_system = kernel.select(board.boot.system_modules)
    network = [name for name in of_system if f"kernel/{NETWORK_PATH}" in kernel.paths[name]]
    return kernel.select([*STORAGE_MODULES[board.boot.storage], *board.boot.modules, *network, *NETWORK])


def _part(programs: FileTree, kind: str, name: str) -> tuple[str, Inode]:
    """A plugin or a filter of nbdkit."""
    place = f"usr/lib/aarch64-linux-gnu/nbdkit/{kind}s/nbdkit-{name}-{kind}.so"
    inode = programs.get(place, follow=True)
    if inode is None or not inode.is_file:
        raise SourceError(f"nbdkit has no {kind} '{name}'", where=place)
    return place, _file(inode.read())


def _file(data: bytes) -> Inode:
    return Inode(stat.S_IFREG | 0o755, content=BytesContent(data))
