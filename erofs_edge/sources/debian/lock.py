# SPDX-License-Identifier: Apache-2.0
"""Locks: the exact packages for a manifest or a board, and whether a lock still fits.

Packages come from the suite with its updates and security pockets, without recommends. Ids pinned in an old lock are
kept for good. A new lock that would differ only in its date keeps the old date, so locking again when nothing has
changed changes no byte of the build.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec

from erofs_edge.errors import ManifestError, MirrorError, SourceError
from erofs_edge.manifest.load import Loaded, load_lock, load_system, lock_path
from erofs_edge.manifest.lockfile import lock_in
from erofs_edge.manifest.model import CONTENT_WORDS, Board, Lock, LockedPackage, System
from erofs_edge.manifest.stock import is_shipped, is_stock
from erofs_edge.manifest.supply import Archive, LockedSource
from erofs_edge.tree import BytesContent, FileTree, Inode

if TYPE_CHECKING:
    from erofs_edge.sources.cache import Cache
    from erofs_edge.sources.debian.apt import Apt
    from erofs_edge.sources.debian.configure.accounts import Ids
    from erofs_edge.sources.debian.fetch import Progress
    from erofs_edge.sources.debian.mirror import Mirror

INITRAMFS = ("busybox-static", "dmsetup", "e2fsprogs")
"""what our initramfs is made of, besides the kernel's modules"""
INITRAMFS_KEYS = ("keyutils",)
"""passes the kernel a signature to check: with the keys of UEFI firmware, or that of a vbmeta partition"""
INITRAMFS_CRYPT = ("cryptsetup-bin",)
"""in addition, if a partition is encrypted"""
GROUPS = ("system", "kernel", "initramfs", "firmware")
"""groups with requested packages; the other keys say where they come from"""


@dataclass(frozen=True, slots=True)
class Changes:
    """Differences of a new lock from the old one; each item starts with the group.

    added and removed: (group, name, version); updated: (group, name, old version, new version); ids: 'user x 998'.
    """

    added: list[tuple[str, str, str]]
    removed: list[tuple[str, str, str]]
    updated: list[tuple[str, str, str, str]]
    ids: list[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.updated or self.ids)


class _Item(NamedTuple):
    version: str
    whole: LockedPackage | LockedSource


@dataclass(frozen=True, slots=True)
class Relocked:
    """A new lock and the one that it replaces (None if there was none). `path` is beside the manifest or the board's
    file (`board`)."""

    path: Path
    old: Lock | None
    new: Lock
    board: bool = False

    def within(self, folder: Path) -> Path:
        """The lock's path in a folder with those of a board and its manifests."""
        return lock_in(folder, self.path, board=self.board)


def requested(value: Board | System) -> dict[str, list[str]]:
    """The packages that a manifest or a board requests, by group of the lock, sorted."""
    if isinstance(value, System):
        asked = {"system": sorted(set(value.packages))}
        if value.debs:
            asked["debs"] = sorted(Path(path).name for path in value.debs)
        if archives := sorted(_archive_line(name, one) for name, one in value.archives.items()):
            asked["archives"] = archives
        if value.components != System(system="x").components:
            asked["components"] = sorted(value.components)
        return asked
    firmware = {file.package for file in value.boot.firmware}
    if value.boot.u_boot.package is not None:
        firmware.add(value.boot.u_boot.package)
    firmware |= {name for _, name in _uefi_packages(value)}
    partitions = value.disk.partitions.values()
    keys = value.boot.uefi is not None or any(p.content == "vbmeta" for p in partitions)
    initramfs = [*INITRAMFS, *(INITRAMFS_KEYS if keys else ())]
    initramfs += INITRAMFS_CRYPT if any(p.encrypt for p in partitions) else ()
    return {"kernel": [value.boot.kernel], "initramfs": sorted(initramfs), "firmware": sorted(firmware)}


