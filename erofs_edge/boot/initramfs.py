# SPDX-License-Identifier: Apache-2.0
"""The initramfs: busybox, dmsetup, mke2fs, a dozen kernel modules, the init script and the values it needs.

It lies in the signed FIT and carries the root hash: whoever verified the FIT has verified the system.
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

    roots   parity bytes of a code word
    blocks  blocks that are covered: those of the data, then those of the tree
    start   block where the parity starts
    """

    roots: int
    blocks: int
    start: int


@dataclass(frozen=True, slots=True)
class InitConfig:
    """What the init script is told.

    root_hash, salt   hexadecimal; '-' stands for no salt
    data_blocks       of the file system, in units of block_size bytes
    hash_start        block where the hash tree proper starts
    on_corruption     what dm-verity does with a block that does not match
    system, slots     the system partition's name and its slots ('' for none): labels are NAME_SLOT
    data              label of the writable partition; '' keeps /data in memory
    etc               paths of /etc that are kept on it; () is all of /etc, by a writable layer over it
    cmdline           the kernel's arguments without the slot's; with others the start is refused
    signature         PKCS#7 of the root hash, which the kernel checks then; b"" where it has no key to do so
    fec               None without error correction
    rollback_index    the version of this build
    crypt             None where the data partition is not encrypted
    repair_from       http://ADDRESS[:PORT]/PATH of the system image, for what no slot can mend; '' for nowhere
    state             label of the partition that holds the minimum version; '' where there is none
    vbmeta            what vbmeta partitions must be; None where the board has none
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
        """As shell assignments. Every value is of a kind that needs no quoting."""
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
    """The archive, compressed as the kernel unpacks it fastest. What is another in each build comes last, in an archive
    of its own, so that everything before can be taken from a cache.

    programs  a tree with busybox-static, dmsetup, e2fsprogs and the libraries they need
    modules   by stream, in the order in which they load: 'disk' and 'erofs', which load at the same time, then 'data';
              'net' loads where the network is needed
    pack      what compresses a block, see `compress`

    Raises SourceError where a program or a library is missing.
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
    """What every board's initramfs has but the values; arguments as in `build_initramfs`. Raises SourceError."""
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
    """What repairs over the network, behind what repairs from the other slots."""
    scripts = [
        Path(__file__).with_name(name).read_bytes() for name in ("repair.sh", "repair_net.sh", "repair_lease.sh")
    ]
    tree.add("repair", _file(scripts[0] + scripts[1], 0o644))
    tree.add("repair-lease", _file(scripts[2], 0o755))
    for name in NETWORK_APPLETS:
        tree.add(f"bin/{name}", _symlink("busybox"))


def _add_vbmeta(tree: FileTree, late: FileTree, programs: FileTree, vbmeta: Vbmeta) -> None:
    """What checks vbmeta partitions."""
    for name in VBMETA_APPLETS:
        if tree.get(f"bin/{name}") is None:
            tree.add(f"bin/{name}", _symlink("busybox"))
    if tree.get("bin/keyctl") is None:
        add_program(tree, programs, VBMETA_PROGRAM)
    for name, content in vbmeta.files().items():
        late.add(name, _file(content, 0o644))


def pack_block(block: bytes) -> bytes:
    """A block of at most LZ4_LEGACY_BLOCK bytes, without its length."""
    import lz4.block

    packed: bytes = lz4.block.compress(block, mode="high_compression", compression=9, store_size=False)
    return packed


def compress(*archives: bytes, pack: Pack | None = None) -> bytes:
    """Archives in a row as LZ4 in the legacy frame, the only LZ4 that the kernel reads (lib/decompress_unlz4.c).

    Of what the kernel can undo, this is the fastest under emulation and on small boards, and the codec is pinned.

    pack  does what `pack_block` does, perhaps from a cache
    """
    pieces = [struct.pack("<I", LZ4_LEGACY_MAGIC)]
    for archive in archives:
        for start in range(0, len(archive), LZ4_LEGACY_BLOCK):
            packed = (pack or pack_block)(archive[start : start + LZ4_LEGACY_BLOCK])
            pieces += [struct.pack("<I", len(packed)), packed]
    return b"".join(pieces)


def add_program(tree: FileTree, source: FileTree, path: str, name: str = "") -> None:
    """A program in /bin, by its own name or another, with its loader and all its libraries where the loader looks for
    them."""
    data = _content(source, path)
    tree.add(f"bin/{name or path.rpartition('/')[2]}", _file(data, 0o755))
    wanted = dynamic(data)
    done = set[str]()
    if wanted.interpreter:
        # the loader is named by its path in the program, and by its bare name in libc
        done.add(wanted.interpreter.rpartition("/")[2])
        loader = "usr" + wanted.interpreter if wanted.interpreter.startswith("/lib/") else wanted.interpreter
        tree.add(loader, _file(_content(source, loader), 0o755))
    _add_libraries(tree, source, path, wanted.needed, done)


def add_plugin(tree: FileTree, source: FileTree, path: str) -> None:
    """A shared object that a program opens by its path, where it is, with all its libraries."""
    data = _content(source, path)
    tree.add(path, _file(data, 0o755))
    # the loader came with the program
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
