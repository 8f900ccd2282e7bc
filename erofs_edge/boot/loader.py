# SPDX-License-Identifier: Apache-2.0
"""Assemble a locked U-Boot: the compiled program, followed by the device tree with the key and the boot script.

U-Boot built with CONFIG_OF_SEPARATE uses the tree that follows its image, at the next multiple of 8 bytes
(lib/fdtdec.c `fdt_find_separate`), and no other. It runs /config/bootcmd, and with a bootdelay of -2 it ignores all
keys (common/autoboot.c, common/cli.c `cli_process_fdt`).
"""

from __future__ import annotations

from erofs_edge.boot.fdt import HEADER, MAGIC, DeviceTree, Node, cells, parse, string, write
from erofs_edge.boot.fit import add_key
from erofs_edge.boot.virt import virt_tree
from erofs_edge.errors import FormatError, ManifestError
from erofs_edge.manifest.model import Board, size_bytes
from erofs_edge.trust.key import VerificationKey

ALIGN = 8
AUTOBOOT_WITHOUT_PROMPT = 0xFFFFFFFE
"""-2: U-Boot runs the boot command at once and ignores all keys (doc/usage/cmd/bootdelay)"""


def control_tree(machine: bytes, key: VerificationKey, script: str) -> bytes:
    """A machine's device tree, with the key that must have signed a FIT and the script that U-Boot runs.

    Raises FormatError if it is not a device tree.
    """
    tree = parse(add_key(machine, key))
    config = tree.root.children.setdefault("config", Node())
    config.props["bootcmd"] = string(script)
    config.props["bootdelay"] = cells(AUTOBOOT_WITHOUT_PROMPT)
    config.props["load-environment"] = cells(0)
    return write(tree)


def machine_tree(board: Board, dtb: bytes | None) -> bytes:
    """The hardware description for one of our U-Boots: of QEMU's machine, or the kernel's device tree of the board
    (`dtb`).

    Raises ManifestError if the board names neither.
    """
    if board.boot.u_boot.build == "qemu_arm64":
        if board.qemu is None:
            raise ManifestError(f"board '{board.board}' has no qemu section, which describes QEMU's machine")
        return virt_tree(cpu=board.qemu.cpu, memory=size_bytes(board.qemu.memory), cpus=board.qemu.smp)
    if dtb is None:
        raise ManifestError(
            f"board '{board.board}' names no device tree for its U-Boot", hint="boot: {fdt: broadcom/….dtb}"
        )
    return dtb


def join(program: bytes, tree: bytes) -> bytes:
    """Join program and tree to the whole boot loader."""
    return program + bytes(-len(program) % ALIGN) + tree


def split(loader: bytes) -> tuple[bytes, DeviceTree]:
    """Split into the padded program and its tree. Raises FormatError unless a tree follows it and ends the file."""
    magic = MAGIC.to_bytes(4, "big")
    at = len(loader)
    while (at := loader.rfind(magic, 0, at)) >= 0:
        if (
            at % ALIGN == 0
            and len(loader) - at >= HEADER.size
            and HEADER.unpack_from(loader, at)[1] == len(loader) - at
        ):
            return loader[:at], parse(loader[at:])
    raise FormatError("no device tree follows the boot loader")


def replace_script(loader: bytes, script: str) -> bytes:
    """Replace the boot script of a loader, to test what a modified one can do. Raises FormatError."""
    program, tree = split(loader)
    config = tree.root.at("/config")
    if config is None:
        raise FormatError("the boot loader has no script", where="/config")
    config.props["bootcmd"] = string(script)
    return join(program, write(tree))
