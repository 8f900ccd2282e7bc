# SPDX-License-Identifier: Apache-2.0
"""The verdicts of the reference tools and the kernel on an image that we wrote."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compare import differences

from erofs_edge.erofs.write import ErofsInfo, WriteOptions, write_image
from erofs_edge.tree import FileTree

Oracle = Callable[[str], str]


def write(tree: FileTree, out: Path, **options: Any) -> ErofsInfo:
    return write_image(tree, out, WriteOptions(**options))


def written(tree: FileTree, folder: Path, **options: Any) -> bytes:
    """Return the bytes of an image."""
    out = folder / "written.img"
    write(tree, out, **options)
    return out.read_bytes()


def fsck_differences(oracle: Oracle, image: Path, tree: FileTree) -> list[str]:
    """Extract with fsck.erofs and compare. Without root, only what a user can extract is compared: that it decodes.

    Attributes are left to the kernel: the tool takes an empty value for an error and loses capabilities, and ext4
    stores at most 4 KiB of them per file.
    """
    with tempfile.TemporaryDirectory(dir=image.parent) as folder:
        target = Path(folder) / "x"
        extract = f"--extract={target}" if os.geteuid() == 0 else "--extract"
        argv = [oracle("fsck.erofs-1.9"), "--no-xattrs", extract, str(image)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode or "<E>" in done.stderr:
            return [f"fsck.erofs exited {done.returncode}", *(done.stdout + done.stderr).splitlines()[-10:]]
        return differences(tree, target, xattrs=False) if os.geteuid() == 0 else []


def kernel_differences(image: Path, tree: FileTree, **how: Any) -> list[str]:
    """Mount with the kernel and compare."""
    with tempfile.TemporaryDirectory(dir=image.parent) as target:
        mount = ["mount", "-t", "erofs", "-o", "loop,ro", str(image), target]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            return [done.stderr]
        try:
            return differences(tree, Path(target), **how)
        finally:
            subprocess.run(["umount", target], check=True)
