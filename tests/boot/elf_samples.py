# SPDX-License-Identifier: Apache-2.0
"""Small ELF files for the tests: kernel modules and programs that contain only what is looked at."""

from __future__ import annotations

import struct

from erofs_edge.boot.modules import module_name
from erofs_edge.tree import BytesContent, FileTree, Inode

VERSION = "6.1.0-test"
HEADER = "<16sHHIQQQIHHHHHH"


def module_elf(*modinfo: str, export: str = "x") -> bytes:
    """Return a relocatable AArch64 file: .modinfo, a symbol table that imports what `depends=` names, one exported
    symbol.

    depmod goes by symbols: a module NAME exports the symbol use_NAME.
    """
    needs = [name for entry in modinfo if entry.startswith("depends=") for name in entry[8:].split(",") if name]
    strings = b"\0" + b"".join(f"use_{name.replace('-', '_')}\0".encode() for name in needs)
    symbols, position = bytes(24), 1
    for name in needs:
        symbols += struct.pack("<IBBHQQ", position, 0x10, 0, 0, 0, 0)
        position += len(name) + 5
    names = b"\0.modinfo\0.symtab\0.strtab\0.shstrtab\0__ksymtab_strings\0"
    info = b"".join(entry.encode() + b"\0" for entry in modinfo)
    parts = [info, symbols, strings, names, f"use_{export}\0".encode()]
    offsets = [64 + sum(map(len, parts[:index])) for index in range(len(parts))]
    table = 64 + sum(map(len, parts))
    table += -table % 8
    rows = [(0,) * 10]
    for index, (name, kind, link, entry) in enumerate(
        [(b".modinfo", 1, 0, 0), (b".symtab", 2, 3, 24), (b".strtab", 3, 0, 0), (b".shstrtab", 3, 0, 0),
         (b"__ksymtab_strings", 1, 0, 0)]
    ):  # fmt: skip
        where = names.index(b"\0" + name + b"\0") + 1
        rows.append((where, kind, 2, 0, offsets[index], len(parts[index]), link, link and 1, 1, entry))
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = struct.pack(HEADER, ident, 1, 183, 1, 0, 0, table, 0, 64, 0, 0, 64, len(rows), 4)
    body = (head + b"".join(parts)).ljust(table, b"\0")
    return body + b"".join(struct.pack("<IIQQQQIIQQ", *row) for row in rows)


def program_elf(needed: list[str], interpreter: str = "") -> bytes:
    """Return a dynamic AArch64 file: one PT_LOAD of the whole file at address 0x10000, PT_INTERP if given,
    PT_DYNAMIC."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    interp = interpreter.encode() + b"\0"
    start = 64 + 3 * 56
    at = {"strings": start, "interp": start + len(strings)}
    at["dynamic"] = at["interp"] + len(interp) + -(at["interp"] + len(interp)) % 8
    entries = [(1, strings.index(b"\0" + name.encode() + b"\0") + 1) for name in needed]
    entries += [(5, 0x10000 + at["strings"]), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    total = at["dynamic"] + len(dynamic)
    segments = [
        (1, 5, 0, 0x10000, 0x10000, total, total, 4096),
        (2, 6, at["dynamic"], 0, 0, len(dynamic), len(dynamic), 8),
    ]
    if interpreter:
        segments.append((3, 4, at["interp"], 0, 0, len(interp), len(interp), 1))
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = struct.pack(HEADER, ident, 3, 183, 1, 0, 64, 0, 0, 64, 56, len(segments), 64, 0, 0)
    body = (head + b"".join(struct.pack("<IIQQQQQQ", *segment) for segment in segments)).ljust(start, b"\0")
    return (body + strings + interp).ljust(at["dynamic"], b"\0") + dynamic


def file(data: bytes, mode: int = 0o100644) -> Inode:
    return Inode(mode, content=BytesContent(data))


_MODINFO = {
    "kernel/drivers/block/virtio_blk.ko": ("alias=virtio:d00000002v*", "depends="),
    "kernel/drivers/md/dm-mod.ko": ("alias=devname:mapper/control", "alias=char-major-10-236", "depends="),
    "kernel/drivers/md/dm-bufio.ko": ("depends=dm-mod",),
    "kernel/drivers/watchdog/i6300esb.ko": ("depends=",),
    "kernel/drivers/watchdog/bcm2835_wdt.ko": ("depends=",),
    "kernel/lib/reed_solomon.ko": ("depends=",),
    "kernel/drivers/md/dm-verity.ko": ("depends=dm-mod,reed_solomon,dm-bufio",),
    "kernel/crypto/crc32c_generic.ko": ("alias=crypto-crc32c", "alias=crc32c", "depends="),
    "kernel/lib/libcrc32c.ko": ("softdep=pre: crc32c", "depends="),
    "kernel/fs/erofs/erofs.ko": ("alias=fs-erofs", "depends=libcrc32c"),
    "kernel/fs/jbd2/jbd2.ko": ("softdep=pre: crypto-crc32c post: other", "depends="),
    "kernel/fs/ext4/ext4.ko": ("alias=fs-ext4", "alias=ext3", "softdep=pre: crypto-crc32c", "depends=jbd2"),
    "kernel/fs/overlayfs/overlay.ko": ("alias=fs-overlay", "depends="),
    "kernel/net/a/one.ko": ("alias=of:N*T*Cvendor,a-[b-c]-d", "depends=two"),
    "kernel/net/a/two.ko": ("alias=pci:v00001AF4d*", "alias=pci:v00001AF4d*sv*", "depends="),
}
MODULES = {path: module_elf(*info, export=module_name(path)) for path, info in _MODINFO.items()}
BUILTIN = ["kernel/drivers/virtio/virtio_pci.ko", "kernel/fs/configfs/configfs.ko"]
BUILTIN_MODINFO = b"virtio_pci.alias=pci:v00001AF4d*\0virtio_pci.license=GPL\0configfs.alias=fs-configfs\0"


def kernel_tree(modules: dict[str, bytes] | None = None) -> FileTree:
    """Return a kernel package: modules, the list of built-in ones, the image and two device trees."""
    tree = FileTree()
    top = f"usr/lib/modules/{VERSION}"
    chosen = MODULES if modules is None else modules
    for path, data in chosen.items():
        tree.add(f"{top}/{path}", file(data))
    tree.add(f"{top}/modules.order", file("".join(f"{path}\n" for path in chosen).encode()))
    tree.add(f"{top}/modules.builtin", file("".join(f"{path}\n" for path in BUILTIN).encode()))
    tree.add(f"{top}/modules.builtin.modinfo", file(BUILTIN_MODINFO))
    tree.add(f"boot/vmlinuz-{VERSION}", file(b"MZ kernel " * 5000))
    return tree