def check_lock(lock: Lock, loaded: Loaded[Board] | Loaded[System]) -> None:
    """Raises ManifestError if the lock was made for something other than the manifest's current content."""
    value = loaded.value
    pointer = "packages" if isinstance(value, System) else "boot"
    wanted = requested(value)
    hint = f"erofs-edge lock {loaded.path}"
    for key in ("suite", "arch"):
        if getattr(lock, key) != getattr(value, key):
            message = f"the lock is for {key} {getattr(lock, key)}, not {getattr(value, key)}"
            raise loaded.error(key, message, hint=hint)
    asked, known = Counter(_flat(wanted)), Counter(_flat(lock.requested))
    if asked != known:
        words = [f"+{name}" for _, name in sorted(asked - known)] + [f"-{name}" for _, name in sorted(known - asked)]
        raise loaded.error(pointer, f"the lock was made for other packages: {' '.join(words)}", hint=hint)
    if isinstance(value, System):
        from erofs_edge.sources.layers import pins_of

        pins_of(cast("Loaded[System]", loaded), lock.sources)
    for group, names in wanted.items():
        if group not in lock.packages and group not in GROUPS:
            continue
        found = [package.name for package in lock.packages.get(group, [])]
        missing = set(names) - set(found)
        if (len(found) != 1) if group == "kernel" else (missing or len(set(found)) != len(found)):
            raise loaded.error(pointer, f"the lock does not hold the packages of group {group!r}", hint=hint)


def lock_system(
    loaded: Loaded[System],
    *,
    mirror: Mirror,
    cache: Cache,
    old: Lock | None = None,
    apt: Apt | None = None,
    progress: Progress | None = None,
) -> Lock:
    """Make the lock of a manifest. The packages are downloaded, because system ids depend on their contents.

    `apt` is an open index of the suite, if there is one already. Raises ManifestError (with its position) for a package
    that does not exist, SourceError and MirrorError as Apt and fetch do.
    """
    from erofs_edge.sources.debian.supply import fetch_locked
    from erofs_edge.sources.layers import pin_sources

    system = loaded.value
    packages: list[LockedPackage] = []
    date = old.date if old is not None else 0
    if system.packages or system.debs:
        with ExitStack() as stack:
            apt = apt or _open(stack, mirror, loaded, cache)
            packages = _resolve(loaded, apt.closure, requested(system)["system"] + apt.local_names)
            date = apt.release_date()
    debs = fetch_locked(packages, loaded, mirror, cache, progress)
    pins = pin_sources(loaded, cache)
    ids = _ids(loaded, debs, pins, cache, old)
    return _settled(
        Lock(
            name=system.system,
            suite=system.suite,
            arch=system.arch,
            date=date,
            requested=requested(system),
            packages={"system": packages},
            sources=pins,
            users=ids.users,
            groups=ids.groups,
        ),
        old,
    )


def lock_board(loaded: Loaded[Board], *, mirror: Mirror, old: Lock | None = None, apt: Apt | None = None) -> Lock:
    """Make the lock of a board's own packages: kernel, initramfs, firmware. Only indexes are downloaded.

    Raises as lock_system.
    """
    board = loaded.value
    wanted = requested(board)
    with ExitStack() as stack:
        apt = apt or _open(stack, mirror, loaded, None)
        packages = {
            "kernel": [_kernel(loaded, apt)],
            "initramfs": apt.closure(wanted["initramfs"]),
            "firmware": _resolve(loaded, apt.describe, wanted["firmware"]),
        }
        date = apt.release_date()
    lock = Lock(name=board.board, suite=board.suite, arch=board.arch, date=date, requested=wanted, packages=packages)
    return _settled(lock, old)


def lock_all(
    loaded: Loaded[Board] | Loaded[System],
    *,
    mirror: Mirror,
    cache: Cache,
    folder: Path | None = None,
    system: Loaded[System] | None = None,
    progress: Progress | None = None,
) -> list[Relocked]:
    """New locks for a manifest, or for a board and each manifest on its disk, and for their layers. Nothing is written.

    `system` is a manifest that takes the place of a board's own.
    Without `folder` the locks of stock manifests are kept, unless a stock board or manifest of a checkout is itself
    being locked: a product never writes outside its own folder. The old locks are those in `folder` if they exist, else
    those beside the manifests.
    """
    todo: list[Loaded[Board] | Loaded[System]] = [loaded]
    if system is not None:
        todo.append(system)
    elif isinstance(loaded.value, Board):
        contents = [partition.content for partition in loaded.value.disk.partitions.values()]
        paths = dict.fromkeys(content for content in contents if content and content not in CONTENT_WORDS)
        todo += [below for path in paths if _may_lock(below := load_system(path), loaded, folder)]
    named = [path for one in todo if isinstance(one.value, System) for path in one.value.layers]
    todo += [below for path in dict.fromkeys(named) if _may_lock(below := load_system(path), loaded, folder)]
    done = []
    with ExitStack() as stack:
        indexes: dict[tuple[str, str], Apt] = {}
        olds = [old_lock(one, folder) for one in todo]
        _check_names(todo, folder)
        for one, old in zip(todo, olds, strict=True):
            key = (one.value.suite, one.value.arch)
            shared = None
            if not isinstance(one.value, System) or _is_plain(one.value):
                shared = indexes[key] = indexes.get(key) or _open(stack, mirror, one, cache)
            if isinstance(one.value, Board):
                new = lock_board(one, mirror=mirror, old=old, apt=shared)
            else:
                new = lock_system(one, mirror=mirror, cache=cache, old=old, apt=shared, progress=progress)
            done.append(Relocked(lock_path(one.path), old, new, isinstance(one.value, Board)))
    return done


