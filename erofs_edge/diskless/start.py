# SPDX-License-Identifier: Apache-2.0
"""The signed boot image of a diskless board: the board's kernel, and an initramfs with the root hash and the address of
the blocks.

Nothing that comes over the network is trusted: U-Boot verifies its FIT by its key, UEFI firmware a kernel image by its
certificates, dm-verity each block by the root hash in it. The values are those of the board's own boot image, so both
start the same system.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from erofs_edge.boot.assemble import (
    DATA_MODULES,
    EROFS_MODULES,
    STORAGE_MODULES,
    VERITY_MODULES,
    Start,
    fit_images,
)
from erofs_edge.boot.contents import init_values
from erofs_edge.boot.cpio import write_cpio
from erofs_edge.boot.fit import build_fit
from erofs_edge.boot.initramfs import add_plugin, add_program, base_tree, compress
from erofs_edge.boot.modules import KernelModules, Module
from erofs_edge.boot.packed import cached_pack
from erofs_edge.boot.script import CONFIGURATION
from erofs_edge.diskless.firmware import EFI, add_signature, firmware_image, firmware_values, programs_of
from erofs_edge.diskless.place import Place
from erofs_edge.errors import ErofsEdgeError, FormatError, ManifestError, UsageError, place_within
from erofs_edge.manifest.load import load_system
from erofs_edge.manifest.lockfile import load_lock, lock_in, lock_path
from erofs_edge.manifest.model import Board, Lock
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import merged_tree, read_deb
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.trust.signer import Signer

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "programs.yaml"
NBDKIT = "usr/lib/aarch64-linux-gnu/nbdkit"
APPLETS = ("ip", "ln", "udhcpc", "tail")
SCRIPTS = {"diskless": ("diskless.sh", 0o644), "bin/leased": ("leased.sh", 0o755)}
KEEPING = {"keep": ("keep.sh", 0o644), "keep.service": ("keep.service", 0o644)}
NETWORK = ("virtio_net",)
NETWORK_PATH = "kernel/drivers/net/"
FIT = "diskless.fit"
RELOCKED = "locks"
"""as in build/relock.py"""
READAHEAD = 8  # KiB: a boot reads 4 % less than with 64, in as many requests; with the kernel's 128 a tenth more
HASHES_AHEAD = 65536
"""bytes of the hash tree that dm-verity reads at once (its `prefetch_cluster`): those for 8 MiB instead of 32 MiB, most
of which would be useless if the image is laid out by a trace"""
FOREVER = ("retries=1000000000", "retry-delay=1", "retry-exponential=no")
"""nbdkit-retry-filter(1): a board without its server waits and retries once a second"""
ADDRESS = "setenv autoload no; dhcp"
_ROOT_HASH = re.compile("([0-9a-f]{2}){32,64}")


@dataclass(frozen=True, slots=True)
class Diskless:
    """Options of a diskless boot.

    system        where the system image is
    data          where a writable disk for /data is: a place, 'disk' for the board's own partition, 'memory'. An export
                  name that ends with '/' is completed with the board's hardware address
    keep          install the system on the board's own system partition while it runs (the first slot's; its content is
                  lost), and start from there once it is complete
    prefetch      runs of blocks (4096 bytes) of the system image, (first, count), to fetch ahead, in order
    certificates  files for TLS: ca-cert.pem, and client-cert.pem and client-key.pem if the server requires them
    readahead     KiB that the kernel reads ahead in files
    connections   number of parallel connections to the server of the system
    boot_image    of a web server, from which U-Boot gets the FIT; None for TFTP
    """

    system: Place
    data: Place | str = "memory"
    prefetch: tuple[tuple[int, int], ...] = ()
    keep: bool = False
    certificates: Mapping[str, bytes] = field(default_factory=dict)
    readahead: int = READAHEAD
    connections: int = 2
    boot_image: Place | None = None


@dataclass(frozen=True, slots=True)
class DisklessStart:
    """The boot image, its name, and the script by which U-Boot gets and starts it: '' for UEFI firmware, which needs
    none. `root_hash` in hex; `keeps_data`: on a disk."""

    image: bytes
    name: str
    script: str
    root_hash: str
    keeps_data: bool


def board_lock(board: Path, out: Path) -> Lock:
    """The lock with which a board's file was built into `out`: the one that the build made anew, if it had to."""
    anew = lock_in(out / RELOCKED, board, board=True)
    return load_lock(anew if anew.exists() else lock_path(board))


