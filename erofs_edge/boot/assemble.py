# SPDX-License-Identifier: Apache-2.0
"""Make a board bootable from its packages: kernel, initramfs, signed FIT, U-Boot, firmware partition."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.boot.crypt import MODULES as CRYPT_MODULES
from erofs_edge.boot.crypt import crypt_of
from erofs_edge.boot.elf import modinfo
from erofs_edge.boot.firmware import firmware_files, package_file
from erofs_edge.boot.fit import Image, add_key, build_fit
from erofs_edge.boot.initramfs import Fec, InitConfig, build_initramfs
from erofs_edge.boot.kmod import index_files
from erofs_edge.boot.loader import control_tree, join, machine_tree
from erofs_edge.boot.modules import DIRECTORY, KernelModules, Module
from erofs_edge.boot.packed import cached_pack
from erofs_edge.boot.script import boot_script
from erofs_edge.boot.signed_boot import files_digest
from erofs_edge.errors import ManifestError, SourceError
from erofs_edge.manifest.model import CONTENT_WORDS, Board, PackageFile, Partition
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import merged_tree, read_deb
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.trust.signer import Signer
from erofs_edge.verity.fec import Layout
from erofs_edge.verity.tree import VerityInfo

STORAGE_MODULES = {"virtio": ("virtio_blk",), "mmc": ()}
"""drivers behind U-Boot's names for disks; controllers of real boards are named in `boot.modules`"""
VERITY_MODULES = ("dm_verity",)
EROFS_MODULES = ("erofs",)
DATA_MODULES = ("ext4", "overlay")
NETWORK_MODULES = ("virtio_net",)
"""for repairs over the network, in addition to the drivers of the board's system"""
NETWORK_PATH = "kernel/drivers/net/"
KERNEL = "kernel"
"""key of a cache object's memory: the modules of a kernel's package"""


@dataclass(frozen=True, slots=True)
class BootOutputs:
    """What a board boots from.

    fit             the signed FIT, the same for every slot
    u_boot          the boot loader
    firmware_files  name → bytes for the firmware partition; None if the board has none
    kernel_version  as in /usr/lib/modules/VERSION
    """

    fit: bytes
    u_boot: bytes
    firmware_files: dict[str, bytes] | None
    kernel_version: str


@dataclass(frozen=True, slots=True)
class Start:
    """Kernel and initramfs, however they are packed.

    tree       of the kernel's package
    version    as in /usr/lib/modules/VERSION
    root_hash  of the only system that the initramfs opens
    """

    tree: FileTree
    version: str
    initramfs: bytes
    root_hash: bytes


def kernel_of(kernel_deb: Path, cache: Cache) -> KernelModules:
    """The modules of a kernel's package with its tree, kept as long as the cache object; read-only.

    Raises SourceError for a package that is damaged or contains no kernel.
    """
    package = read_deb(kernel_deb, cache)
    kept: KernelModules | None = cache.kept.get((KERNEL, package))
    if kept is None:
        kept = cache.kept[KERNEL, package] = KernelModules(package.data)
    return kept


def system_modules(names: Iterable[str], kernel_deb: Path, cache: Cache, *, epoch: int) -> FileTree:
    """/usr/lib/modules/VERSION for the system partition: the modules selected by names and globs, unchanged and with
    their dependencies, and the indexes that modprobe and udev read. An empty tree for none.

    Raises SourceError for a module that the kernel does not have.
    """
    kernel = kernel_of(kernel_deb, cache)
    modules = kernel.closure(kernel.select(names))
    tree = FileTree()
    if not modules:
        return tree
    top = f"{DIRECTORY.decode()}/{kernel.version}"
    for module in modules:
        file = kernel.file(module.path)
        tree.add(f"{top}/{module.path}", file.replaced(xattrs=dict(file.xattrs)))  # the system has its own labels
    for name, data in index_files(kernel, modules).items():
        index = Inode(stat.S_IFREG | 0o644, mtime_ns=epoch * 10**9, content=BytesContent(data), origin="module indexes")
        tree.add(f"{top}/{name}", index)
    for _, inode in tree.walk():
        if inode.is_dir:
            inode.mtime_ns = epoch * 10**9
    return tree


