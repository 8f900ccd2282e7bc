# SPDX-License-Identifier: Apache-2.0
"""`size_budget:` of a manifest: the maximum sizes of the image and of what is below a path."""

from __future__ import annotations

from erofs_edge.errors import CapacityError
from erofs_edge.manifest.load import Loaded
from erofs_edge.manifest.model import System, size_bytes
from erofs_edge.names import fsdecode
from erofs_edge.tree import FileTree, Inode

PARTITION = "partition"
LISTED = 10


def check_paths(loaded: Loaded[System], tree: FileTree) -> list[str]:
    """Check the tree against the budgets of paths, uncompressed, counting hard links once; return the paths that are
    not there, with their positions. Raises CapacityError for the first budget that is exceeded, with the ten largest
    files below it."""
    missing = []
    for path, size in loaded.value.size_budget.items():
        if path == PARTITION:
            continue
        if tree.get(path, follow=True) is None:
            missing.append(f"{loaded.position(f'size_budget.{path}')}: {path}")
        files = _files(tree, path)
        used = sum(inode.size for _, inode in files)
        if used > size_bytes(size):
            where = loaded.position(f"size_budget.{path}")
            raise _exceeded(f"{path} holds", used, size_bytes(size), where, files)
    return missing


def check_image(loaded: Loaded[System], tree: FileTree, size: int) -> None:
    """Check the image, hash tree included, against the budget of the partition. `size` in bytes. Raises CapacityError
    with the ten largest files of the tree."""
    budget = loaded.value.size_budget.get(PARTITION)
    if budget is not None and size > size_bytes(budget):
        where = loaded.position(f"size_budget.{PARTITION}")
        raise _exceeded("the image is", size, size_bytes(budget), where, _files(tree, "/"))


def _files(tree: FileTree, path: str) -> list[tuple[str, Inode]]:
    """(path, inode) of the files at and below a path, each inode under its first name."""
    top = tree.get(path, follow=True)
    if top is None:
        return []
    found: dict[int, tuple[str, Inode]] = {}
    for below, inode in FileTree(top).walk() if top.is_dir else [(b"/", top)]:
        name = path.rstrip("/") + fsdecode(below if below != b"/" else b"")
        if inode.is_file:
            found.setdefault(id(inode), (name, inode))
    return list(found.values())


def _exceeded(what: str, used: int, budget: int, where: str, files: list[tuple[str, Inode]]) -> CapacityError:
    largest = sorted(files, key=lambda item: (-item[1].size, item[0]))[:LISTED]
    width = max((len(_size(inode.size)) for _, inode in largest), default=0)
    rows = "".join(f"\n  {_size(inode.size):>{width}}  {name}{_origin(inode)}" for name, inode in largest)
    return CapacityError(
        f"{what} {_size(used)}, its budget is {_size(budget)}: {used - budget} bytes too many", where=where,
        hint=f"the largest files (uncompressed):{rows}" if rows else "raise the budget",
    )  # fmt: skip


def _origin(inode: Inode) -> str:
    return f"  ({inode.origin})" if inode.origin else ""


def _size(size: int) -> str:
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