def build_diskless(
    board: Board, lock: Lock, out: Path, wanted: Diskless, signer: Signer, cache: Cache
) -> DisklessStart:
    """Make the boot image for the board built in `out`, whose lock is `lock`: the same inputs give the same bytes.

    Raises ErofsEdgeError if there is no suitable build, as `fetch` does, SourceError if a package lacks something,
    UsageError if TLS lacks its certificates, ManifestError as `netboot_script` does.
    """
    uefi = board.boot.uefi
    script = "" if uefi is not None else netboot_script(board, wanted.boot_image)
    values = _values(board, out, wanted)
    load_system(MANIFEST)  # a lock without its manifest cannot be checked
    of_programs = load_lock(lock_path(MANIFEST))
    programs = FileTree() if uefi is None else programs_of(lock, cache)
    programs.merge(merged_tree(fetch(of_programs.packages["system"], host_mirror, cache), cache))
    (kernel_deb,) = fetch(lock.packages["kernel"], host_mirror, cache).values()
    package = read_deb(kernel_deb, cache).data
    kernel = KernelModules(package)
    epoch = max(lock.date, of_programs.date)
    tree, late = base_tree(programs, _streams(board, kernel, wanted)), _late(values, wanted)
    _add_programs(tree, programs, wanted)
    if uefi is not None:
        add_signature(tree, late, programs, out)
    initramfs = compress(write_cpio(tree, epoch=epoch), write_cpio(late, epoch=epoch), pack=cached_pack(cache))
    root_hash, keeps_data = values["ROOT_HASH"], bool(values["DATA"])
    start = Start(package, kernel.version, initramfs, bytes.fromhex(root_hash))
    if uefi is not None:
        image = firmware_image(board, uefi, lock, out, start, signer=signer, cache=cache)
        return DisklessStart(image, EFI, "", root_hash, keeps_data)
    fit = _fit(board, start, epoch=epoch, signer=signer)
    return DisklessStart(fit, FIT, script, root_hash, keeps_data)


def _fit(board: Board, start: Start, *, epoch: int, signer: Signer) -> bytes:
    smaller = msgspec.structs.replace(board, boot=msgspec.structs.replace(board.boot, kernel_compression="lz4"))
    return build_fit(
        fit_images(smaller, start, "diskless initramfs"),
        description=f"{board.board} diskless, Linux {start.version}",
        epoch=epoch,
        signer=signer,
        load_address=board.boot.load_address,
        rollback_index=board.sign.rollback_index,
    )


def netboot_script(board: Board, boot_image: Place | None = None) -> str:
    """U-Boot's commands: get an address by DHCP and the boot image from a web server, or else as FIT by TFTP, and start
    it if its signature is valid; repeat if anything fails.

    Raises ManifestError for a board whose boot chain verifies nothing: it must not run code from a network.
    """
    if board.boot.chain != "u-boot-fit":
        raise ManifestError(
            f"board '{board.board}' does not start from a verified FIT of U-Boot", hint="set boot: {chain: u-boot-fit}"
        )
    where = f"{board.boot.load_address:x}#{CONFIGURATION}"
    start = f"bootm {where} {where} ${{fdtcontroladdr}}" if board.boot.fdt == "control" else f"bootm {where}"
    arguments = " ".join(board.boot.cmdline)
    return "\n".join(
        [
            *(["virtio scan"] if board.boot.storage == "virtio" else []),
            "while true; do",
            f"if {ADDRESS} && {_transfer(boot_image, f'{board.boot.load_address:x}')}; then",
            f'setenv bootargs "{arguments}"',
            'echo "erofs-edge: stage u-boot slot none"',
            start,
            'echo "erofs-edge: slot does not start: none"',
            "fi",
            "sleep 5",
            "done",
            "",
        ]
    )


def _transfer(boot_image: Place | None, address: str) -> str:
    """U-Boot's commands that load the boot image. Its wget has the server's port from a variable (net/wget.c)."""
    if boot_image is None:
        return f"tftpboot {address} {FIT}"
    return f"setenv httpdstp {boot_image.port} && wget {address} {boot_image.host}:{boot_image.export}"


def _check_tls(wanted: Diskless) -> None:
    """Raises UsageError if certificates are missing or not used."""
    schemes = {place.scheme for place in (wanted.system, wanted.data) if isinstance(place, Place)}
    if schemes & {"nbds", "https"}:
        if "ca-cert.pem" not in wanted.certificates:
            raise UsageError("TLS needs the certificate that the server is checked with", hint="add --tls-ca PEM")
        if "client-cert.pem" in wanted.certificates and "nbds" not in schemes:
            raise UsageError("--tls-certificate is for nbds:// only: a board sends web servers no certificate")
    elif wanted.certificates:
        raise UsageError(
            "certificates are for encrypted connections", hint="--system nbds://ADDRESS/EXPORT or https://ADDRESS/PATH"
        )