def _may_lock(one: Loaded[System], named: Loaded[Board] | Loaded[System], folder: Path | None) -> bool:
    """Whether a manifest that another one names is locked together with it."""
    if folder is not None or not is_stock(one.path):
        return True
    return is_stock(named.path) and not is_shipped(one.path)


def _check_names(todo: list[Loaded[Board] | Loaded[System]], folder: Path | None) -> None:
    """Raises ManifestError if two manifests would have the same lock."""
    seen: dict[Path, Path] = {}
    for one in todo:
        path = lock_path(one.path) if folder is None else _lock_in(folder, one)
        if (other := seen.setdefault(path, one.path)) != one.path:
            raise ManifestError(
                f"its lock would be {path}, which is that of {other}, too",
                where=str(one.path),
                hint="rename one of the two files",
            )


def _lock_in(folder: Path, loaded: Loaded[Board] | Loaded[System]) -> Path:
    return lock_in(folder, loaded.path, board=isinstance(loaded.value, Board))


def old_lock(loaded: Loaded[Board] | Loaded[System], folder: Path | None = None) -> Lock | None:
    """The lock that a new one replaces: in `folder`, else beside the manifest; None if there is none.

    Raises ManifestError if it is damaged, because its pinned ids would be lost.
    """
    beside = lock_path(loaded.path)
    inside = [] if folder is None else [_lock_in(folder, loaded)]
    for path in [*inside, beside]:
        if path.exists():
            try:
                return load_lock(path)
            except ManifestError as error:
                hint = "restore the lock; without it (delete it) the ids that it pins are given out anew"
                raise ManifestError(error.message, where=error.where, hint=hint) from error
    return None


def changes(old: Lock | None, new: Lock) -> Changes:
    """What `new` changes; without an old lock, everything counts as added."""
    before = _versions(old) if old is not None else {}
    after = _versions(new)
    ids = []
    for kind in ("users", "groups"):
        known = getattr(old, kind) if old is not None else {}
        ids += [
            f"{kind[:-1]} {name} {value}" for name, value in sorted(getattr(new, kind).items()) if name not in known
        ]
    return Changes(
        [(*key, after[key].version) for key in sorted(after.keys() - before.keys())],
        [(*key, before[key].version) for key in sorted(before.keys() - after.keys())],
        [
            (*key, before[key].version, after[key].version)
            for key in sorted(after.keys() & before.keys())
            if after[key] != before[key]
        ],
        ids,
    )


def _flat(groups: dict[str, list[str]]) -> Iterable[tuple[str, str]]:
    return [(group, name) for group, names in groups.items() for name in names]


def _versions(lock: Lock) -> dict[tuple[str, str], _Item]:
    """(group, name) → version and the other fields."""
    items: dict[tuple[str, str], _Item] = {}
    for group, packages in lock.packages.items():
        items |= {(group, package.name): _Item(package.version, package) for package in packages}
    return items | {("sources", one.name): _Item(f"sha256:{one.sha256[:12]}", one) for one in lock.sources}


def _archive_line(name: str, one: Archive) -> str:
    return " ".join((f"{name}:", one.uri or "debian", one.suite, *one.components))


def _is_plain(system: System) -> bool:
    """Whether the index of a board can be used for it. A manifest without packages needs none."""
    return bool(system.packages) and not requested(system).keys() - {"system"}


def _open(stack: ExitStack, mirror: Mirror, loaded: Loaded[Board] | Loaded[System], cache: Cache | None) -> Apt:
    from erofs_edge.sources.debian.apt import open_apt
    from erofs_edge.sources.debian.supply import supply_of

    value = loaded.value
    if isinstance(value, Board) or cache is None or _is_plain(value):
        return stack.enter_context(open_apt(mirror, value.suite, value.arch))
    return stack.enter_context(
        open_apt(mirror, value.suite, value.arch, supply=supply_of(cast("Loaded[System]", loaded), cache))
    )


