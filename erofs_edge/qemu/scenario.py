# SPDX-License-Identifier: Apache-2.0
"""Faults of a new system in the field: each is put into slot b of a copy of a disk, and slot b is on trial.

Faults of the running system use the writable layer over /etc: a unit on the data partition that acts in slot b only.
Faults of the medium are damage to slot b's partitions. A damaged block that is intact in the other slot is no fault, as
the initramfs repairs it: so it is damaged in both, and only slot b reads it.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.disk import slots
from erofs_edge.errors import ToolError, UsageError
from erofs_edge.manifest.model import Board
from erofs_edge.qemu import forge
from erofs_edge.qemu.forge import Change, Target
from erofs_edge.qemu.scratch import Scratch
from erofs_edge.toolbox.prefix import find

FAILING = "b"
MARKER_ROOM = 1 << 20
"""bytes at the end of the data partition that its file system leaves free: boot/init.sh"""
UNIT = "edge-fault.service"
DEADLINE = "edge-deadline.timer"
PROGRAM = "/usr/bin/systemd-cgls"
"""a program that every system with systemd has and nothing runs by itself"""


@dataclass(frozen=True, slots=True)
class Fault:
    """A scenario.

    evidence  the trouble (a key of stages.TROUBLE) that slot b must show
    harm      shell commands that the system of slot b runs instead of becoming healthy; '' for nothing
    content   which of slot b's partitions `changes` damages: 'fit' or 'system'; '' for none
    both      damage the other slot's partition as well, so that it cannot be used for a repair
    devices   further arguments of QEMU
    """

    title: str
    evidence: str
    harm: str = ""
    content: str = ""
    changes: Callable[[Target], list[Change]] = forge.nothing
    devices: tuple[str, ...] = ()
    both: bool = False


FAULTS = {
    "panic": Fault("the kernel panics", "panic", "echo c >/proc/sysrq-trigger; sleep 60"),
    "unit": Fault("a unit that the system needs fails", "unwell", "exit 1"),
    # a crashed systemd does nothing more (systemd-system.conf(5), CrashAction), and nobody feeds the watchdog
    "watchdog": Fault(
        "process 1 hangs", "watchdog", "kill -SEGV 1; sleep 600", devices=("-device", "i6300esb", "-action",
        "watchdog=reset"),
    ),
    "verity": Fault(
        "a block that does not match its hash", "corrupt", f"{PROGRAM} --version", "system", forge.in_file(PROGRAM),
        both=True,
    ),
    "boot-image": Fault("a damaged boot image", "fit-hash", content="fit", changes=forge.in_image("kernel")),
}  # fmt: skip


def fault_of(name: str, board: Board) -> Fault:
    """The scenario of that name. Raises UsageError if there is none or the board cannot show it."""
    fault = FAULTS.get(name)
    if fault is None:
        raise UsageError(f"unknown scenario '{name}'", hint=f"scenarios: {', '.join(FAULTS)}")
    data = next((p for p in board.disk.partitions.values() if p.filesystem), None)
    if fault.harm and (data is None or data.encrypt is not None):
        raise UsageError(
            f"board '{board.board}' has no data partition, which '{name}' needs",
            hint=f"without one, and with an encrypted one: {', '.join(n for n, f in FAULTS.items() if not f.harm)}",
        )
    if FAILING not in next((p.slots for p in board.disk.partitions.values() if p.slots), []):
        raise UsageError(
            f"board '{board.board}' has no slot '{FAILING}'", hint="scenarios are for boards with slots a, b"
        )
    return fault


def inject(fault: Fault, scratch: Scratch, folder: Path) -> list[str]:
    """Put slot b on trial, mark all others good, and apply the fault; return what was damaged.

    folder  for intermediate files

    Raises ToolError without mke2fs, FormatError if the disk was not made by a build.
    """
    state = scratch.state()
    for name in state.left:
        state = slots.mark(state, name, "good")
    scratch.put_state(slots.activate(state, FAILING))
    done = []
    if fault.harm:
        _data(fault, scratch, folder)
        done.append(f"the system in slot {FAILING} ({fault.title})")
    for name, partition in scratch.board.disk.partitions.items():
        word = "fit" if partition.content == "fit" else "system"
        if fault.content != word or FAILING not in partition.slots:
            continue
        for slot in partition.slots if fault.both else (FAILING,):
            place = f"{name}_{slot}"
            for change in fault.changes(Target(scratch.board, functools.partial(scratch.read, place))):
                scratch.write(place, change.offset, change.data)
                done.append(f"{change.what} of {place}")
    return done


def fault_files(fault: Fault) -> dict[str, str]:
    """Path below /etc → text: a unit that must succeed for the system to count as good, and a short deadline unless the
    fault itself ends the machine, for which it must be given time."""
    script = f"grep -qx slot={FAILING} /run/erofs-edge/boot || exit 0; {fault.harm}"
    unit = f"[Unit]\nBefore=boot-complete.target\n[Service]\nType=oneshot\nExecStart=/bin/sh -c '{script}'\n"
    soon = {f"systemd/system/{DEADLINE}.d/soon.conf": "[Timer]\nOnBootSec=\nOnBootSec=1\n"}
    return {
        f"systemd/system/{UNIT}": unit,
        "systemd/system/boot-complete.target.d/fault.conf": f"[Unit]\nRequires={UNIT}\n",
        **(soon if fault.evidence in ("unwell", "corrupt") else {}),
    }


def _data(fault: Fault, scratch: Scratch, folder: Path) -> None:
    """A data partition whose layer over /etc has the files of the fault."""
    label = next(name for name, p in scratch.board.disk.partitions.items() if p.filesystem)
    _, size = scratch.place(label)
    top, image = folder / "data", folder / "data.img"
    for path, text in fault_files(fault).items():
        file = top / "etc/upper" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    image.touch()
    os.truncate(image, size - MARKER_ROOM)
    command = [
        str(find("mke2fs")), "-q", "-F", "-t", "ext4", "-L", label, "-d", str(top), "-E",
        "lazy_itable_init=1,lazy_journal_init=1", str(image),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"mke2fs: {done.stderr.strip()[-200:]}", where=command[0])
    scratch.clear(label)
    scratch.copy_from(image, label, size - MARKER_ROOM)