def _values(board: Board, out: Path, wanted: Diskless) -> dict[str, str]:
    """The init script's values: those of the board's own boot image, except for where system and data are."""
    if board.boot.uefi is None:
        values = _fit_values(out)
    else:
        values = firmware_values(out)
        if wanted.keep:
            raise UsageError(
                "--keep works on boards with U-Boot only: on others the kernel requires a signature for each mapping"
            )
        if wanted.boot_image is not None:
            raise UsageError("--boot-image is for U-Boot only: UEFI firmware learns from DHCP where its boot image is")
    if not {"SYSTEM", "SLOTS"} <= values.keys() or not _ROOT_HASH.fullmatch(values.get("ROOT_HASH", "")):
        raise FormatError("the boot image of this build names no system", where=str(out), hint="build again")
    _check_tls(wanted)
    label = next((name for name, one in board.disk.partitions.items() if one.filesystem is not None), "data")
    # the kernel's own cache holds what was read of files: this one is for blocks fetched in advance. nbdkit's filter
    # 'cache' is not suitable: it holds a lock while it waits for the network, so even cached data is unavailable while
    # something is fetched ahead. 'cow' keeps what is read as long as the script lets that file be
    filters = ["--filter=cow"] if wanted.prefetch else []
    keep = ["cow-on-read=/run/ahead", "cow-block-size=4096"] if wanted.prefetch else []
    kept = _kept_label(values)
    values |= {
        "SLOTS": "",
        "STATE": "",
        "DATA": "" if wanted.data == "memory" else label,
        "DATA_FROM": " ".join(wanted.data.arguments) if isinstance(wanted.data, Place) else "",
        # its last word is the export's name: see place.py
        "DATA_ID": "mac" if isinstance(wanted.data, Place) and wanted.data.export.endswith("/") else "",
        "SYSTEM_FILTERS": " ".join([*filters, "--filter=retry"]),
        "SYSTEM_FROM": " ".join([*wanted.system.arguments, *FOREVER, *keep]),
        "KEEP": kept if wanted.keep else "",
        # nbdkit's curl plugin does not promise that connections see each other's writes, so the kernel uses one then
        "CONNECTIONS": str(wanted.connections if wanted.system.plugin == "nbd" else 1),
        "READAHEAD": str(wanted.readahead),
        "VERITY_MODULE": " ".join([values.get("VERITY_MODULE", ""), f"prefetch_cluster={HASHES_AHEAD}"]).strip(),
    }
    return values


def _fit_values(out: Path) -> dict[str, str]:
    path = out / "boot.fit"
    try:
        return init_values(path.read_bytes())
    except FormatError as error:
        place_within(error, path)
        raise
    except OSError as error:
        raise ErofsEdgeError(
            f"no boot image here: {error.strerror}", where=str(path), hint=f"erofs-edge build BOARD -o {out}"
        ) from error


def _kept_label(values: Mapping[str, str]) -> str:
    """Label of the partition that stores the system, on a board that has one."""
    first = values["SLOTS"].split()[:1]
    return "_".join([values["SYSTEM"], *first])


def _late(values: Mapping[str, str], wanted: Diskless) -> FileTree:
    late = FileTree()
    late.add("config", _file("".join(f"{name}='{value}'\n" for name, value in values.items()).encode(), 0o644))
    late.add("prefetch", _file("".join(f"{first} {count}\n" for first, count in wanted.prefetch).encode(), 0o644))
    if wanted.certificates:
        late.directory("tls")
        for name, data in sorted(wanted.certificates.items()):
            late.add(f"tls/{name}", _file(data, 0o600))
    return late


def _add_programs(tree: FileTree, programs: FileTree, wanted: Diskless) -> None:
    for place, (name, mode) in (SCRIPTS | (KEEPING if wanted.keep else {})).items():
        tree.add(place, _file((FOLDER / name).read_bytes(), mode))
    for applet in APPLETS:
        if tree.get(f"bin/{applet}") is None:
            tree.add(f"bin/{applet}", Inode(stat.S_IFLNK | 0o777, target=b"busybox"))
    for path in ("usr/bin/nbdkit", "usr/sbin/nbd-client"):
        add_program(tree, programs, path)
    for plugin in sorted({place.plugin for place in (wanted.system, wanted.data) if isinstance(place, Place)}):
        add_plugin(tree, programs, f"{NBDKIT}/plugins/nbdkit-{plugin}-plugin.so")
    for name in ["retry", *(["cow"] if wanted.prefetch else [])]:
        add_plugin(tree, programs, f"{NBDKIT}/filters/nbdkit-{name}-filter.so")


def _streams(board: Board, kernel: KernelModules, wanted: Diskless) -> dict[str, list[Module]]:
    of_system = kernel.select(board.boot.system_modules)
    network = [name for name in of_system if kernel.paths[name].startswith(NETWORK_PATH)]
    first: Iterable[str] = kernel.select([*board.boot.modules, *network, *NETWORK, "nbd", *VERITY_MODULES])
    if wanted.data == "disk" or wanted.keep:
        first = [*kernel.select(STORAGE_MODULES[board.boot.storage]), *first]
    disk, erofs, data = kernel.streams(first, EROFS_MODULES, DATA_MODULES)
    return {"disk": disk, "erofs": erofs, "data": data}


def _file(data: bytes, mode: int) -> Inode:
    return Inode(stat.S_IFREG | mode, content=BytesContent(data))
