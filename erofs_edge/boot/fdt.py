# SPDX-License-Identifier: Apache-2.0
"""Flattened device trees, version 17: parse, change, write (Devicetree Specification v0.4, chapter 5).

FIT images and the control device tree that carries U-Boot's public keys are both this format. Everything is
big-endian; the structure block is a run of 4-byte tags. Property values may be tens of megabytes (a kernel in
a FIT), so the writer joins pieces once and never copies a value twice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from erofs_edge.errors import FormatError

MAGIC = 0xD00DFEED
HEADER = struct.Struct(">10I")
"""magic, totalsize, off_dt_struct, off_dt_strings, off_mem_rsvmap, version, last_comp_version, boot_cpuid_phys,
size_dt_strings, size_dt_struct"""

BEGIN_NODE, END_NODE, PROP, NOP, END = 1, 2, 3, 4, 9
MAX_DEPTH = 64
_TAG = struct.Struct(">I")
_PROP_HEAD = struct.Struct(">3I")
PROP_HEAD_SIZE = _PROP_HEAD.size
_RESERVE = struct.Struct(">2Q")


@dataclass(slots=True)
class Node:
    """A node: property values as stored, children in order."""

    props: dict[str, bytes] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)

    def at(self, path: str) -> Node | None:
        """The node at a path below this one ('/signature/key-dev'), or None."""
        node = self
        for name in path.strip("/").split("/"):
            if name:
                child = node.children.get(name)
                if child is None:
                    return None
                node = child
        return node


@dataclass(slots=True)
class DeviceTree:
    """A whole tree: the root, the memory reservations as (address, bytes), and the physical id of the boot CPU."""

    root: Node = field(default_factory=Node)
    reservations: list[tuple[int, int]] = field(default_factory=list)
    boot_cpu: int = 0


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag of the structure block. Offsets are in bytes from the start of the blob; `path` is that of its node."""

    kind: int
    start: int
    end: int
    path: str
    name: str = ""
    value: bytes | memoryview = b""


def string(text: str) -> bytes:
    """Encode a string as a property value."""
    return text.encode() + b"\0"


def cells(*values: int) -> bytes:
    """Encode 32-bit cells as a property value."""
    return struct.pack(f">{len(values)}I", *values)


def header(blob: bytes | memoryview) -> tuple[int, ...]:
    """Read the ten header words (see HEADER) and check that every block is inside the blob. Raises FormatError."""
    if len(blob) < HEADER.size:
        raise FormatError("device tree is shorter than its header", where="offset 0x0")
    words = HEADER.unpack_from(blob)
    magic, total, off_struct, off_strings, off_reserve, version, compatible, _, size_strings, size_struct = words
    if magic != MAGIC:
        raise FormatError(f"not a device tree: magic 0x{magic:08x}", where="offset 0x0")
    if version < 17 or compatible > 17:
        raise FormatError(f"device tree version {version} is not supported", where="offset 0x14")
    if (
        total > len(blob)
        or off_struct + size_struct > total
        or off_strings + size_strings > total
        or off_reserve > total
    ):
        raise FormatError("device tree is cut short", where="offset 0x4")
    if off_struct % 4 or off_reserve % 8:
        raise FormatError("device tree blocks are not aligned", where="offset 0x8")
    return words


