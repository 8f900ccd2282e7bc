# SPDX-License-Identifier: Apache-2.0
"""The kernel's modules: their dependencies, their load order, and a module directory for kmod.

Everything comes from the kernel package itself: ``.modinfo`` of each module asked for, and ``modules.builtin`` for what
is built into the kernel. depmod is not run, and no other module is opened.
"""

from __future__ import annotations

import difflib
import fnmatch
import lzma
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from erofs_edge.boot.elf import modinfo
from erofs_edge.errors import SourceError
from erofs_edge.tree import FileTree, Inode

DIRECTORY = b"usr/lib/modules"
MAX_MODULE = 64 << 20
ALIASES = {"crc32c": "crc32c_generic", "crypto-crc32c": "crc32c_generic"}
"""names in soft dependencies that are aliases; resolving them would mean opening every module"""
UNRECORDED = {"erofs": ("crc32c_generic",), "libcrc32c": ("crc32c_generic",), "ext4": ("crc32c_generic",)}
"""modules that request another one through the crypto API when they start, and fail without it (up to Linux 6.12)"""


@dataclass(frozen=True, slots=True)
class Module:
    """One module.

    path     below the module directory: kernel/fs/erofs/erofs.ko.xz
    depends  names that must be loaded first
    pre      names that should be loaded first (softdep)
    aliases  as listed in the module
    softdep  its softdep lines, unchanged
    data     the module itself, uncompressed
    """

    name: str
    path: str
    depends: tuple[str, ...]
    pre: tuple[str, ...]
    aliases: tuple[str, ...]
    softdep: tuple[str, ...]
    data: bytes


def module_name(path: str) -> str:
    """The kernel's name for a module: 'kernel/drivers/md/dm-mod.ko.xz' is 'dm_mod'."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


class KernelModules:
    """The modules of one kernel package (a tree with usr/lib/modules/VERSION). Raises SourceError without one."""

    def __init__(self, tree: FileTree) -> None:
        top = tree.get(DIRECTORY, follow=True)
        versions = sorted(top.children) if top is not None else []
        if top is None or len(versions) != 1:
            raise SourceError(
                f"a kernel package must hold exactly one directory in /{DIRECTORY.decode()}, this has {len(versions)}",
                hint="name the package of one kernel (linux-image-VERSION or linux-image-ARCH)",
            )
        self.tree = tree
        self.version = versions[0].decode()
        self.directory = FileTree(top.children[versions[0]])
        self._opened: dict[str, Module] = {}

    @cached_property
    def paths(self) -> dict[str, str]:
        """Name → path of every module that is a file."""
        return {
            module_name(name): name
            for name in (path.decode().lstrip("/") for path, inode in self.directory.walk() if inode.is_file)
            if re.search(r"\.ko(\.xz)?$", name)
        }

    @cached_property
    def builtin(self) -> frozenset[str]:
        """Names of the modules built into the kernel."""
        return frozenset(map(module_name, self.text("modules.builtin").split()))

    @cached_property
    def order(self) -> dict[str, int]:
        """Name → position in modules.order, the link order, which decides between equal matches."""
        return {module_name(path): index for index, path in enumerate(self.text("modules.order").split())}

    def text(self, name: str) -> str:
        """A text file of the module directory; empty if there is none."""
        inode = self.directory.get(name)
        return inode.read().decode() if inode is not None else ""

    def file(self, path: str) -> Inode:
        """A file of the module directory. Raises SourceError if there is none."""
        inode = self.directory.get(path)
        if inode is None:
            raise SourceError("no such file in the kernel package", where=path)
        return inode

    def open(self, name: str) -> Module:
        """A module by name. Raises SourceError if the kernel has no such module or the file is malformed."""
        if name not in self._opened:
            path = self.paths.get(name)
            if path is None:
                raise self._missing(name)
            self._opened[name] = _read_module(name, path, self.file(path).read())
        return self._opened[name]

    def select(self, patterns: Iterable[str]) -> list[str]:
        """Resolve names and globs to names, without built-in modules (a pattern with '/' matches paths below kernel/).

        Raises SourceError for a name or glob that matches nothing.
        """
        names: set[str] = set()
        for pattern in patterns:
            if "/" in pattern:
                matching = re.compile(fnmatch.translate(f"kernel/{pattern}"))
                found = {n for n, p in self.paths.items() if matching.match(p) or matching.match(p.partition(".ko")[0])}
            else:
                name = pattern.replace("-", "_")
                found = {name} if name in self.paths or name in self.builtin else set()
            if not found:
                raise self._missing(pattern)
            names |= found - self.builtin
        return sorted(names)

    def _missing(self, name: str) -> SourceError:
        near = difflib.get_close_matches(name.rpartition("/")[2].replace("-", "_"), self.paths, 3, 0.5)
        return SourceError(
            f"kernel {self.version} has no module '{name}'",
            hint=(f"did you mean {' or '.join(near)}? " if near else "")
            + "See `modules` and `system_modules` of the board.",
        )

    def closure(self, names: Iterable[str]) -> list[Module]:
        """The named modules in the order given, each after all its dependencies: a valid load order."""
        done: dict[str, Module] = {}
        active: set[str] = set()

        def visit(name: str) -> None:
            if name in done or name in self.builtin:
                return
            if name in active:
                raise SourceError(f"kernel module '{name}' depends on itself, by way of others")
            active.add(name)
            module = self.open(name)
            soft = [ALIASES.get(other, other).replace("-", "_") for other in module.pre]
            for other in [*soft, *UNRECORDED.get(name, ())]:
                if other in self.paths and other not in active:
                    visit(other)
            for other in module.depends:
                visit(other)
            active.discard(name)
            done[name] = module

        for name in names:
            visit(name)
        return list(done.values())

    def streams(self, *groups: Iterable[str]) -> list[list[Module]]:
        """A closure per group, without what an earlier group has."""
        closures: list[list[Module]] = []
        for names in groups:
            before = {module.name for closure in closures for module in closure}
            closures.append([module for module in self.closure(names) if module.name not in before])
        return closures


def _read_module(name: str, path: str, raw: bytes) -> Module:
    data = raw
    if path.endswith(".xz"):
        try:
            decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
            data = decompressor.decompress(raw, MAX_MODULE)
        except lzma.LZMAError as error:
            raise SourceError("kernel module is not valid xz", where=path) from error
        if not decompressor.eof:
            raise SourceError("kernel module is cut short or larger than 64 MiB", where=path)
    fields = modinfo(data)
    values = {key: [v for k, v in fields if k == key] for key in ("depends", "softdep", "alias")}
    depends = [d.replace("-", "_") for line in values["depends"] for d in line.split(",") if d]
    pre: list[str] = []
    for line in values["softdep"]:
        before = re.search(r"pre:(.*?)(?:post:|$)", line)
        pre += before[1].split() if before else []
    aliases, softdep = tuple(values["alias"]), tuple(values["softdep"])
    return Module(name, path, tuple(depends), tuple(pre), aliases, softdep, data)