def _resolve(
    loaded: Loaded[Board] | Loaded[System], ask: Callable[[list[str]], list[LockedPackage]], names: list[str]
) -> list[LockedPackage]:
    """Ask apt; if it blames one of our packages, say where the manifest names it."""
    try:
        return ask(names)
    except MirrorError:
        raise
    except SourceError as error:
        culprits = set(re.split(r"[\s,;:]+", error.message))
        pointer = next((p for p, name in _written(loaded.value) if name in culprits), None)
        if pointer is None:
            raise
        raise loaded.error(pointer, error.message, hint=error.hint) from error


def _written(value: Board | System) -> list[tuple[str, str]]:
    """(pointer into the manifest, package) of every package named there."""
    if isinstance(value, System):
        return [(f"packages.{i}", name) for i, name in enumerate(value.packages)]
    firmware = [(f"boot.firmware.{i}.package", file.package) for i, file in enumerate(value.boot.firmware)]
    u_boot = [("boot.u_boot.package", value.boot.u_boot.package)] if value.boot.u_boot.package is not None else []
    return [("boot.kernel", value.boot.kernel), *u_boot, *_uefi_packages(value), *firmware]


def _uefi_packages(board: Board) -> list[tuple[str, str]]:
    """(place in the manifest, package) of each file that UEFI firmware needs."""
    uefi = board.boot.uefi
    if uefi is None:
        return []
    files = {"loader": uefi.loader, "stub": uefi.stub, "code": uefi.code, "variables": uefi.variables}
    return [(f"boot.uefi.{key}.package", file.package) for key, file in files.items()]


def _kernel(loaded: Loaded[Board], apt: Apt) -> LockedPackage:
    """The package with the kernel itself: the dependency of the metapackage, or the named one."""
    name = loaded.value.boot.kernel
    closure = _resolve(loaded, apt.closure, [name])
    images = [package for package in closure if package.name.startswith("linux-image-") and package.name != name]
    if len(images) > 1:
        raise loaded.error(
            "boot.kernel",
            f"{name} depends on several kernels: {', '.join(package.name for package in images)}",
            hint="name one of them",
        )
    return images[0] if images else next(package for package in closure if package.name == name)


def _ids(
    loaded: Loaded[System], debs: dict[str, Path], pins: list[LockedSource], cache: Cache, old: Lock | None
) -> Ids:
    """Pinned ids: those of the old lock, and new ones requested by packages, sources, overlays and entries."""
    from erofs_edge.sources.base import accounts_of, load_base
    from erofs_edge.sources.debian.configure import Ids, assign_ids
    from erofs_edge.sources.debian.deb import read_debs
    from erofs_edge.sources.debian.unpack import unpack
    from erofs_edge.sources.directory import read_directory
    from erofs_edge.sources.layers import lay_sources

    system = loaded.value
    packages = read_debs(debs, cache)
    tree = unpack(packages)
    pinned = Ids.of(old) if old is not None else Ids({}, {})
    lower = frozenset[int]()
    if system.base is not None:
        of_base = accounts_of(base := load_base(Path(system.base), cache, pins[0]))
        pinned = Ids(of_base.users | pinned.users, of_base.groups | pinned.groups)
        lower = frozenset(id(inode) for _, inode in base.walk())
        base.merge(tree)
        tree, pins = base, pins[1:]
    lay_sources(loaded, pins, tree, cache, lower)
    for i, overlay in enumerate(system.overlay):
        _lay(loaded, f"overlay.{i}", tree, read_directory(Path(overlay.from_)), overlay.to)
    for i, entry in enumerate(system.entries):
        if entry.text is not None:
            file = FileTree(Inode(0o100644, content=BytesContent(entry.text.encode())))
            _lay(loaded, f"entries.{i}", tree, file, entry.path)
    return assign_ids(packages, tree, system, pinned, position=loaded.position)


def _lay(loaded: Loaded[System], pointer: str, tree: FileTree, layer: FileTree, to: str) -> None:
    """Put the files of a layer in their places: requests for accounts are read from files."""
    for path, inode in layer.walk():
        if not inode.is_dir:
            try:
                tree.add(to.encode() + path, inode)
            except SourceError as error:
                raise loaded.error(pointer, error.message) from error


def _settled(new: Lock, old: Lock | None) -> Lock:
    """The new lock, with the old date if nothing else has changed."""
    if old is not None and msgspec.structs.replace(new, date=old.date) == old:
        return old
    return new
