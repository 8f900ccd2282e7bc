# SPDX-License-Identifier: Apache-2.0
"""The indexes that kmod (modprobe, udev) reads beside the modules, as text and in its binary form.

libkmod only reads the binary indexes: with the text files alone, ``modprobe`` of kmod 34 finds no module. The format
(kmod libkmod/libkmod-index.h, depmod's writer): magic, version, root reference, then the nodes of a radix tree in
pre-order. A reference is a file offset whose top bits say which parts the node has: a prefix, a dense table of children
from the first to the last byte, values with priorities. Big-endian throughout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from erofs_edge.boot.modules import KernelModules, Module, module_name

MAGIC = 0xB007F457
VERSION = 0x00020001
HAS_PREFIX, HAS_VALUES, HAS_CHILDREN = 0x80000000, 0x40000000, 0x20000000
HEADER_SIZE = 12


@dataclass(slots=True)
class _Node:
    prefix: bytes = b""
    children: dict[int, _Node] = field(default_factory=dict)
    values: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def span(self) -> tuple[int, int]:
        return min(self.children), max(self.children)

    @property
    def size(self) -> int:
        size = len(self.prefix) + 1 if self.prefix else 0
        if self.children:
            first, last = self.span
            size += 2 + 4 * (last - first + 1)
        if self.values:
            size += 4 + sum(4 + len(value) + 1 for _, value in self.values)
        return size

    @property
    def flags(self) -> int:
        return (
            (HAS_PREFIX if self.prefix else 0)
            | (HAS_VALUES if self.values else 0)
            | (HAS_CHILDREN if self.children else 0)
        )


def binary_index(entries: Iterable[tuple[str, str, int]]) -> bytes:
    """Make an index of (key, value, priority): lower priorities win, keys may repeat."""
    root = _Node()
    for key, value, priority in entries:
        _insert(root, key.encode(), value.encode(), priority)
    out: list[bytes] = []
    _write(root, HEADER_SIZE, out)
    return struct.pack(">3I", MAGIC, VERSION, HEADER_SIZE | root.flags) + b"".join(out)


def _insert(root: _Node, key: bytes, value: bytes, priority: int) -> None:
    node, rest = root, key
    while True:
        common = next((i for i, (a, b) in enumerate(zip(node.prefix, rest, strict=False)) if a != b), None)
        common = min(len(node.prefix), len(rest)) if common is None else common
        if common < len(node.prefix):
            below = _Node(node.prefix[common + 1 :], node.children, node.values)
            node.children, node.values = {node.prefix[common]: below}, []
            node.prefix = node.prefix[:common]
        rest = rest[common:]
        if not rest:
            node.values = sorted([*node.values, (priority, value)])
            return
        child = node.children.get(rest[0])
        if child is None:
            node.children[rest[0]] = _Node(rest[1:], values=[(priority, value)])
            return
        node, rest = child, rest[1:]


def _write(node: _Node, offset: int, out: list[bytes]) -> int:
    """Append a node at `offset`, then its descendants; return the offset after them."""
    place = len(out)
    out.append(b"")
    behind = offset + node.size
    raw = node.prefix + b"\0" if node.prefix else b""
    if node.children:
        first, last = node.span
        references = [0] * (last - first + 1)
        for letter in sorted(node.children):
            child = node.children[letter]
            references[letter - first] = behind | child.flags
            behind = _write(child, behind, out)
        raw += bytes([first, last]) + struct.pack(f">{len(references)}I", *references)
    if node.values:
        raw += struct.pack(">I", len(node.values))
        raw += b"".join(struct.pack(">I", priority) + value + b"\0" for priority, value in node.values)
    out[place] = raw
    return behind


def index_files(kernel: KernelModules, modules: list[Module]) -> dict[str, bytes]:
    """Name → bytes of the files that depmod would write for exactly these modules (a closure, see `closure`)."""
    ordered = sorted(modules, key=lambda m: (kernel.order.get(m.name, len(kernel.order)), m.name))
    priority = {module.name: index for index, module in enumerate(ordered)}
    dependencies = {module.name: _dependencies(module, {m.name: m for m in modules}) for module in modules}
    lines = {m.name: f"{m.path}:" + "".join(f" {d.path}" for d in dependencies[m.name]) for m in ordered}
    aliases = [(alias, m.name, priority[m.name]) for m in ordered for alias in m.aliases]
    softdeps = [f"softdep {m.name} {line}" for m in ordered for line in m.softdep]
    builtin_paths = kernel.text("modules.builtin").split()
    return {
        "modules.alias": _text([f"alias {alias} {name}" for alias, name, _ in aliases]),
        "modules.alias.bin": binary_index((_normal(alias), name, rank) for alias, name, rank in aliases),
        "modules.builtin": kernel.text("modules.builtin").encode(),
        "modules.builtin.alias.bin": binary_index(_builtin_aliases(kernel)),
        "modules.builtin.bin": binary_index((module_name(path), "", 0) for path in builtin_paths),
        "modules.builtin.modinfo": kernel.text("modules.builtin.modinfo").encode(),
        "modules.dep": _text([lines[m.name] for m in ordered]),
        "modules.dep.bin": binary_index((m.name, lines[m.name], priority[m.name]) for m in ordered),
        "modules.devname": _text(_device_names(ordered)),
        "modules.softdep": _text(softdeps),
    }


def _dependencies(module: Module, known: dict[str, Module]) -> list[Module]:
    """All dependencies of a module, dependents first: kmod loads the list from its end."""
    found: dict[str, Module] = {}

    def visit(current: Module) -> None:
        for name in current.depends:
            if name in known and name not in found:
                visit(known[name])
                found[name] = known[name]

    visit(module)
    return list(found.values())[::-1]


def _normal(alias: str) -> str:
    """Treat '-' and '_' as the same, as in module names, except inside brackets of a pattern."""
    outside, bracket, inside = alias.partition("[")
    middle, close, rest = inside.partition("]")
    tail = _normal(rest) if rest else ""
    return outside.replace("-", "_") + bracket + middle + close + tail


def _builtin_aliases(kernel: KernelModules) -> Iterable[tuple[str, str, int]]:
    for entry in kernel.text("modules.builtin.modinfo").split("\0"):
        key, _, value = entry.partition("=")
        name, _, what = key.partition(".")
        if what == "alias":
            yield _normal(value), name.replace("-", "_"), 0


def _device_names(modules: list[Module]) -> list[str]:
    """Device nodes that are created before their module is loaded: 'fuse fuse c10:229'."""
    lines = []
    for module in modules:
        name = device = ""
        for alias in module.aliases:
            kind, _, rest = alias.partition("-major-")
            if alias.startswith("devname:"):
                name = alias.removeprefix("devname:")
            elif kind in ("char", "block") and rest.replace("-", "", 1).isdigit() and "-" in rest:
                device = f"{kind[0]}{rest.replace('-', ':')}"
        if name and device:
            lines.append(f"{module.name} {name} {device}")
    return lines


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
