# SPDX-License-Identifier: Apache-2.0
"""The emulated machine whose U-Boot has its disk written over the network, or over its console: its script, its device
tree, its SD card.

The U-Boot is one of ours, compiled for this alone (`u_boot/flashing.config`): it is loaded by the emulator and holds no
key, so that a board whose own boot loader is locked, or starts from elsewhere, is written the same way.
"""

from __future__ import annotations

from pathlib import Path

from erofs_edge.boot.fdt import Node, cells, parse, string, write
from erofs_edge.boot.loader import AUTOBOOT_WITHOUT_PROMPT
from erofs_edge.errors import UsageError
from erofs_edge.manifest.model import Qemu
from erofs_edge.toolbox.emulator import escaped

BUFFER = 0x4800_0000
"""where downloads go, CONFIG_FASTBOOT_BUF_ADDR in u_boot/qemu_arm64.config"""
LISTENS = b"Listening for fastboot command"
"""what U-Boot's console says when it can be reached (net/fastboot_udp.c)"""
PORT = 5554
GUEST, MASK, GATEWAY = "10.0.2.15", "255.255.255.0", "10.0.2.2"
"""addresses of QEMU's user network"""
CONSOLE = "hvc"
"""what our U-Boot calls its virtio console: u_boot/flashing-qemu_arm64-virtio_console.patch"""
RATE = 4_000_000
"""baud, that this console counts as: it has no rate, and takes about so much. What is under way at once, and how it is
packed, is as that suits"""
MACHINE = Qemu(machine="virt", cpu="cortex-a72", memory="1G", smp=1)
"""a loader's machine: what the board has besides is of no use to it"""


def script(board: str, *, prompt: bool = False) -> str:
    """What that U-Boot runs. It says which board it is (`getvar product`), and lets itself be asked for its disk
    (`transport/fastboot/uboot.py`). `prompt`: nothing but that name, and then it waits for commands at the console of
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
    """QEMU's device tree with that script. Raises FormatError for what is no device tree."""
    tree = parse(machine)
    config = tree.root.children.setdefault("config", Node())
    config.props |= {"bootcmd": string(script(board, prompt=prompt)), "bootdelay": cells(AUTOBOOT_WITHOUT_PROMPT)}
    return write(tree)


def card_arguments(disk: Path, size: int) -> list[str]:
    """The disk as an SD card behind PCI, QEMU's arguments.

    Raises UsageError for a size, in bytes, that is no power of two: QEMU has no such card.
    """
    if size & (size - 1):
        raise UsageError(
            f"QEMU's SD cards have a power of two of bytes, not {size}",
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
    """A virtio console as a Unix socket; the machine starts when somebody is there. What it says is passed on by the
    processor's own thread (no ioeventfd): on a busy host the other one comes late."""
    return [
        "-chardev", f"socket,id=line,path={escaped(path)},server=on,wait=on",
        "-device", "virtio-serial-pci,ioeventfd=off", "-device", "virtconsole,chardev=line",
    ]  # fmt: skip
