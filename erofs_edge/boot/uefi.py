# SPDX-License-Identifier: Apache-2.0
"""The boot files of a board with UEFI firmware: systemd-boot and one unified kernel image per slot, all signed.

Firmware starts only what a certificate in its `db` has signed: systemd-boot, the kernel image that it chooses, and the
kernel inside. Each image contains the initramfs with the root hash and its PKCS#7 signature, which the kernel checks
with the same certificate. The names decide which slot starts: systemd-boot takes the highest number with attempts left
('+3' in the name; systemd ``src/boot/boot.c``, the UAPI group's "Boot Loader Specification", boot counting).
"""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from erofs_edge.boot.firmware import package_file
from erofs_edge.boot.uefi_vars import fill_store, secure_boot
from erofs_edge.boot.uki import build_uki
from erofs_edge.disk.slots import ATTEMPTS
from erofs_edge.errors import FormatError, ManifestError, UsageError
from erofs_edge.manifest.model import Board
from erofs_edge.tree import FileTree
from erofs_edge.trust.authenticode import sign_image
from erofs_edge.trust.certificate import Certificate
from erofs_edge.trust.key import Signer
from erofs_edge.trust.offline import SignaturesMissingError

LOADER_PATH = "EFI/BOOT/BOOTAA64.EFI"
"""where firmware looks on a disk without further configuration (UEFI 2.10 section 3.5.1.1)"""
IMAGES = "EFI/Linux"
LOADER, CODE, VARIABLES = "systemd-boot.efi", "uefi-code.fd", "uefi-vars.fd"
"""names of a build's outputs, beside boot_SLOT.efi"""
FLASH_SIZE = 64 << 20
"""bytes of each flash of the emulated machine (QEMU hw/arm/virt.c)"""
SLOT_ARGUMENT = "erofs_edge.slot="
_NAME = re.compile(r"erofs-edge-(?P<rank>\d{1,9})-(?P<slot>[a-z0-9]+)(?:\+(?P<left>\d+)(?:-(?P<done>\d+))?)?\.efi")


@dataclass(frozen=True, slots=True)
class UefiOutputs:
    """What a board boots from.

    firmware_files  path → bytes for the EFI system partition
    code, variables  the emulated machine's firmware and its variables with our keys, without trailing zeros
    kernel_version  as in /usr/lib/modules/VERSION
    """

    firmware_files: dict[str, bytes]
    code: bytes
    variables: bytes
    kernel_version: str

    def outputs(self) -> dict[str, bytes]:
        """What a build leaves beside the disk: each signed file under its own name, and the machine's firmware."""
        found = {CODE: self.code, VARIABLES: self.variables}
        for path, data in self.firmware_files.items():
            name = parse_name(path.rpartition("/")[2])
            found[LOADER if name is None else f"boot_{name.slot}.efi"] = data
        return found


@dataclass(frozen=True, slots=True)
class ImageName:
    """The name of a slot's kernel image. `rank`: the highest starts first. `left`: attempts left, None for a good
    slot.
    """

    slot: str
    rank: int
    left: int | None = None
    done: int = 0

    def __str__(self) -> str:
        counter = "" if self.left is None else f"+{self.left}" + (f"-{self.done}" if self.done else "")
        return f"erofs-edge-{self.rank}-{self.slot}{counter}.efi"


def parse_name(name: str) -> ImageName | None:
    """Parse a name made by `ImageName`, also in FAT's upper case; None for any other name."""
    found = _NAME.fullmatch(name.lower())
    if found is None:
        return None
    left = int(found["left"]) if found["left"] else None
    return ImageName(found["slot"], int(found["rank"]), left, int(found["done"] or 0))


def choose(names: Sequence[ImageName]) -> ImageName:
    """The image that systemd-boot starts. Raises FormatError if there is none."""
    if not names:
        raise FormatError(f"no kernel image of ours in {IMAGES}")
    return max(names, key=lambda name: (name.left != 0, name.rank))


def activated(names: Sequence[ImageName], slot: str) -> dict[ImageName, ImageName]:
    """Old name → new name that makes a slot start next with all its attempts. Raises UsageError if the slot has no
    image.
    """
    found = next((name for name in names if name.slot == slot), None)
    if found is None:
        raise UsageError(f"no kernel image of slot '{slot}'", hint=f"slots: {', '.join(n.slot for n in names)}")
    highest = max((name.rank for name in names if name is not found), default=-1)
    rank = max(found.rank, highest + 1)
    return {found: ImageName(slot, rank, ATTEMPTS)}


