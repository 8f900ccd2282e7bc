# SPDX-License-Identifier: Apache-2.0
"""An installer medium for a board with UEFI firmware: one signed image that firmware starts, and a verified payload.

Firmware checks the image's signature by the key in its db; the image contains the root hash of the payload; dm-verity
checks each block of the payload as it is read. So someone who can write the medium can make it fail, and nothing else.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.boot.assemble import EROFS_MODULES, STORAGE_MODULES, VERITY_MODULES, kernel_of, vmlinuz
from erofs_edge.boot.cpio import write_cpio
from erofs_edge.boot.firmware import package_file
from erofs_edge.boot.initramfs import base_tree, compress
from erofs_edge.boot.modules import KernelModules
from erofs_edge.boot.packed import cached_pack
from erofs_edge.boot.uefi import LOADER_PATH, arguments, single_image
from erofs_edge.disk import gpt
from erofs_edge.disk.fat import build_fat
from erofs_edge.disk.layout import DiskLayout, Placement, write_disk
from erofs_edge.errors import ErofsEdgeError, ManifestError
from erofs_edge.installer.payload import MIB, Piece, write_payload
from erofs_edge.manifest.model import Board, Lock, Uefi
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import merged_tree, trees_of
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.trust.certificate import Certificate, load_certificate
from erofs_edge.trust.signer import Signer
from erofs_edge.verity.tree import VerityInfo
from erofs_edge.writing import folder_beside

LABEL = "erofs-edge-installer"
USB_MODULES = ("xhci_pci", "usb_storage", "uas", "sd_mod")
"""for the medium itself: a USB stick"""
APPLETS = ("poweroff", "sha256sum")
CERTIFICATE = "sign.crt"
"""as in build/signing.py"""


@dataclass(frozen=True, slots=True)
class Medium:
    """What was written.

    size       bytes of the medium
    installed  bytes that it writes to a disk and reads back
    disk_size  bytes that the disk must have at least
    root_hash  of the payload, in hex
    """

    path: Path
    size: int
    installed: int
    disk_size: int
    root_hash: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """disk: the kernel's name of the disk to install on ('nvme0n1'), '' for the only candidate; overwrite: accept one
    that is not blank."""

    disk: str = ""
    overwrite: bool = False


def make_medium(
    board: Board, lock: Lock, out: Path, path: Path, wanted: Wanted, signer: Signer, cache: Cache
) -> Medium:
    """Write the medium that installs the build of `board` in `out`: the same inputs give the same bytes.

    Raises ManifestError for a board without UEFI firmware, ErofsEdgeError if there is no build, as `fetch` does,
    SourceError if a package lacks something, CapacityError if there is no space.
    """
    uefi = board.boot.uefi
    if uefi is None:
        raise ManifestError(
            f"board '{board.board}' has no UEFI firmware that could start a medium",
            hint="boards with U-Boot can be flashed over the network instead: erofs-edge provision BOARD",
        )
    image = out / "disk.img"
    if not image.is_file():
        raise ErofsEdgeError("no disk.img here", where=str(out), hint=f"erofs-edge build BOARD -o {out}")
    disk_size = image.stat().st_size
    with _folder_beside(path) as folder:
        payload, esp = folder / "payload", folder / "esp"
        pieces, verity = write_payload(image, payload, epoch=lock.date, sector=board.disk.sector)
        values = _values(board, verity, disk_size, wanted)
        start = _start_image(board, uefi, lock, values, signer, out, cache)
        serial = int.from_bytes(verity.root_hash[:4], "big")
        build_fat(
            {LOADER_PATH: start},
            esp,
            size=_whole(len(start) + 4 * MIB),
            label="INSTALLER",
            serial=serial,
            epoch=lock.date,
        )
        write_disk(_layout(esp, payload, verity.root_hash), path)
    return Medium(path, path.stat().st_size, _sum(pieces), disk_size, verity.root_hash.hex())


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A folder for what goes into `path`. Raises ErofsEdgeError if nothing can be written there."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(folder_beside(path))
        except OSError as error:
            raise ErofsEdgeError(f"cannot write: {error.strerror}", where=str(path)) from error
        yield folder


def _certificate(path: Path, name: str) -> Certificate:
    try:
        return load_certificate(path.read_bytes(), name)
    except OSError as error:
        raise ErofsEdgeError(
            f"cannot read the build's certificate: {error.strerror}", where=str(path), hint="build again"
        ) from error


def _sum(pieces: list[Piece]) -> int:
    return sum(piece.count for piece in pieces) * MIB


def _whole(size: int) -> int:
    return -(-size // MIB) * MIB


def _values(board: Board, verity: VerityInfo, disk_size: int, wanted: Wanted) -> dict[str, object]:
    """The script's values; none but the title needs quoting."""
    return {
        "TITLE": board.board,
        "ROOT_HASH": verity.root_hash.hex(),
        "SALT": verity.salt.hex() or "-",
        "BLOCK_SIZE": verity.block_size,
        "DATA_BLOCKS": verity.data_blocks,
        "HASH_START": verity.hash_start_block,
        "SECTORS": verity.data_blocks * verity.block_size // 512,
        "LABEL": LABEL,
        "MEBIBYTES": disk_size // MIB,
        "DISK": wanted.disk,
        "OVERWRITE": "yes" if wanted.overwrite else "",
    }


