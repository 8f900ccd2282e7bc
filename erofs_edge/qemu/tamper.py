# SPDX-License-Identifier: Apache-2.0
"""Scenarios of damage and forgeries that a board must not boot, and of damage that it must repair.

A scenario says which bytes of a copy of the disk change (`forge.py` makes them), and where and why the boot must then
stop. Every slot is changed alike, so that booting another slot cannot hide that the change was detected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from erofs_edge.errors import UsageError
from erofs_edge.manifest.model import CONTENT_WORDS, Board
from erofs_edge.qemu import forge, forge_vbmeta, uefi_forge
from erofs_edge.qemu.forge import Change, Target
from erofs_edge.qemu.verdict import Stop


@dataclass(frozen=True, slots=True)
class Tamper:
    """A scenario.

    content   which partitions change: 'fit', 'slot-state', 'vbmeta', or 'system' for those with a manifest's tree; ''
              for none
    changes   what is written to one of these partitions
    stop      where this must stop the boot; None if error correction must repair it
    script    changes the boot script, as if U-Boot itself had been changed
    """

    title: str
    content: str
    changes: Callable[[Target], list[Change]]
    stop: Stop | None
    script: Callable[[str], str] | None = None


HASH, SIGNATURE = Stop("fit", "fit-hash"), Stop("fit", "fit-signature")
BLOCK, VBMETA = Stop("verity", "corrupt"), Stop("verity", "vbmeta")

TAMPERS = {
    "system": Tamper("a flipped bit that only dm-verity minds", "system", forge.in_first_block, BLOCK),
    "fit": Tamper("a flipped bit in the kernel", "fit", forge.in_image("kernel"), HASH),
    "kernel": Tamper("a flipped bit in the kernel", "fit", forge.in_image("kernel"), HASH),
    "initramfs": Tamper("a flipped bit in the initramfs", "fit", forge.in_image("ramdisk"), HASH),
    "dtb": Tamper("another device tree, hashed but not signed", "fit", forge.device_tree, SIGNATURE),
    "signature": Tamper("a flipped bit in the FIT's signature", "fit", forge.in_signature, SIGNATURE),
    "cmdline": Tamper(
        "one more argument for the kernel", "", forge.nothing, Stop("initramfs", "cmdline"), script=forge.add_argument
    ),
    "roothash": Tamper("another root hash in the initramfs, hashed but not signed", "fit", forge.root_hash, SIGNATURE),
    "wrong-key": Tamper("the FIT signed by another key of the same name", "fit", forge.other_key, SIGNATURE),
    "unsigned": Tamper("the FIT without its signature", "fit", forge.unsigned, SIGNATURE),
    "truncated": Tamper("the FIT cut off in the middle", "fit", forge.truncated, Stop("fit", "fit-malformed")),
    "downgrade": Tamper(
        "a FIT older than the minimum that the disk has recorded", "slot-state", forge.raise_minimum,
        Stop("fit", "too-old"),
    ),
    "downgrade-unseen": Tamper(
        "the same, and a boot script that compares no versions", "slot-state", forge.raise_minimum,
        Stop("verity", "too-old"), script=forge.trust_any_version,
    ),
    "superblock": Tamper("a flipped bit in the EROFS superblock", "system", forge.in_superblock, BLOCK),
    "tree": Tamper("a flipped bit at the top of the hash tree", "system", forge.in_hash_tree, BLOCK),
    "data": Tamper(
        "a flipped bit in the first block of /sbin/init", "system", forge.in_init, Stop("report", "corrupt")
    ),
    "mix-and-match": Tamper("a whole system of another build", "system", forge.other_system, BLOCK),
    "vbmeta": Tamper(
        "another digest in the vbmeta, hashed but not signed", "vbmeta", forge_vbmeta.descriptor, VBMETA
    ),
    "vbmeta-header": Tamper(
        "a vbmeta that switches verification off, hashed but not signed", "vbmeta", forge_vbmeta.switched_off, VBMETA
    ),
    "vbmeta-signature": Tamper(
        "a flipped bit in the vbmeta's signature", "vbmeta", forge_vbmeta.in_signature, VBMETA
    ),
    "vbmeta-key": Tamper("the vbmeta signed by another key", "vbmeta", forge_vbmeta.other_key, VBMETA),
    "fec": Tamper("damage that error correction repairs", "system", forge.repairable, None),
}  # fmt: skip

REFUSED = Stop("fit", "efi-refused")
UEFI_TAMPERS = {
    **{
        name: one
        for name, one in TAMPERS.items()
        if one.content in ("system", "slot-state", "vbmeta") and one.script is None
    },
    "kernel": Tamper(
        "a flipped bit in the kernel", "esp", uefi_forge.images(uefi_forge.in_section(".linux"), "the kernel"), REFUSED
    ),
    "initramfs": Tamper(
        "a flipped bit in the initramfs",
        "esp",
        uefi_forge.images(uefi_forge.in_section(".initrd"), "the initramfs"),
        REFUSED,
    ),
    "cmdline": Tamper(
        "one more argument for the kernel", "esp", uefi_forge.images(uefi_forge.add_argument, "the arguments"), REFUSED
    ),
    "roothash": Tamper(
        "another root hash in the initramfs", "esp", uefi_forge.images(uefi_forge.root_hash, "the root hash"), REFUSED
    ),
    "signature": Tamper(
        "a flipped bit in the signature", "esp", uefi_forge.images(uefi_forge.in_signature, "the signature"), REFUSED
    ),
    "wrong-key": Tamper(
        "the kernel images signed by another key of the same name",
        "esp",
        uefi_forge.images(uefi_forge.other_key, "the signature"),
        REFUSED,
    ),
    "unsigned": Tamper(
        "the kernel images without their signature",
        "esp",
        uefi_forge.images(uefi_forge.without_signature, "the signature"),
        REFUSED,
    ),
    "truncated": Tamper(
        "the kernel images cut off in the middle",
        "esp",
        uefi_forge.images(uefi_forge.cut_off, "the second half"),
        REFUSED,
    ),
    "loader": Tamper("a flipped bit in systemd-boot", "esp", uefi_forge.loader, Stop("slot", "efi-stopped")),
}
"""for boards with UEFI firmware, which passes the device tree to the kernel itself"""
UEFI_TAMPERS["downgrade"] = replace(UEFI_TAMPERS["downgrade"], stop=Stop("verity", "too-old"))


def scenario(name: str, board: Board) -> Tamper:
    """The scenario of that name. Raises UsageError if there is none or the board has nothing to show it with."""
    known = TAMPERS if board.boot.uefi is None else UEFI_TAMPERS
    tamper = known.get(name)
    if tamper is None and name in (*TAMPERS, *UEFI_TAMPERS):
        raise UsageError(
            f"board '{board.board}' has nothing that '{name}' could change", hint=f"scenarios: {', '.join(known)}"
        )
    if tamper is None:
        raise UsageError(f"unknown scenario '{name}'", hint=f"scenarios: {', '.join(known)}")
    if tamper.stop is None and not board.verity.fec_roots:
        raise UsageError(
            f"board '{board.board}' has no error correction, which '{name}' needs",
            hint="set fec_roots in the `verity` section of the board",
        )
    if tamper.content and not partitions(tamper, board):
        hint = "boards/qemu-aarch64-avb.yaml has one" if tamper.content == "vbmeta" else None
        raise UsageError(f"board '{board.board}' has no partition that '{name}' could change", hint=hint)
    return tamper


def partitions(tamper: Tamper, board: Board) -> list[str]:
    """Names of the partitions that a scenario changes, for every slot ('system_a', 'system_b')."""
    names = []
    for name, partition in board.disk.partitions.items():
        word = partition.content if partition.content in CONTENT_WORDS else "system" if partition.content else None
        if word == tamper.content:
            names += [f"{name}_{slot}" for slot in partition.slots] or [name]
    return names