def wanted_firmware(names: Iterable[str], kernel_deb: Path, cache: Cache) -> list[str]:
    """Names of the firmware files loaded by the modules that names and globs select, and by their dependencies."""
    kernel = kernel_of(kernel_deb, cache)
    modules = kernel.closure(kernel.select(names))
    return sorted({value for module in modules for key, value in modinfo(module.data) if key == "firmware"})


def build_start(
    board: Board,
    config: InitConfig,
    *,
    kernel_deb: Path,
    initramfs_debs: Mapping[str, Path],
    epoch: int,
    cache: Cache,
) -> Start:
    """Make kernel and initramfs.

    config          from `init_config`, with any further values for the init script
    initramfs_debs  package name → file
    epoch           seconds since 1970, the only time in the initramfs

    Raises SourceError if a package lacks something that is needed.
    """
    kernel = kernel_of(kernel_deb, cache)
    programs = merged_tree(initramfs_debs, cache)
    streams = _module_streams(board, kernel)
    initramfs = build_initramfs(programs, streams, config, epoch=epoch, pack=cached_pack(cache))
    return Start(kernel.tree, kernel.version, initramfs, bytes.fromhex(config.root_hash))


def build_boot(
    board: Board,
    start: Start,
    firmware: Mapping[str, FileTree],
    *,
    epoch: int,
    signer: Signer,
    program: bytes | None = None,
    pack: Callable[[dict[str, bytes]], dict[str, bytes]] = dict,
) -> BootOutputs:
    """Make everything that runs before the system partition is opened.

    firmware  packages of boot loader and firmware by name
    epoch     seconds since 1970, the only time in all outputs
    program   the compiled U-Boot, if the board builds one: it gets its device tree, key and script here
    pack      transforms the firmware partition's files before they are stored

    Raises SourceError if a package lacks something that is needed, ManifestError if the board is inconsistent.
    """
    images = fit_images(board, start, "initramfs")
    dtb = images["fdt"].data if "fdt" in images else None
    u_boot, script, keyed = _loader(board, firmware, program, signer, dtb)
    files = None
    if any(partition.content == "firmware" for partition in board.disk.partitions.values()):
        files = pack(firmware_files(board, firmware, u_boot=u_boot, script=script, dtb=keyed, epoch=epoch))
    fit = build_fit(
        images,
        description=f"{board.board}, Linux {start.version}",
        epoch=epoch,
        signer=signer,
        load_address=board.boot.load_address,
        rollback_index=board.sign.rollback_index,
        firmware=files_digest(files) if files is not None else "",
    )
    return BootOutputs(fit, u_boot, files, start.version)


def fit_images(board: Board, start: Start, kind: str) -> dict[str, Image]:
    """The contents of a board's FIT, with the device tree unless U-Boot supplies its own. `kind` describes the
    initramfs. Raises SourceError if the kernel's package lacks something."""
    images = {
        "kernel": kernel_image(board, start.tree, start.version),
        "ramdisk": Image("ramdisk", start.initramfs, f"{kind} for root hash {start.root_hash.hex()}"),
    }
    if board.boot.fdt != "control":
        dtb = device_tree(start.tree, start.version, board.boot.fdt)
        images["fdt"] = Image("flat_dt", dtb, board.boot.fdt)
    return images


def _loader(
    board: Board, firmware: Mapping[str, FileTree], program: bytes | None, signer: Signer, dtb: bytes | None
) -> tuple[bytes, str | None, bytes | None]:
    """U-Boot, with the script and the device tree stored beside it. A packaged U-Boot gets the key from that tree. Ours
    contains key and script, and the tree beside it is only read for the size of the memory."""
    if program is not None:
        tree = control_tree(machine_tree(board, dtb), signer, boot_script(board))
        return join(program, tree), None, dtb
    named = board.boot.u_boot
    if named.package is None or named.path is None:
        raise ManifestError(f"board '{board.board}' names no boot loader (boot.u_boot)")
    u_boot = package_file(firmware, PackageFile(package=named.package, path=named.path))
    return u_boot, boot_script(board), add_key(dtb, signer) if dtb is not None else None