def _start_image(
    board: Board, uefi: Uefi, lock: Lock, values: Mapping[str, object], signer: Signer, out: Path, cache: Cache
) -> bytes:
    """The signed kernel image that firmware starts from the medium."""
    (kernel_deb,) = fetch(lock.packages["kernel"], host_mirror, cache).values()
    kernel = kernel_of(kernel_deb, cache)
    programs = merged_tree(fetch(lock.packages["initramfs"], host_mirror, cache), cache)
    firmware = trees_of(fetch(lock.packages["firmware"], host_mirror, cache), cache)
    tree, late = _initramfs(board, kernel, programs), FileTree()
    text = "".join(f"{name}='{value}'\n" for name, value in values.items())
    late.add("config", Inode(stat.S_IFREG | 0o644, content=BytesContent(text.encode())))
    initramfs = compress(write_cpio(tree, epoch=lock.date), write_cpio(late, epoch=lock.date), pack=cached_pack(cache))
    return single_image(
        package_file(firmware, uefi.stub),
        {"kernel": vmlinuz(kernel.tree, kernel.version), "initramfs": initramfs},
        title=f"{board.board}, installer",
        cmdline=" ".join(arguments(board)),
        version=kernel.version,
        signer=signer,
        certificate=_certificate(out / CERTIFICATE, signer.name),
    )


def _initramfs(board: Board, kernel: KernelModules, programs: FileTree) -> FileTree:
    storage = [*STORAGE_MODULES[board.boot.storage], *board.boot.modules, *USB_MODULES]
    disk, erofs = kernel.streams(kernel.select([*storage, *VERITY_MODULES]), kernel.select(EROFS_MODULES))
    tree = base_tree(programs, {"1": disk, "2": erofs})
    tree.remove("init")
    script = Path(__file__).with_name("install.sh").read_bytes()
    tree.add("init", Inode(stat.S_IFREG | 0o755, content=BytesContent(script)))
    tree.directory("payload")
    for name in APPLETS:
        tree.add(f"bin/{name}", Inode(stat.S_IFLNK | 0o777, target=b"busybox"))
    return tree


def _layout(esp: Path, payload: Path, root_hash: bytes) -> DiskLayout:
    """Two partitions: what firmware reads, and the payload."""
    seed = hashlib.sha256(b"erofs-edge installer" + root_hash).digest()
    placements, entries, start = [], [], MIB
    for name, kind, content in (("esp", gpt.TYPE_ESP, esp), (LABEL, gpt.TYPE_LINUX, payload)):
        size = _whole(content.stat().st_size)
        placements.append(Placement(name, start, size, content))
        entries.append(gpt.Partition(name, kind, gpt.guid_from(seed, name), start // 512, (start + size) // 512 - 1))
        start += size
    table = gpt.Table(gpt.guid_from(seed, ""), (start + MIB) // 512, tuple(entries))
    return DiskLayout(start + MIB, table, tuple(placements))
