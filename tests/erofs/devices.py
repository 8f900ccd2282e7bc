# SPDX-License-Identifier: Apache-2.0
"""The verdicts of the kernel and fsck.erofs on an image with several devices."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from compare import differences
from mounts import loop
from treediff import diff

from erofs_edge.erofs.check import check
from erofs_edge.erofs.read import Image
from erofs_edge.tree import FileTree


def mounted_differences(image: Path, devices: Sequence[Path], tree: FileTree, **how: Any) -> list[str]:
    """Mount with the kernel, with loop devices for the devices, and compare."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(dir=image.parent) as target:
        loops = [stack.enter_context(loop(device, "--read-only")) for device in devices]
        options = ",".join(["loop", "ro", *(f"device={name}" for name in loops)])
        done = subprocess.run(
            ["mount", "-t", "erofs", "-o", options, str(image), target], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return [done.stderr]
        try:
            return differences(tree, Path(target), **how)
        finally:
            subprocess.run(["umount", target], check=True)


def extracted_differences(
    oracle: Callable[[str], str], image: Path, devices: Sequence[Path], tree: FileTree
) -> list[str]:
    """Extract with fsck.erofs and compare, without attributes."""
    with tempfile.TemporaryDirectory(dir=image.parent) as folder:
        target = Path(folder) / "x"
        given = [f"--device={device}" for device in devices]
        argv = [oracle("fsck.erofs-1.9"), "--no-xattrs", *given, f"--extract={target}", str(image)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode or "<E>" in done.stderr:
            return [f"fsck.erofs exited {done.returncode}", *(done.stdout + done.stderr).splitlines()[-10:]]
        return differences(tree, target, xattrs=False)


def own_differences(image: Path, devices: Sequence[Path], tree: FileTree) -> list[str]:
    """Return what our own reader and `check` find."""
    with Image(image, devices=devices) as opened:
        found = diff(opened.tree(), tree)
    return found + [str(finding) for finding in check(image, devices=devices).findings]
