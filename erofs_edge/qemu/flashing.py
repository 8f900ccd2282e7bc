# SPDX-License-Identifier: Apache-2.0
"""The emulated machine whose U-Boot has its disk written over the network or over its console: its script, device tree
and SD card.

The U-Boot is one of ours, compiled for this alone (`u_boot/flashing.config`). The emulator loads it, and it contains no
key, so a board whose own boot loader is locked, or starts from elsewhere, can be written in the same way.
"""

from __future__ import annotations

from pathlib import Path

from erofs_edge.boot.fdt import Node, cells, parse, string, write
from erofs_edge.boot.loader import AUTOBOOT_WITHOUT_PROMPT
from erofs_edge.errors import UsageError
from erofs_edge.manifest.model import Qemu
from erofs_edge.toolbox.emulator import escaped

BUFFER = 0x4800_0000
"""address for downloads, CONFIG_FASTBOOT_BUF_ADDR in u_boot/qemu_arm64.config"""
LISTENS = b"Listening for fastboot command"
"""what U-Boot's console prints once it can be reached (net/fastboot_udp.c)"""
PORT = 5554
GUEST, MASK, GATEWAY = "10.0.2.15", "255.255.255.0", "10.0.2.2"
"""addresses of QEMU's user network"""
CONSOLE = "hvc"
"""our U-Boot's name of its virtio console: u_boot/flashing-qemu_arm64-virtio_console.patch"""
RATE = 4_000_000
"""assumed rate of this console in baud: it has none, but transfers about that much. It determines the data in flight
and how it is packed"""
MACHINE = Qemu(machine="virt", cpu="cortex-a72", memory="1G", smp=1)
"""the machine for the loader; further devices of the board would not help it"""


def script(board: str, *, prompt: bool = False) -> str:
    """The script of that U-Boot. It identifies the board (`getvar product`) and allows queries about its disk
    (`transport/fastboot/uboot.py`). `prompt`: set nothing but that name, then wait for commands at the console of
    `console_arguments`."""
    if prompt:
        return f"setenv board {board}; setenv stdout {CONSOLE}; setenv stdin {CONSOLE}"
    variables = {
        "ipaddr": GUEST,
        "netmask": MASK,
        "gatewayip": GATEWAY,
        "board": board,
        "fastboot.edge-buffer": f"{BUFFER:x}",
        "fastboot.edge-disk": "0",
    }
    return "; ".join([*(f"setenv {name} {value}" for name, value in variables.items()), "fastboot udp"])


def flashing_tree(machine: bytes, board: str, *, prompt: bool = False) -> bytes:
    """QEMU's device tree with that script. Raises FormatError if it is not a device tree."""
    tree = parse(machine)
    config = tree.root.children.setdefault("config", Node())
    config.props |= {"bootcmd": string(script(board, prompt=prompt)), "bootdelay": cells(AUTOBOOT_WITHOUT_PROMPT)}
    return write(tree)


def card_arguments(disk: Path, size: int) -> list[str]:
    """QEMU's arguments for the disk as an SD card behind PCI.

    Raises UsageError if the size in bytes is not a power of two: QEMU has no such card.
    """
    if size & (size - 1):
        raise UsageError(
            f"the size of an SD card in QEMU must be a power of two, not {size} bytes",
            where=str(disk),
            hint="--to qemu:nbd takes any size",
        )
    return [
        "-device", "sdhci-pci", "-drive", f"if=none,id=disk0,format=raw,file={escaped(disk)}",
        "-device", "sd-card,drive=disk0",
    ]  # fmt: skip


def network_arguments(port: int) -> list[str]:
    """User networking with the device's port at `port` of this machine."""
    rule = f"hostfwd=udp:127.0.0.1:{port}-:{PORT}"
    return ["-netdev", f"user,id=net0,{rule}", "-device", "virtio-net-pci,netdev=net0,romfile="]


def console_arguments(path: Path) -> list[str]:
    """A virtio console as a Unix socket; the machine starts once something is connected. Its output is passed on by the
    processor's own thread (no ioeventfd): on a busy host the other thread is late."""
    return [
        "-chardev", f"socket,id=line,path={escaped(path)},server=on,wait=on",
        "-device", "virtio-serial-pci,ioeventfd=off", "-device", "virtconsole,chardev=line",
    ]  # fmt: skip
