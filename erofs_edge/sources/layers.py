# SPDX-License-Identifier: Apache-2.0
"""Lay the sources of a manifest over one another and over the packages, and handle clashes of paths.

Directories are merged, and the earlier one's owner and mode stay. Files that differ only in their time do not clash.
Other files do: either the manifest decides by `clash`, or the build stops and names both. Everything overrides the
base.
"""

from __future__ import annotations

import os
from pathlib import Path

from erofs_edge.manifest.load import Loaded
from erofs_edge.manifest.model import Source, System
from erofs_edge.manifest.supply import LockedSource
from erofs_edge.names import fsdecode
from erofs_edge.sources.base import pin_base
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.overlay import Owned, apply_rules
from erofs_edge.sources.registry import load_source, name_of, pin_source
from erofs_edge.tree import FileTree, Inode

PIECE = 1 << 20  # bytes compared at a time


def lay_sources(
    loaded: Loaded[System], pins: list[LockedSource], tree: FileTree, cache: Cache, base: frozenset[int] = frozenset()
) -> list[Owned]:
    """Lay all sources of a manifest over the tree; return the owners still to be set by their rules.

    `pins` are the lock's, in the manifest's order, or none; `base` has the id() of inodes that may be replaced. Raises
    ManifestError with its position for clashes and rules that match nothing, and what `load_source` raises.
    """
    owned: list[Owned] = []
    for index, source in enumerate(loaded.value.sources):
        layer = load_source(source, cache, pin=pins[index] if pins else None, arch=loaded.value.arch)
        laid = _lay(loaded, index, tree, layer, source, base)
        owned += apply_rules(loaded, f"sources.{index}", source.rules, laid, None)
    return owned


def _lay(
    loaded: Loaded[System], index: int, tree: FileTree, layer: FileTree, source: Source, base: frozenset[int]
) -> list[tuple[bytes, Inode]]:
    """Lay one layer over the tree; return (path in the layer, inode) of everything that was placed."""
    laid: list[tuple[bytes, Inode]] = []
    to = source.to.rstrip("/").encode()
    skipped: list[bytes] = []
    for path, inode in layer.walk():
        place = to + (path if path != b"/" else b"")
        if not place or any(path.startswith(prefix) for prefix in skipped):
            continue
        folder, _, name = place.rpartition(b"/")
        parent = tree.get(folder, follow=True)
        here = parent.children.get(name) if parent is not None else None
        if here is not None and inode.is_dir:
            target = tree.get(place, follow=True)
            if target is not None and target.is_dir:
                continue
        if here is not None and not _gives_way(loaded, index, place, here, inode, base):
            if inode.is_dir:
                skipped.append(path + b"/")
            continue
        if here is not None and here.is_dir != inode.is_dir and parent is not None:
            del parent.children[name]
        copy = inode
        if inode.is_dir:
            copy = Inode(inode.mode, inode.uid, inode.gid, inode.mtime_ns, xattrs=dict(inode.xattrs))
            copy.origin = inode.origin
        _blocked(loaded, index, tree, place, inode)
        laid.append((path, tree.add(place, copy)))
    return laid


def _gives_way(loaded: Loaded[System], index: int, place: bytes, here: Inode, new: Inode, base: frozenset[int]) -> bool:
    """Whether an existing inode is replaced; False keeps it. Raises ManifestError if nothing decides."""
    rule = loaded.value.sources[index].clash
    if id(here) in base or rule == "replace":
        return True
    if rule == "keep" or _equal(here, new):
        return False
    one, two = here.origin or "the packages' configuration", new.origin
    kinds = ("a directory" if inode.is_dir else "a file" for inode in (here, new))
    detail = f": {next(kinds)} of the one, {next(kinds)} of the other" if here.is_dir != new.is_dir else ""
    raise loaded.error(
        f"sources.{index}",
        f"{fsdecode(place)} is in {one} and in {two}{detail}",
        hint=f"`clash: replace` here lets {two} win, `clash: keep` leaves that of {one}",
    )


def _blocked(loaded: Loaded[System], index: int, tree: FileTree, place: bytes, new: Inode) -> None:
    """Raises ManifestError if a file of another origin is where a parent folder is needed."""
    parts = place.split(b"/")
    for count in range(2, len(parts)):
        above = b"/".join(parts[:count])
        here = tree.get(above, follow=True)
        if here is None:
            return
        if not here.is_dir:
            raise loaded.error(
                f"sources.{index}",
                f"{fsdecode(above)} is a file of {here.origin or 'the packages'} and a directory of {new.origin}",
                hint="leave one of them out",
            )


def _equal(one: Inode, two: Inode) -> bool:
    """Equal in everything but the time."""
    if (one.mode, one.uid, one.gid, one.rdev, one.target, one.xattrs, one.size) != (
        (two.mode, two.uid, two.gid, two.rdev, two.target, two.xattrs, two.size)
    ):
        return False
    if one.content is None or two.content is None:
        return True
    return all(one.content.read(at, PIECE) == two.content.read(at, PIECE) for at in range(0, one.content.size, PIECE))


def pin_sources(loaded: Loaded[System], cache: Cache) -> list[LockedSource]:
    """Current pins of the base and the sources, in the manifest's order. Raises as `pin_source`."""
    system = loaded.value
    top = loaded.path.absolute().parent
    pins = [pin_base(Path(system.base), relative(system.base, loaded), cache)] if system.base is not None else []
    return pins + [pin_source(source, name_of(source, top), system.arch, cache) for source in system.sources]


def pins_of(loaded: Loaded[System], locked: list[LockedSource]) -> tuple[LockedSource | None, list[LockedSource]]:
    """The lock's pin of the base and of each source. Raises ManifestError if the lock is for other ones."""
    top = loaded.path.absolute().parent
    system = loaded.value
    names = [relative(system.base, loaded)] if system.base is not None else []
    names += [name_of(source, top) for source in system.sources]
    if names != [pin.name for pin in locked]:
        pointer = "base" if system.base is not None and names[:1] != [p.name for p in locked[:1]] else "sources"
        raise loaded.error(
            pointer,
            f"the lock pins other sources: {', '.join(pin.name for pin in locked) or 'none'}",
            hint=f"erofs-edge lock {loaded.path}",
        )
    return (locked[0], locked[1:]) if system.base is not None else (None, locked)


def relative(path: str, loaded: Loaded[System]) -> str:
    """A path of this machine as written in the lock."""
    return Path(os.path.relpath(path, loaded.path.absolute().parent)).as_posix()
