# SPDX-License-Identifier: Apache-2.0
"""The machine: QEMU's arguments by architecture, and its initramfs."""

from __future__ import annotations

import os
import platform
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.boot.cpio import write_cpio
from erofs_edge.boot.initramfs import compress
from erofs_edge.boot.modules import KernelModules
from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.deb import Package
from erofs_edge.sources.debian.scripted.stage import info_name
from erofs_edge.toolbox.emulator import escaped
from erofs_edge.tree import BytesContent, FileTree, Inode

MODULES = ("virtio_blk",)
GUEST = Path(__file__).with_name("guest.sh")
"""the first process of the machine: the result depends on its text"""
KVM = Path("/dev/kvm")
KERNEL_WORDS = "panic=-1 loglevel=0 mitigations=off nokaslr"
"""on the kernel's command line. Address space randomization (KASLR) makes arm64 keep separate page tables for user
space, and each system call then switches both: half of a script's cost under emulation, and more than half of the boot
time. Everything that runs there is discarded with the machine and has nothing to hide from the rest"""
BASE_MEMORY = 768 << 20
"""bytes for kernel, initramfs, programs and caches"""


@dataclass(frozen=True, slots=True)
class Kind:
    """A machine that runs an architecture's programs.

    hosts      platform.machine() of hosts whose processors run them too
    emulated   QEMU's -cpu on other hosts: the cheapest to emulate that runs Debian
    """

    program: str
    machine: str
    emulated: str
    console: str
    hosts: tuple[str, ...]


KINDS = {"arm64": Kind("qemu-system-aarch64", "virt", "cortex-a72", "ttyAMA0", ("aarch64", "arm64"))}
"""by Debian's name of the architecture"""


def kind_of(arch: str) -> Kind:
    """The kind of machine for an architecture. Raises SourceError if there is none."""
    if arch not in KINDS:
        raise SourceError(
            f"maintainer scripts of {arch} cannot be run", hint=f"there are machines for {', '.join(KINDS)}"
        )
    return KINDS[arch]


def accelerated(kind: Kind) -> bool:
    """Whether this host's own processor can run the machine."""
    return platform.machine() in kind.hosts and os.access(KVM, os.R_OK | os.W_OK)


def arguments(
    kind: Kind, *, kernel: Path, initramfs: Path, disks: dict[str, Path], memory: int, epoch: int
) -> list[str]:
    """QEMU's arguments, without the program.

    disks   by serial number; the one called 'input' is read-only
    memory  bytes
    epoch   seconds since 1970: the time on the machine's clock when it starts; the clock stops while the machine does
    """
    cpu = ["-accel", "kvm", "-accel", "tcg", "-cpu", "max"]
    if not accelerated(kind):
        cpu = ["-accel", "tcg,thread=multi", "-cpu", kind.emulated]
    drives = []
    for serial, path in disks.items():
        mode = ",readonly=on" if serial == "input" else ",cache=unsafe,discard=unmap"
        drives += ["-drive", f"if=none,id={serial},format=raw,file={escaped(path)}{mode}"]
        drives += ["-device", f"virtio-blk-pci,drive={serial},serial={serial}"]
    return [
        "-no-user-config", "-nodefaults", "-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot",
        "-machine", kind.machine, *cpu, "-smp", "2", "-m", f"{-(-memory >> 20)}M",
        "-rtc", f"base={time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(epoch))},clock=vm",
        "-kernel", str(kernel), "-initrd", str(initramfs), "-append", f"console={kind.console} {KERNEL_WORDS}",
        *drives, "-serial", "stdio",
    ]  # fmt: skip


def memory_for(tree: FileTree) -> int:
    """Bytes of memory for configuring a tree: it is kept in memory, and scripts add to it."""
    pages = sum(-(-inode.size // 4096) * 4096 + 1024 for _, inode in tree.walk())
    return BASE_MEMORY + pages * 3 // 2


def initramfs(kernel: KernelModules, busybox: FileTree, preinsts: Sequence[Package], *, epoch: int) -> bytes:
    """busybox, the modules for the disks, guest.sh and its plan. Raises SourceError if one is missing."""
    program = busybox.get("usr/bin/busybox", follow=True)
    if program is None or not program.is_file:
        raise SourceError("the package busybox-static holds no usr/bin/busybox")
    tree = FileTree()
    for folder in ("bin", "dev", "modules", "newroot", "proc", "sys"):
        tree.directory(folder)
    tree.add("dev/console", Inode(stat.S_IFCHR | 0o600, rdev=(5, 1)))
    tree.add("bin/busybox", Inode(stat.S_IFREG | 0o755, content=program.content))
    _add(tree, "init", GUEST.read_bytes(), 0o755)
    _add(tree, "plan", f"EPOCH={epoch}\n".encode())
    lines = [f"{p.name} {info_name(p)} {p.version} {p.arch}\n" for p in preinsts]
    _add(tree, "preinst", "".join(lines).encode())
    for index, module in enumerate(kernel.closure(kernel.select(MODULES))):
        _add(tree, f"modules/{index:02}-{module.name}.ko", module.data)
    return compress(write_cpio(tree, epoch=epoch))


def _add(tree: FileTree, path: str, data: bytes, mode: int = 0o644) -> None:
    tree.add(path, Inode(stat.S_IFREG | mode, content=BytesContent(data)))