@dataclass(frozen=True, slots=True)
class UefiParts:
    """What the images are made of: programs from packages, and files made for this build.

    kernel     Debian's vmlinuz, itself a PE file
    initramfs  the archive, which contains the root hash and its signature
    """

    kernel: bytes
    kernel_version: str
    initramfs: bytes
    system: str
    slots: Sequence[str]


def build_uefi(
    board: Board,
    packages: Mapping[str, FileTree],
    parts: UefiParts,
    *,
    signer: Signer,
    certificate: Certificate,
    epoch: int,
) -> UefiOutputs:
    """Make everything that runs before the system partition is opened, signed.

    Raises ManifestError if the board has no `uefi` section, SourceError if a package lacks a file, FormatError if one
    is not a PE file or variable store, ErofsEdgeError if the signer fails.
    """
    uefi = board.boot.uefi
    if uefi is None:
        raise ManifestError(f"board '{board.board}' has no boot.uefi section", hint="chain uefi-uki needs one")
    stub = package_file(packages, uefi.stub)
    sign = functools.partial(_sign_all, signer=signer, certificate=certificate)
    # U-Boot as UEFI firmware requires a signature on the inner kernel, too
    kernel, loader = sign([parts.kernel, package_file(packages, uefi.loader)])
    images = {}
    for number, slot in enumerate(parts.slots):
        sections = {
            ".osrel": _os_release(board, parts, slot),
            ".cmdline": " ".join([*arguments(board), SLOT_ARGUMENT + slot]).encode(),
            ".uname": parts.kernel_version.encode(),
            ".initrd": _ended(parts.initramfs),
            ".linux": kernel,
        }
        name = ImageName(slot, len(parts.slots) - number, ATTEMPTS)
        images[f"{IMAGES}/{name}"] = build_uki(stub, sections)
    files = {LOADER_PATH: loader} | dict(zip(images, sign(list(images.values())), strict=True))
    owner = uuid.UUID(bytes=bytes.fromhex(certificate.fingerprint)[:16])
    blank = package_file(packages, uefi.variables)
    variables = fill_store(blank, secure_boot(owner, certificate.der, [certificate.der]), epoch=epoch)
    return UefiOutputs(
        files, package_file(packages, uefi.code).rstrip(b"\0"), variables.rstrip(b"\0"), parts.kernel_version
    )  # fmt: skip


def single_image(
    stub: bytes,
    parts: Mapping[str, bytes],
    *,
    title: str,
    cmdline: str,
    version: str,
    signer: Signer,
    certificate: Certificate,
) -> bytes:
    """Make a kernel image that firmware starts directly, without systemd-boot, and that belongs to no slot. It is
    signed, and so is the kernel in it.

    parts    'kernel' (Debian's vmlinuz) and 'initramfs'
    version  of the kernel

    Raises FormatError if the stub or kernel is not a PE file, ErofsEdgeError if the signer fails.
    """
    sections = {
        ".osrel": f'ID=erofs-edge\nPRETTY_NAME="{title}"\n'.encode(),
        ".cmdline": cmdline.encode(),
        ".uname": version.encode(),
        ".initrd": _ended(parts["initramfs"]),
        ".linux": sign_image(parts["kernel"], signer, certificate),
    }
    return sign_image(build_uki(stub, sections), signer, certificate)


def _ended(initramfs: bytes) -> bytes:
    """Append a zero length: LZ4's legacy frame has no other end mark, and the stub appends more data."""
    return initramfs + bytes(4 + -len(initramfs) % 4)


def _sign_all(images: Sequence[bytes], *, signer: Signer, certificate: Certificate) -> list[bytes]:
    """Sign each PE file. With an offline key, all digests are requested before the first missing signature is
    reported.
    """
    done, missing = [], list[SignaturesMissingError]()
    for image in images:
        try:
            done.append(sign_image(image, signer, certificate))
        except SignaturesMissingError as error:
            missing.append(error)
    if missing:
        raise missing[0]
    return done


def arguments(board: Board) -> list[str]:
    """The kernel's arguments, separated by spaces, without the slot's."""
    return [word for argument in board.boot.cmdline for word in argument.split()]


def _os_release(board: Board, parts: UefiParts, slot: str) -> bytes:
    """What systemd-boot shows; without a version, so that only the names decide which slot goes first."""
    return (f'ID=erofs-edge\nIMAGE_ID=erofs-edge\nPRETTY_NAME="{board.board}, {parts.system}, slot {slot}"\n').encode()
