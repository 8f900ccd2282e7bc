# SPDX-License-Identifier: Apache-2.0
"""A board as an emulated machine: which QEMU, its arguments, and the device tree for U-Boot.

U-Boot for QEMU gets its control tree from QEMU. We pass QEMU's own tree plus what a product builds into its U-Boot: the
public key that must have signed every FIT, the boot script, and no access to a prompt or to an environment on flash
(U-Boot doc/develop/devicetree/control.rst, common/cli.c `cli_process_fdt`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.boot import loader
from erofs_edge.boot.fdt import parse, write
from erofs_edge.errors import ManifestError, ToolError
from erofs_edge.manifest.model import Board, Qemu, size_bytes
from erofs_edge.toolbox.emulator import MENDS, Emulator, escaped, find_qemu, short_run
from erofs_edge.trust.signer import VerificationKey
from erofs_edge.writing import scratch_folder

__all__ = [
    "MENDS",
    "Emulator",
    "Wiring",
    "boot_arguments",
    "control_tree",
    "dump_tree",
    "find_qemu",
    "machine_arguments",
    "qemu_of",
]

CHECKS_SERIAL = "erofs-edge-smoke"
CHECKS_DRIVE = (
    "-blockdev", "driver=null-co,node-name=checks,size=512,read-zeroes=on",
    "-device", f"virtio-blk-pci,drive=checks,serial={CHECKS_SERIAL}",
)  # fmt: skip
"""an empty disk whose serial number asks the system to check itself: kernel arguments are reserved for the build"""
GRAPHICS = ("-device", "virtio-gpu-pci")
WATCHDOG = ("-device", "i6300esb", "-action", "watchdog=none")
"""it counts and must be fed, but tests must not depend on how busy the host is: nothing happens when it expires"""


@dataclass(frozen=True, slots=True)
class Wiring:
    """How a machine is connected, whatever its firmware.

    disk      the board's
    snapshot  the guest's writes go to a temporary file of QEMU's and are discarded
    serial    QEMU's name for the console: 'stdio', 'mon:stdio' (Ctrl-A X quits), 'unix:PATH,server=on,wait=off'
    forwards  (host port, guest port): gives the machine user networking, reachable only from the host
    reboot    False ends QEMU when the machine would reset
    extra     further arguments (CHECKS_DRIVE, GRAPHICS, WATCHDOG)
    """

    disk: Path
    snapshot: bool = True
    serial: str = "stdio"
    forwards: tuple[tuple[int, int], ...] = ()
    reboot: bool = False
    extra: tuple[str, ...] = ()


def qemu_of(board: Board) -> Qemu:
    """The board's emulated machine. Raises ManifestError if it has none that we support."""
    if board.qemu is None:
        raise ManifestError(
            f"board '{board.board}' has no qemu section, so it cannot be emulated",
            hint="boards/qemu-aarch64.yaml is one that can be",
        )
    if not re.fullmatch(r"virt(-\d+\.\d+)?", board.qemu.machine):
        raise ManifestError(
            f"board '{board.board}' needs QEMU's machine '{board.qemu.machine}'", hint="only 'virt' is supported"
        )
    return board.qemu


def machine_arguments(qemu: Qemu, bios: Path, *, dump: Path | None = None) -> list[str]:
    """The arguments that determine the device tree; the same for the dump of the tree and for the boot with it."""
    return [
        "-no-user-config", "-nodefaults", "-display", "none",
        "-machine", qemu.machine + (f",dumpdtb={escaped(dump)}" if dump else ""),
        "-cpu", qemu.cpu, "-m", f"{size_bytes(qemu.memory) >> 20}M", "-smp", str(qemu.smp), "-bios", str(bios),
    ]  # fmt: skip


def boot_arguments(qemu: Qemu, bios: Path, control: Path | None, wiring: Wiring) -> list[str]:
    """QEMU's arguments, without the program. `control`: the device tree for U-Boot; None if it has its own."""
    tree = ["-dtb", str(control)] if control else []
    return [*machine_arguments(qemu, bios), *tree, *wiring_arguments(wiring)]


def wiring_arguments(wiring: Wiring) -> list[str]:
    """Disk, network and console."""
    snapshot = ",snapshot=on" if wiring.snapshot else ""
    network = []
    if wiring.forwards:
        rules = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in wiring.forwards)
        network = ["-netdev", f"user,id=net0{rules}", "-device", "virtio-net-pci,netdev=net0,romfile="]
    return [
        "-drive", f"if=none,id=disk0,format=raw,file={escaped(wiring.disk)}{snapshot}",
        "-device", "virtio-blk-pci,drive=disk0", *network, *wiring.extra,
        "-serial", wiring.serial, "-monitor", "none", *([] if wiring.reboot else ["-no-reboot"]),
    ]  # fmt: skip


def dump_tree(emulator: Emulator, qemu: Qemu, bios: Path) -> bytes:
    """The tree that QEMU makes for this machine. Takes about 0.1 s; the seeds in it are new each time.

    Raises ToolError if QEMU refuses the machine.
    """
    with scratch_folder("qemu") as folder:
        dump = folder / "machine.dtb"
        said = short_run([str(emulator.program), *machine_arguments(qemu, bios, dump=dump)])
        if not dump.exists():
            raise ToolError(f"QEMU wrote no device tree: {said[-200:]}", where=str(emulator.program))
        return dump.read_bytes()


def control_tree(machine: bytes, key: VerificationKey, script: str) -> bytes:
    """The machine's tree with the key that must have signed a FIT and the script that U-Boot runs.

    The KASLR seed is left out: with it the kernel separates its page tables from user space's, which costs a tenth of
    the emulator's time and protects nothing here. The seed of the random number generator stays.
    """
    tree = parse(loader.control_tree(machine, key, script))
    if chosen := tree.root.at("/chosen"):
        chosen.props.pop("kaslr-seed", None)
    return write(tree)
