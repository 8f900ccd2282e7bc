# SPDX-License-Identifier: Apache-2.0
"""Boot a diskless board with UEFI firmware: one signed kernel image, which its firmware loads over the network.

The firmware's own network boot (DHCP, then TFTP or HTTP; UEFI 2.10 section 24.3) loads it, and starts it if a
certificate in `db` has signed it. The kernel checks the signature of the root hash with the same certificate.
"""

from __future__ import annotations

import stat
from pathlib import Path

from erofs_edge.boot.assemble import Start, vmlinuz
from erofs_edge.boot.contents import init_values_of
from erofs_edge.boot.firmware import package_file
from erofs_edge.boot.initramfs import add_program
from erofs_edge.boot.uefi import arguments, single_image
from erofs_edge.errors import ErofsEdgeError, FormatError, place_within
from erofs_edge.manifest.model import Board, Lock, Uefi
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import merged_tree, trees_of
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.trust.certificate import load_certificate
from erofs_edge.trust.measure import uki_sections
from erofs_edge.trust.signer import Signer

EFI = "diskless.efi"
CERTIFICATE, SIGNATURE = "sign.crt", "system.root-hash.p7s"
"""outputs of a build"""


def firmware_values(out: Path) -> dict[str, str]:
    """The init script's values in a kernel image of the build in `out`: except for the slot, all images have the same.

    Raises ErofsEdgeError if there is none, FormatError for a damaged one.
    """
    first = next(iter(sorted(out.glob("boot_*.efi"))), out / "boot_a.efi")
    try:
        return init_values_of(uki_sections(_read(first)).get(".initrd", b""))
    except FormatError as error:
        place_within(error, first)
        raise


def programs_of(lock: Lock, cache: Cache) -> FileTree:
    """The packages that the initramfs of the board's own images is made of."""
    return merged_tree(fetch(lock.packages["initramfs"], host_mirror, cache), cache)


def add_signature(tree: FileTree, late: FileTree, programs: FileTree, out: Path) -> None:
    """Add to the initramfs the signature of the root hash, and what passes it to the kernel."""
    add_program(tree, programs, "usr/bin/keyctl")
    late.add("root-hash.p7s", Inode(stat.S_IFREG | 0o644, content=BytesContent(_read(out / SIGNATURE))))


def firmware_image(
    board: Board, uefi: Uefi, lock: Lock, out: Path, start: Start, *, signer: Signer, cache: Cache
) -> bytes:
    """The signed kernel image.

    Raises ErofsEdgeError if the build has no certificate, SourceError if a package lacks the stub.
    """
    packages = trees_of(fetch(lock.packages["firmware"], host_mirror, cache), cache)
    return single_image(
        package_file(packages, uefi.stub),
        {"kernel": vmlinuz(start.tree, start.version), "initramfs": start.initramfs},
        title=f"{board.board}, diskless",
        cmdline=" ".join(arguments(board)),
        version=start.version,
        signer=signer,
        certificate=load_certificate(_read(out / CERTIFICATE), signer.name),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ErofsEdgeError(
            f"the build has no such file: {error.strerror}",
            where=str(path),
            hint=f"erofs-edge build BOARD -o {path.parent}",
        ) from error
