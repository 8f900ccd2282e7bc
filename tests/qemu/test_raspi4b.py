# SPDX-License-Identifier: Apache-2.0
"""The card image of the Raspberry Pi 4 in QEMU's raspi4b, in two stages, since the kernel's own device tree makes it
panic there: U-Boot verifies the FIT and starts the kernel; kernel and initramfs of that FIT, with what QEMU does not
have switched off in the tree, go on to the login prompt. Vendor firmware is not emulated at all.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from test_road import console_until

from erofs_edge.boot.fdt import Node, parse, string, write
from erofs_edge.qemu.scratch import copy_sparse
from erofs_edge.toolbox.emulator import find_qemu

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(3000)]
PATIENCE = 1400
"""seconds; the emulated card controller moves 42 MB byte by byte"""
ARGUMENTS = (
    "console=ttyAMA0,115200", "panic=10", "gpt", "pd_ignore_unused", "clk_ignore_unused", "systemd.watchdog_sec=off",
)  # fmt: skip
"""the stock board's console is the mini UART, on which init hangs in QEMU; QEMU's watchdog resets the machine in the
moment in which it is started (hw/misc/bcm2835_powermgt.c); nothing else differs"""
ABSENT = (
    "/soc/interrupt-controller@7ef00100", "/soc/clock@7ef00000", "/soc/hdmi@7ef00700", "/soc/hdmi@7ef05700",
    "/soc/i2c@7ef04500", "/soc/i2c@7ef09500", "/gpu", "/soc/hvs@7e400000", "/soc/pixelvalve@7e206000",
    "/soc/pixelvalve@7e207000", "/soc/pixelvalve@7e20a000", "/soc/pixelvalve@7e216000", "/soc/pixelvalve@7ec12000",
    "/soc/vec@7ec13000", "/soc/serial@7e215040", "/soc/serial@7e201000/bluetooth",
)  # fmt: skip
NUMBERS = "/soc/rng@7e104000"
"""of the tree in our U-Boot, which asks it for a seed of the kernel's: QEMU does not have it, and U-Boot crashes"""
FDT_MAGIC = b"\xd0\x0d\xfe\xed"
CARD = "/soc/mmc@7e300000"
"""the controller that QEMU's card is on; the real one is emmc2"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, repository: Path, edge: str) -> Path:
    folder = tmp_path_factory.mktemp("raspi")
    board = folder / "card.yaml"
    words = ", ".join(f'"{word}"' for word in ARGUMENTS)
    base = repository / "boards/rpi4-locked.yaml"
    board.write_text(f"board: rpi4-locked\nextends: {base}\nboot: {{cmdline: [{words}]}}\n")
    shutil.copy(base.with_suffix(".lock"), board.with_suffix(".lock"))
    command = [edge, "build", str(board), "-o", str(folder / "out"), "--relock-if-gone"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def image(out: Path, name: str) -> bytes:
    node = parse((out / "boot.fit").read_bytes()).root.at(f"/images/{name}")
    assert node is not None
    return node.props["data"]


def machine(folder: Path, out: Path, kernel: Path, dtb: bytes, *more: str, serial: tuple[str, str]) -> list[str]:
    card, tree = copy_sparse(out / "disk.img", folder / "card.img"), folder / "tree.dtb"
    tree.write_bytes(dtb)
    ports = [word for port in serial for word in ("-serial", port)]
    return [
        str(find_qemu().program), "-M", "raspi4b", "-m", "2G", "-kernel", str(kernel), "-dtb", str(tree), *more,
        "-drive", f"if=sd,file={card},format=raw", "-display", "none", *ports, "-monitor", "none", "-no-reboot",
    ]  # fmt: skip


def test_u_boot_verifies_the_fit_on_the_card(out: Path, tmp_path: Path) -> None:
    u_boot = tmp_path / "u-boot.bin"
    u_boot.write_bytes(without((out / "u-boot.bin").read_bytes(), NUMBERS))
    command = machine(tmp_path, out, u_boot, image(out, "fdt"), serial=("null", "stdio"))
    console = console_until(command, b"Starting kernel", seconds=PATIENCE)
    assert b"erofs-edge: stage u-boot slot a" in console
    assert b"sha256,rsa2048:dev+ OK" in console
    assert b"sha256+ OK" in console.partition(b"Loading fdt from FIT")[2]


def test_kernel_and_initramfs_of_the_fit_reach_the_login(out: Path, tmp_path: Path) -> None:
    tree = parse(image(out, "fdt"))
    for path in ABSENT:
        node_at(tree.root, path).props["status"] = string("disabled")
    card = node_at(tree.root, CARD).props
    for name in ("mmc-pwrseq", "non-removable"):
        card.pop(name, None)
    card |= {"broken-cd": b"", "status": string("okay")}
    kernel, initramfs = tmp_path / "kernel", tmp_path / "initramfs"
    kernel.write_bytes(image(out, "kernel"))
    initramfs.write_bytes(image(out, "ramdisk"))
    more = ("-initrd", str(initramfs), "-append", " ".join((*ARGUMENTS, "erofs_edge.slot=a")))
    command = machine(tmp_path, out, kernel, write(tree), *more, serial=("stdio", "null"))
    console = console_until(command, b"login: ", seconds=PATIENCE)  # getty writes it in one piece
    for stage in (b"stage initramfs", b"stage verity", b"stage root erofs", b"stage data"):
        assert b"erofs-edge: " + stage in console


def without(u_boot: bytes, path: str) -> bytes:
    """U-Boot with a node of the tree that ends it switched off."""
    start = u_boot.rindex(FDT_MAGIC)
    tree = parse(u_boot[start:])
    node_at(tree.root, path).props["status"] = string("disabled")
    return u_boot[:start] + write(tree)


def node_at(root: Node, path: str) -> Node:
    node = root.at(path)
    assert node is not None, path
    return node