def tags(blob: bytes | memoryview) -> Iterator[Tag]:
    """Every tag of the structure block in order. Raises FormatError on a malformed block."""
    words = header(blob)
    view = memoryview(blob)[: words[1]]
    strings = bytes(view[words[3] : words[3] + words[8]])
    position, limit = words[2], words[2] + words[9]
    path: list[str] = []
    ended = False
    while position + 4 <= limit:
        start, (kind,) = position, _TAG.unpack_from(view, position)
        position += 4
        here = "/" + "/".join(path[1:])
        if kind == BEGIN_NODE:
            stop = bytes(view[position : min(position + 256, limit)]).find(0)
            name = _text(bytes(view[position : position + max(stop, 0)]), start)
            if stop < 0 or len(path) >= MAX_DEPTH or ended or bool(path) != bool(name) or "/" in name:
                raise FormatError("bad node in the device tree", where=f"offset {start:#x}")
            position = start + 4 + (stop + 4 & ~3)
            path.append(name)
            yield Tag(kind, start, position, "/" + "/".join(path[1:]), name)
        elif kind == END_NODE:
            if not path:
                raise FormatError("unbalanced nodes in the device tree", where=f"offset {start:#x}")
            path.pop()
            ended = not path
            yield Tag(kind, start, position, here)
        elif kind == PROP:
            if position + 8 > limit or not path:
                raise FormatError("bad property in the device tree", where=f"offset {start:#x}")
            length, name_at = struct.unpack_from(">2I", view, position)
            stop = strings.find(b"\0", name_at)
            if position + 8 + length > limit or stop < 0:
                raise FormatError("property leaves the device tree", where=f"offset {start:#x}")
            value = view[position + 8 : position + 8 + length]
            position += 8 + (length + 3 & ~3)
            yield Tag(kind, start, position, here, _text(strings[name_at:stop], start), value)
        elif kind == NOP:
            yield Tag(kind, start, position, here)
        elif kind == END:
            if not ended:
                break
            yield Tag(kind, start, position, here)
            return
        else:
            raise FormatError(f"unknown tag {kind} in the device tree", where=f"offset {start:#x}")
    raise FormatError("device tree has no end", where=f"offset {min(position, limit):#x}")


def _text(raw: bytes, offset: int) -> str:
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise FormatError("name in the device tree is not ASCII", where=f"offset {offset:#x}") from error


def parse(blob: bytes | memoryview) -> DeviceTree:
    """Parse a blob into a tree; values are copied. Raises FormatError on malformed input and if a node has two children
    or properties of the same name: libfdt uses the first, other parsers the last."""
    words = header(blob)
    tree = DeviceTree(boot_cpu=words[7])
    position = words[4]
    while position + _RESERVE.size <= words[1]:
        entry = _RESERVE.unpack_from(blob, position)
        if entry == (0, 0):
            break
        tree.reservations.append(entry)
        position += _RESERVE.size
    stack: list[Node] = []
    for tag in tags(blob):
        if tag.kind == BEGIN_NODE:
            node = tree.root if not stack else Node()
            if stack:
                if tag.name in stack[-1].children:
                    raise FormatError(f"the device tree has {tag.path} twice", where=f"offset {tag.start:#x}")
                stack[-1].children[tag.name] = node
            stack.append(node)
        elif tag.kind == END_NODE:
            stack.pop()
        elif tag.kind == PROP:
            if tag.name in stack[-1].props:
                raise FormatError(
                    f"the device tree has '{tag.name}' of {tag.path} twice", where=f"offset {tag.start:#x}"
                )
            stack[-1].props[tag.name] = bytes(tag.value)
    return tree


def write(tree: DeviceTree) -> bytes:
    """Write a tree as a version 17 blob: header, reservations, structure, strings in order of first use."""
    names: dict[str, int] = {}
    pieces: list[bytes] = []
    strings_size = _emit(tree.root, "", names, pieces, 0)
    pieces.append(_TAG.pack(END))
    size_struct = sum(map(len, pieces))
    reserve = b"".join(_RESERVE.pack(*entry) for entry in [*tree.reservations, (0, 0)])
    off_reserve = HEADER.size
    off_struct = off_reserve + len(reserve)
    off_strings = off_struct + size_struct
    total = off_strings + strings_size
    padding = -total % 4
    head = HEADER.pack(
        MAGIC,
        total + padding,
        off_struct,
        off_strings,
        off_reserve,
        17,
        16,
        tree.boot_cpu,
        strings_size,
        size_struct,
    )
    return b"".join([head, reserve, *pieces, *(string(name) for name in names), bytes(padding)])


def _emit(node: Node, name: str, names: dict[str, int], pieces: list[bytes], strings_size: int) -> int:
    raw = string(name)
    pieces += [_TAG.pack(BEGIN_NODE), raw, bytes(-len(raw) % 4)]
    for key, value in node.props.items():
        if key not in names:
            names[key] = strings_size
            strings_size += len(key) + 1
        pieces += [_PROP_HEAD.pack(PROP, len(value), names[key]), value, bytes(-len(value) % 4)]
    for child_name, child in node.children.items():
        strings_size = _emit(child, child_name, names, pieces, strings_size)
    pieces.append(_TAG.pack(END_NODE))
    return strings_size
