# SPDX-License-Identifier: Apache-2.0
"""A board with UEFI firmware in miniature: packages with stand-ins for its programs, and its EFI system partition."""

from __future__ import annotations

import stat
import struct
from pathlib import Path

from pe_sample import pe_file

from erofs_edge.boot.cpio import write_cpio
from erofs_edge.boot.initramfs import compress
from erofs_edge.boot.uefi import UefiOutputs, UefiParts, build_uefi
from erofs_edge.boot.uefi_vars import STORE
from erofs_edge.disk.fat import build_fat
from erofs_edge.manifest.model import Board, Boot, Disk, PackageFile, Partition, Qemu, Sign, Uefi
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.trust.certificate import Certificate, self_signed
from erofs_edge.trust.key import Signer

EPOCH = 1_700_000_000
ROOT_HASH = "d47b0f0a57c52bda6b5d2c548d0390cdf0f33446fa374beac7326eadb6a4f58c"
ESP_SIZE = 8 << 20
BOARD = Board(
    board="lab-uefi",
    disk=Disk(
        size="32M",
        partitions={
            "esp": Partition(size="8M", content="esp"),
            "system": Partition(size="1M", slots=["a", "b"], content="/lab.yaml"),
            "misc": Partition(size="1M", content="slot-state"),
            "data": Partition(size="rest", filesystem="ext4"),
        },
    ),
    boot=Boot(
        chain="uefi-uki",
        uefi=Uefi(
            loader=PackageFile(package="boot", path="/loader.efi"),
            stub=PackageFile(package="boot", path="/stub.efi"),
            code=PackageFile(package="firmware", path="/code.fd"),
            variables=PackageFile(package="firmware", path="/vars.fd"),
        ),
        cmdline=["console=ttyAMA0", "panic=-1"],
    ),
    sign=Sign(rollback_index=7),
    qemu=Qemu(),
)


def blank_store(size: int = 16384) -> bytes:
    """A store as EDK2 lays a blank one out (ArmVirtPkg/VarStore.fdf.inc): volume header, store header, 0xff."""
    volume = (bytes(32) + struct.pack("<Q4sIHHHxB", 72 + size, b"_FVH", 0x4FEFF, 72, 0, 0, 2)).ljust(72, b"\0")
    return volume + STORE.bytes_le + struct.pack("<IBB6x", size, 0x5A, 0xFE) + b"\xff" * (size - 28) + bytes(512)


def tree(**files: bytes) -> FileTree:
    """A package: name_ext → content."""
    made = FileTree()
    for name, data in files.items():
        made.add(name.replace("_", "."), Inode(stat.S_IFREG | 0o644, content=BytesContent(data)))
    return made


def initramfs(**changes: str) -> bytes:
    """One that holds nothing but its values."""
    values = {
        "ROOT_HASH": ROOT_HASH, "SALT": "-", "BLOCK_SIZE": "4096", "DATA_BLOCKS": "2", "HASH_START": "3",
        "CMDLINE": "console=ttyAMA0 panic=-1", "ROLLBACK_INDEX": "7", "SYSTEM": "system", "SLOTS": "a b",
        "DATA": "data",
    } | changes  # fmt: skip
    config = "".join(f"{name}='{value}'\n" for name, value in values.items()).encode()
    return compress(write_cpio(tree(config=config), epoch=0))


def outputs(signer: Signer, archive: bytes | None = None, *, certificate: Certificate | None = None) -> UefiOutputs:
    """What a build makes of stand-ins."""
    packages = {
        "boot": tree(loader_efi=pe_file({".text": b"loader" * 900}), stub_efi=pe_file({".text": b"stub" * 900})),
        "firmware": tree(code_fd=b"code" + bytes(4096), vars_fd=blank_store()),
    }
    kernel = pe_file({".text": bytes(range(256)) * 300})
    parts = UefiParts(kernel, "6.12", archive or initramfs(), "edge", ["a", "b"])
    return build_uefi(
        BOARD, packages, parts, signer=signer, certificate=certificate or self_signed(signer, EPOCH), epoch=EPOCH
    )


def write_esp(path: Path, files: dict[str, bytes]) -> bytes:
    """An EFI system partition with these files."""
    build_fat(files, path, size=ESP_SIZE, label="ESP", serial=1, epoch=EPOCH)
    return path.read_bytes()