def _module_streams(board: Board, kernel: KernelModules) -> dict[str, list[Module]]:
    first = [*STORAGE_MODULES[board.boot.storage], *kernel.select(board.boot.modules), *VERITY_MODULES]
    crypt = CRYPT_MODULES if any(p.encrypt for p in board.disk.partitions.values()) else ()
    wanted: list[str] = []
    if board.verity.repair_from:
        of_system = kernel.select(board.boot.system_modules)
        wanted = [*(name for name in of_system if NETWORK_PATH in kernel.paths[name]), *NETWORK_MODULES]
    disk, erofs, data, net = kernel.streams(first, EROFS_MODULES, (*DATA_MODULES, *crypt), kernel.select(wanted))
    return {"disk": disk, "erofs": erofs, "data": data, "net": net}


def init_config(board: Board, verity: VerityInfo, fec: Layout | None) -> InitConfig:
    """The values for the init script, from a board and its system image, which may have parity.

    Raises ManifestError if the board is inconsistent.
    """
    name, system = _system_partition(board)
    data = [label for label, partition in board.disk.partitions.items() if partition.filesystem is not None]
    if len(data) > 1:
        raise ManifestError(
            f"board '{board.board}' has more than one writable partition: {', '.join(data)}",
            hint="leave `filesystem` on one of them",
        )
    return InitConfig(
        root_hash=verity.root_hash.hex(),
        salt=verity.salt.hex(),
        block_size=verity.block_size,
        data_blocks=verity.data_blocks,
        hash_start=verity.hash_start_block,
        system=name,
        slots=tuple(system.slots),
        data=data[0] if data else "",
        on_corruption=board.verity.on_corruption,
        cmdline=" ".join(word for argument in board.boot.cmdline for word in argument.split()),
        fec=Fec(fec.roots, fec.blocks, fec.offset // fec.block_size) if fec else None,
        rollback_index=board.sign.rollback_index,
        crypt=crypt_of(next((p.encrypt for p in board.disk.partitions.values() if p.encrypt), None)),
        repair_from=board.verity.repair_from.replace("{root_hash}", verity.root_hash.hex()),
        state=next((name for name, one in board.disk.partitions.items() if one.content == "slot-state"), ""),
    )


def _system_partition(board: Board) -> tuple[str, Partition]:
    for name, partition in board.disk.partitions.items():
        if partition.content is not None and partition.content not in CONTENT_WORDS:
            return name, partition
    raise ManifestError(
        f"board '{board.board}' has no system partition", hint="give one partition a manifest as its content"
    )


def vmlinuz(tree: FileTree, version: str) -> bytes:
    """The kernel in its package; for arm64 it is the uncompressed Image. Raises SourceError without one."""
    inode = tree.get(f"boot/vmlinuz-{version}", follow=True)
    if inode is None or not inode.is_file:
        raise SourceError(f"the kernel package has no boot/vmlinuz-{version}")
    return inode.read()


def kernel_image(board: Board, tree: FileTree, version: str) -> Image:
    """The kernel for a FIT. Raises SourceError without one, ManifestError for a format that cannot be booted this
    way.
    """
    data, title = vmlinuz(tree, version), f"Linux {version}"
    if board.boot.kernel_compression == "none":
        return Image("kernel_noload", data, title)
    if board.boot.chain == "u-boot-booti":
        raise ManifestError(
            f"board '{board.board}': chain u-boot-booti starts the kernel in place, so it must not be compressed",
            hint="set `kernel_compression: none`",
        )
    import lz4.frame

    # the only form that U-Boot's decoder reads: independent blocks (lib/lz4_wrapper.c)
    packed = lz4.frame.compress(
        data,
        compression_level=9,
        block_size=lz4.frame.BLOCKSIZE_MAX4MB,
        block_linked=False,
        content_checksum=False,
        store_size=True,
    )
    return Image("kernel_noload", packed, title, "lz4")


def device_tree(tree: FileTree, version: str, name: str) -> bytes:
    """A device tree of the kernel's package. Raises ManifestError without one."""
    inode = tree.get(f"usr/lib/linux-image-{version}/{name}", follow=True)
    if inode is None or not inode.is_file:
        folder = tree.get(f"usr/lib/linux-image-{version}/{name.rpartition('/')[0]}", follow=True)
        known = [n.decode() for n in sorted(folder.children)] if folder is not None and folder.is_dir else []
        raise ManifestError(
            f"kernel {version} has no device tree {name}",
            hint=f"there are: {', '.join(known[:12])}" if known else "name it with its folder: broadcom/x.dtb",
        )
    return inode.read()
