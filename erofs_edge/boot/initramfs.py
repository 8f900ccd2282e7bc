# SPDX-License-Identifier: Apache-2.0
"""The initramfs: busybox, dmsetup, mke2fs, a dozen kernel modules, the init script and its values.

It is part of the signed FIT and contains the root hash, so verifying the FIT verifies the system.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from erofs_edge.boot.contents import LZ4_LEGACY_BLOCK, LZ4_LEGACY_MAGIC
from erofs_edge.boot.cpio import write_cpio
from erofs_edge.boot.crypt import PROGRAM as CRYPT_PROGRAM
from erofs_edge.boot.crypt import Crypt, scripts
from erofs_edge.boot.elf import dynamic
from erofs_edge.boot.modules import Module
from erofs_edge.boot.vbmeta import APPLETS as VBMETA_APPLETS
from erofs_edge.boot.vbmeta import PROGRAM as VBMETA_PROGRAM
from erofs_edge.boot.vbmeta import Vbmeta
from erofs_edge.errors import SourceError
from erofs_edge.tree import BytesContent, FileTree, Inode

PROGRAMS = ("usr/bin/busybox", "usr/sbin/dmsetup", "usr/sbin/mke2fs", "usr/sbin/resize2fs")
APPLETS = (
    "blockdev", "cat", "cmp", "cp", "cut", "dd", "gzip", "head", "insmod", "mkdir", "mount", "mv", "od", "printf",
    "reboot", "rm", "sh", "sleep", "switch_root", "sync", "tail", "tr", "umount",
)  # fmt: skip
NETWORK_APPLETS = ("ip", "nc", "sha256sum", "timeout", "udhcpc")
LIBRARY_DIRECTORIES = ("usr/lib/aarch64-linux-gnu", "usr/lib")
LOADER = "ld-linux-aarch64.so.1"
VERITY_OPTIONS = {"eio": "", "restart": "restart_on_corruption", "panic": "panic_on_corruption"}
Pack = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Fec:
    """Where the parity is, for the verity table (kernel Documentation/admin-guide/device-mapper/verity.rst).

    roots   parity bytes per code word
    blocks  blocks covered: the data's, then the tree's
    start   block at which the parity starts
    """

    roots: int
    blocks: int
    start: int


@dataclass(frozen=True, slots=True)
class InitConfig:
    """Values for the init script.

    root_hash, salt   hexadecimal; '-' stands for no salt
    data_blocks       of the file system, in units of block_size bytes
    hash_start        block at which the hash tree proper starts
    on_corruption     how dm-verity handles a block that does not match
    system, slots     the system partition's name and its slots ('' for none): labels are NAME_SLOT
    data              label of the writable partition; '' keeps /data in memory
    etc               paths of /etc that are kept on it; () is all of /etc, by a writable layer over it
    cmdline           the kernel's arguments without the slot's; the boot is refused with any others
    signature         PKCS#7 of the root hash for the kernel to check; b"" if the kernel has no key for that
    fec               None without error correction
    rollback_index    the version of this build
    crypt             None if the data partition is not encrypted
    repair_from       http://ADDRESS[:PORT]/PATH of the system image, used if no slot can repair; '' for none
    state             label of the partition that holds the minimum version; '' for none
    vbmeta            expected contents of vbmeta partitions; None if the board has none
    """

    root_hash: str
    salt: str
    block_size: int
    data_blocks: int
    hash_start: int
    system: str
    slots: tuple[str, ...]
    data: str
    on_corruption: Literal["eio", "restart", "panic"] = "eio"
    etc: tuple[str, ...] = ()
    cmdline: str = ""
    fec: Fec | None = None
    rollback_index: int = 0
    state: str = ""
    signature: bytes = b""
    crypt: Crypt | None = None
    repair_from: str = ""
    vbmeta: Vbmeta | None = None

    def text(self) -> str:
        """As shell assignments. No value needs quoting."""
        values = {
            "ROOT_HASH": self.root_hash,
            "SALT": self.salt or "-",
            "BLOCK_SIZE": self.block_size,
            "DATA_BLOCKS": self.data_blocks,
            "HASH_START": self.hash_start,
            "SECTORS": self.data_blocks * self.block_size // 512,
            "VERITY_OPTIONS": VERITY_OPTIONS[self.on_corruption],
            "FEC": f"fec_roots {self.fec.roots} fec_blocks {self.fec.blocks} fec_start {self.fec.start}"
            if self.fec
            else "",
            "CMDLINE": self.cmdline,
            "ROLLBACK_INDEX": self.rollback_index,
            "STATE": self.state,
            "SYSTEM": self.system,
            "SLOTS": " ".join(self.slots),
            "DATA": self.data,
            "ETC": " ".join(self.etc),
        }
        if self.signature:
            values["VERITY_MODULE"] = "require_signatures=1"
        if self.repair_from:
            place = urlsplit(self.repair_from)
            values |= {"REPAIR_HOST": place.hostname, "REPAIR_PORT": place.port or 80, "REPAIR_PATH": place.path or "/"}
        if self.crypt is not None:
            values |= self.crypt.values()
        return "".join(f"{name}='{value}'\n" for name, value in values.items())


def build_initramfs(
    programs: FileTree,
    modules: Mapping[str, Iterable[Module]],
    config: InitConfig,
    *,
    epoch: int,
    pack: Pack | None = None,
) -> bytes:
    """Make the archive, compressed in the form that the kernel unpacks fastest. Whatever differs between builds comes
    last, in an archive of its own, so that everything before it can come from a cache.

    programs  a tree with busybox-static, dmsetup, e2fsprogs and the libraries they need
    modules   by stream, in load order: 'disk' and 'erofs', which load in parallel, then 'data'; 'net' loads if the
              network is needed
    pack      compresses a block, see `compress`

    Raises SourceError if a program or a library is missing.
    """
    tree, late = base_tree(programs, modules), FileTree()
    late.add("config", _file(config.text().encode(), 0o644))
    if config.signature:
        add_program(tree, programs, "usr/bin/keyctl")
        late.add("root-hash.p7s", _file(config.signature, 0o644))
    if config.repair_from:
        _add_network_repair(tree)
    if config.vbmeta is not None:
        _add_vbmeta(tree, late, programs, config.vbmeta)
    if config.crypt is not None:
        add_program(tree, programs, CRYPT_PROGRAM)
        for name, text in scripts().items():
            tree.add(name, _file(text, 0o644))
    return compress(write_cpio(tree, epoch=epoch), write_cpio(late, epoch=epoch), pack=pack)


def base_tree(programs: FileTree, modules: Mapping[str, Iterable[Module]]) -> FileTree:
    """The part of the initramfs that every board has, without the values; arguments as in `build_initramfs`. Raises
    SourceError.
    """
    tree = FileTree()
    for folder in ("dev", "proc", "sys", "newroot", "usr/lib", "bin"):
        tree.directory(folder)
    tree.add("lib", _symlink("usr/lib"))
    tree.add("dev/console", Inode(stat.S_IFCHR | 0o600, rdev=(5, 1)))
    tree.add("init", _file(Path(__file__).with_name("init.sh").read_bytes(), 0o755))
    tree.add("grow", _file(Path(__file__).with_name("grow.sh").read_bytes(), 0o644))
    tree.add("repair", _file(Path(__file__).with_name("repair.sh").read_bytes(), 0o644))
    tree.add("rollback", _file(Path(__file__).with_name("rollback.sh").read_bytes(), 0o644))
    for name in APPLETS:
        tree.add(f"bin/{name}", _symlink("busybox"))
    for path in PROGRAMS:
        add_program(tree, programs, path)
    for stream, ordered in modules.items():
        for index, module in enumerate(ordered):
            tree.add(f"modules/{stream}/{index:02}-{module.name}.ko", _file(module.data, 0o644))
    return tree


def _add_network_repair(tree: FileTree) -> None:
    """Add what repairs over the network, used after repair from the other slots."""
    scripts = [
        Path(__file__).with_name(name).read_bytes() for name in ("repair.sh", "repair_net.sh", "repair_lease.sh")
    ]
    tree.add("repair", _file(scripts[0] + scripts[1], 0o644))
    tree.add("repair-lease", _file(scripts[2], 0o755))
    for name in NETWORK_APPLETS:
        tree.add(f"bin/{name}", _symlink("busybox"))


def _add_vbmeta(tree: FileTree, late: FileTree, programs: FileTree, vbmeta: Vbmeta) -> None:
    """Add what checks vbmeta partitions."""
    for name in VBMETA_APPLETS:
        if tree.get(f"bin/{name}") is None:
            tree.add(f"bin/{name}", _symlink("busybox"))
    if tree.get("bin/keyctl") is None:
        add_program(tree, programs, VBMETA_PROGRAM)
    for name, content in vbmeta.files().items():
        late.add(name, _file(content, 0o644))


def pack_block(block: bytes) -> bytes:
    """Compress a block of at most LZ4_LEGACY_BLOCK bytes; its length is not included."""
    import lz4.block

    packed: bytes = lz4.block.compress(block, mode="high_compression", compression=9, store_size=False)
    return packed


def compress(*archives: bytes, pack: Pack | None = None) -> bytes:
    """Compress concatenated archives as LZ4 in the legacy frame, the only LZ4 that the kernel reads
    (lib/decompress_unlz4.c).

    Of the formats that the kernel can unpack, this is the fastest under emulation and on small boards, and the codec is
    pinned.

    pack  replaces `pack_block`, for example to use a cache
    """
    pieces = [struct.pack("<I", LZ4_LEGACY_MAGIC)]
    for archive in archives:
        for start in range(0, len(archive), LZ4_LEGACY_BLOCK):
            packed = (pack or pack_block)(archive[start : start + LZ4_LEGACY_BLOCK])
            pieces += [struct.pack("<I", len(packed)), packed]
    return b"".join(pieces)


def add_program(tree: FileTree, source: FileTree, path: str, name: str = "") -> None:
    """Add a program to /bin, under its own name or another, with its loader and all its libraries where the loader
    looks for them."""
    data = _content(source, path)
    tree.add(f"bin/{name or path.rpartition('/')[2]}", _file(data, 0o755))
    wanted = dynamic(data)
    done = set[str]()
    if wanted.interpreter:
        # programs name the loader by its path, libc by its bare name
        done.add(wanted.interpreter.rpartition("/")[2])
        loader = "usr" + wanted.interpreter if wanted.interpreter.startswith("/lib/") else wanted.interpreter
        tree.add(loader, _file(_content(source, loader), 0o755))
    _add_libraries(tree, source, path, wanted.needed, done)


def add_plugin(tree: FileTree, source: FileTree, path: str) -> None:
    """Add a shared object that a program opens by its path, in its place, with all its libraries."""
    data = _content(source, path)
    tree.add(path, _file(data, 0o755))
    # the loader was added with the program
    _add_libraries(tree, source, path, dynamic(data).needed, {LOADER})


def _add_libraries(tree: FileTree, source: FileTree, path: str, needed: Iterable[str], done: set[str]) -> None:
    todo = list(needed)
    while todo:
        name = todo.pop()
        if name in done:
            continue
        done.add(name)
        found = next((f"{d}/{name}" for d in LIBRARY_DIRECTORIES if source.get(f"{d}/{name}", follow=True)), None)
        if found is None:
            raise SourceError(f"{path} needs the library {name}, which no package of the initramfs has")
        data = _content(source, found)
        tree.add(found, _file(data, 0o755))
        todo += dynamic(data).needed


def _content(source: FileTree, path: str) -> bytes:
    inode = source.get(path, follow=True)
    if inode is None or not inode.is_file:
        raise SourceError(
            "a program for the initramfs is missing",
            where=path,
            hint="the board's lock needs busybox-static, dmsetup and e2fsprogs: run 'erofs-edge lock BOARD'",
        )
    return inode.read()


def _file(data: bytes, mode: int) -> Inode:
    return Inode(stat.S_IFREG | mode, content=BytesContent(data))


def _symlink(target: str) -> Inode:
    return Inode(stat.S_IFLNK | 0o777, target=target.encode())
