# SPDX-License-Identifier: Apache-2.0
"""All readers on one image: our reader and check, the kernel, fsck.erofs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from treediff import diff
from writer_check import fsck_differences, kernel_differences

from erofs_edge.erofs.check import check
from erofs_edge.erofs.read import Image
from erofs_edge.tree import FileTree


def ours_agree(path: Path, tree: FileTree) -> list[str]:
    """Return what our reader reads differently, and what our check finds."""
    with Image(path) as image:
        found = list(diff(image.tree(), tree))
    return found + [str(finding) for finding in check(path).findings]


def everyone_agrees(oracle: Callable[[str], str], path: Path, tree: FileTree) -> list[str]:
    """Return the differences that any reader sees; needs root for the kernel."""
    return ours_agree(path, tree) + kernel_differences(path, tree) + fsck_differences(oracle, path, tree)
