# SPDX-License-Identifier: Apache-2.0
"""An emulated machine that runs a script of a benchmark: the stock board's kernel and busybox, and disks."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import BOARD

from erofs_edge.boot.cpio import write_cpio
from erofs_edge.boot.initramfs import InitConfig, build_initramfs, compress
from erofs_edge.boot.modules import KernelModules
from erofs_edge.build.inputs import gather
from erofs_edge.build.stages import fetch_debs, quiet
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import read_deb
from erofs_edge.toolbox.emulator import find_qemu
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.vm.machine import arguments, kind_of


def add_file(tree: FileTree, path: str, text: str, mode: int = 0o644) -> None:
    tree.add(path, Inode(stat.S_IFREG | mode, content=BytesContent(text.encode())))


def machine(script: str, extra: FileTree, modules: list[str], disks: dict[str, Path], folder: Path) -> list[str]:
    """Return QEMU's command. `script` is the machine's /init; `extra` is added to its root, and the kernel modules in
    /modules/disk; `disks` are images by serial number."""
    cache, inputs = Cache(None), gather(BOARD)
    debs = fetch_debs(inputs, cache, quiet)
    package = read_deb(debs.kernel, cache).data
    programs = FileTree()
    for name in sorted(debs.initramfs):
        programs.merge(read_deb(debs.initramfs[name], cache).data)
    (streams,) = KernelModules(package).streams(modules)
    add_file(extra, "init", script, 0o755)
    config = InitConfig("", "", 4096, 0, 0, "", (), "")
    initramfs, vmlinuz = folder / "initramfs", folder / "vmlinuz"
    initramfs.write_bytes(
        build_initramfs(programs, {"disk": streams}, config, epoch=0) + compress(write_cpio(extra, epoch=0))
    )
    vmlinuz.write_bytes(next(node for path, node in package.walk() if b"/vmlinuz-" in path).read())
    return [str(find_qemu().program), *arguments(
        kind_of("arm64"), kernel=vmlinuz, initramfs=initramfs, disks=disks, memory=1 << 30, epoch=0,
    )]  # fmt: skip


@contextmanager
def console(command: list[str], timeout: float) -> Iterator[Iterator[str]]:
    """Start a machine; yield the lines of its console, also shown on stderr. It is stopped after `timeout` seconds."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        ending = threading.Timer(timeout, os.killpg, [process.pid, signal.SIGKILL])
        ending.start()

        def lines() -> Iterator[str]:
            assert process.stdout is not None
            for line in process.stdout:
                print(line.rstrip(), file=sys.stderr, flush=True)
                yield line

        try:
            yield lines()
        finally:
            ending.cancel()
            os.killpg(process.pid, signal.SIGKILL)
