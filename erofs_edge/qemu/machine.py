# SPDX-License-Identifier: Apache-2.0
"""A board as an emulated machine: which QEMU, its arguments, and the device tree that it hands to U-Boot.

U-Boot for QEMU takes its control tree from QEMU. We hand it QEMU's own tree plus what a product burns into its
U-Boot: the public key that every FIT must be signed with, the boot script, and no way to a prompt or to an
environment on flash (U-Boot doc/develop/devicetree/control.rst, common/cli.c `cli_process_fdt`).
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.boot.fdt import Node, cells, parse, string, write
from erofs_edge.boot.fit import add_key
from erofs_edge.errors import ManifestError, ToolError
from erofs_edge.manifest.model import Board, Qemu, size_bytes
from erofs_edge.toolbox.prefix import find
from erofs_edge.trust.signer import VerificationKey

PROGRAM = "qemu-system-aarch64"
VARIABLE = "EROFS_EDGE_QEMU"
OLDEST = (7, 2)
MENDS = "erofs-edge tools fetch"

AUTOBOOT_WITHOUT_PROMPT = 0xFFFFFFFE
"""-2: U-Boot runs the boot command at once and looks at no key (doc/usage/cmd/bootdelay)"""


@dataclass(frozen=True, slots=True)
class Emulator:
    """A QEMU program and its version."""

    program: Path
    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


@dataclass(frozen=True, slots=True)
class Drive:
    """The board's disk. `snapshot`: the guest's writes go to a temporary file of QEMU's and are dropped."""

    path: Path
    snapshot: bool = True


def find_qemu() -> Emulator:
    """EROFS_EDGE_QEMU, else the private prefix, else PATH. Raises ToolError where it is missing or too old."""
    named = os.environ.get(VARIABLE)
    program = Path(named) if named else find(PROGRAM)
    said = _run([str(program), "--version"])
    found = re.search(r"QEMU emulator version (\d+)\.(\d+)\.(\d+)", said)
    if not found:
        raise ToolError("this is no QEMU: it does not tell its version", where=str(program), hint=MENDS)
    emulator = Emulator(program, (int(found[1]), int(found[2]), int(found[3])))
    if emulator.version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ToolError(
            f"QEMU {emulator.version_text} is too old, {oldest} is needed", where=str(program), hint=_mend(named)
        )
    return emulator


def _mend(named: str | None) -> str:
    return f"unset {VARIABLE}, then: {MENDS}" if named else MENDS


def qemu_of(board: Board) -> Qemu:
    """The board's emulated machine. Raises ManifestError where it has none that we can drive."""
    if board.qemu is None:
        raise ManifestError(
            f"board '{board.board}' has no qemu section, so it cannot be emulated",
            hint="boards/qemu-aarch64.yaml is one that can",
        )
    if not re.fullmatch(r"virt(-\d+\.\d+)?", board.qemu.machine):
        raise ManifestError(
            f"board '{board.board}' wants QEMU's machine '{board.qemu.machine}'", hint="only 'virt' can be driven"
        )
    return board.qemu


def machine_arguments(qemu: Qemu, bios: Path, *, dump: Path | None = None) -> list[str]:
    """What the device tree depends on; the same for the dump of the tree and for the boot with it."""
    return [
        "-no-user-config", "-nodefaults", "-display", "none",
        "-machine", qemu.machine + (f",dumpdtb={_escaped(dump)}" if dump else ""),
        "-cpu", qemu.cpu, "-m", f"{size_bytes(qemu.memory) >> 20}M", "-smp", str(qemu.smp), "-bios", str(bios),
    ]  # fmt: skip


def boot_arguments(
    qemu: Qemu,
    *,
    bios: Path,
    control: Path,
    drive: Drive,
    serial: str = "stdio",
    forwards: tuple[tuple[int, int], ...] = (),
    reboot: bool = False,
) -> list[str]:
    """QEMU's arguments, without the program.

    serial    QEMU's word for the console: 'stdio', 'mon:stdio' (Ctrl-A X quits), 'unix:PATH,server=on,wait=off'
    forwards  (host port, guest port): gives the machine user networking, reachable from the host alone
    reboot    False ends QEMU where the machine would reset
    """
    snapshot = ",snapshot=on" if drive.snapshot else ""
    network = []
    if forwards:
        rules = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in forwards)
        network = ["-netdev", f"user,id=net0{rules}", "-device", "virtio-net-pci,netdev=net0,romfile="]
    return [
        *machine_arguments(qemu, bios), "-dtb", str(control),
        "-drive", f"if=none,id=disk0,format=raw,file={_escaped(drive.path)}{snapshot}",
        "-device", "virtio-blk-pci,drive=disk0", *network,
        "-serial", serial, "-monitor", "none", *([] if reboot else ["-no-reboot"]),
    ]  # fmt: skip


def _escaped(path: Path) -> str:
    """A path inside a list of options, where QEMU wants commas doubled."""
    return str(path).replace(",", ",,")


def dump_tree(emulator: Emulator, qemu: Qemu, bios: Path) -> bytes:
    """The tree that QEMU makes for this machine. Takes about 0.1 s; the seeds in it are fresh each time.

    Raises ToolError where QEMU refuses the machine.
    """
    with tempfile.TemporaryDirectory(prefix="erofs-edge-") as folder:
        dump = Path(folder) / "machine.dtb"
        said = _run([str(emulator.program), *machine_arguments(qemu, bios, dump=dump)])
        if not dump.exists():
            raise ToolError(f"QEMU wrote no device tree: {said[-200:]}", where=str(emulator.program))
        return dump.read_bytes()


def control_tree(machine: bytes, key: VerificationKey, script: str) -> bytes:
    """The machine's tree with the key that a FIT must be signed with and the script that U-Boot runs.

    The seed of KASLR is left out: with it the kernel separates its page tables from user space's, which costs a tenth
    of the emulator's time and protects nothing here. The seed of the random number generator stays.
    """
    tree = parse(add_key(machine, key))
    if chosen := tree.root.at("/chosen"):
        chosen.props.pop("kaslr-seed", None)
    config = tree.root.children.setdefault("config", Node())
    config.props["bootcmd"] = string(script)
    config.props["bootdelay"] = cells(AUTOBOOT_WITHOUT_PROMPT)
    config.props["load-environment"] = cells(0)
    return write(tree)


def _run(command: list[str]) -> str:
    """What a short run of QEMU says. Raises ToolError where it cannot be started or fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise ToolError(f"QEMU cannot be started: {error.strerror}", where=command[0], hint=MENDS) from error
    except subprocess.TimeoutExpired as error:
        raise ToolError("QEMU does not answer", where=command[0], hint=MENDS) from error
    if done.returncode:
        raise ToolError(f"QEMU failed: {done.stdout.strip()[-400:]}", where=command[0])
    return done.stdout
