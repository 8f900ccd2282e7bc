# SPDX-License-Identifier: Apache-2.0
"""U-Boot without a system: what is started is 80 bytes that power the machine off, so that a run ends by itself."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path

from erofs_edge.boot.fdt import DeviceTree, parse, write
from erofs_edge.boot.fit import Image, build_fit
from erofs_edge.boot.loader import control_tree, join
from erofs_edge.boot.virt import virt_tree
from erofs_edge.manifest.model import Qemu
from erofs_edge.qemu.machine import dump_tree, find_qemu, machine_arguments
from erofs_edge.trust.key import Signer, VerificationKey

ADDRESS = 0x50000000
MACHINE = Qemu(smp=1)
ENVIRONMENT = 0x40000
"""bytes of the environment on flash (configs/qemu_arm64_defconfig)"""
# movz w0, #8; movk w0, #0x8400, lsl #16; hvc #0; b .        PSCI's SYSTEM_OFF
_OFF = struct.pack("<4I", 0x52800100, 0x72B08000, 0xD4000002, 0x14000000)
KERNEL = struct.pack("<2I6Q2I", 0x14000010, 0, 0, 4096, 0, 0, 0, 0, 0x644D5241, 0) + _OFF
"""an arm64 Image (Documentation/arch/arm64/booting.rst): a jump over its header"""
STARTED = "Starting kernel"
LIMIT = 500.0
"""seconds; a machine that needs longer is out of order"""
AFTER = 10.0
"""seconds in which what is typed could still be obeyed"""


def small_fit(signer: Signer | None, *, rollback_index: int = 0) -> bytes:
    """A FIT with that kernel."""
    images = {
        "kernel": Image("kernel_noload", KERNEL, "powers off"),
        "ramdisk": Image("ramdisk", b"nothing", "no initramfs"),
    }
    return build_fit(
        images, description="alone", epoch=0, signer=signer, load_address=ADDRESS, rollback_index=rollback_index
    )


def legacy_kernel() -> bytes:
    """The kernel as a legacy image (include/image.h), to be run where it is loaded."""
    place = ADDRESS + 0x200000
    fields = (0, len(KERNEL), place, place, zlib.crc32(KERNEL), 5, 22, 2, 0, b"legacy")
    blank = struct.pack(">7I4B32s", 0x27051956, 0, *fields)
    return struct.pack(">7I4B32s", 0x27051956, zlib.crc32(blank), *fields) + KERNEL


def environment(**variables: str) -> bytes:
    """An environment on flash, as `saveenv` writes it."""
    text = b"".join(f"{name}={value}\0".encode() for name, value in variables.items())
    body = text.ljust(ENVIRONMENT - 4, b"\0")
    return struct.pack("<I", zlib.crc32(body)) + body


def read(offset: int, size: int) -> str:
    """U-Boot's words that load bytes of the disk to ADDRESS."""
    return f"virtio read {ADDRESS:x} {offset // 512:x} {-(-size // 512):x}"


class Alone:
    """A U-Boot in its machine. `program` is one of ours, without key and script; None takes Debian's in `stock`."""

    def __init__(self, folder: Path, stock: Path, program: bytes | None, key: VerificationKey) -> None:
        self._folder, self._stock, self._program, self._key = folder, stock, program, key

    def tree(self, script: str, *, keyed: bool = True) -> DeviceTree:
        """The control tree with a script; `keyed`: and with the key."""
        if self._program is None:
            machine = dump_tree(find_qemu(), MACHINE, self._stock)
        else:
            machine = virt_tree(cpu=MACHINE.cpu, memory=1 << 30, cpus=MACHINE.smp)
        tree = parse(control_tree(machine, self._key, f"virtio scan; {script}"))
        if not keyed:
            del tree.root.children["signature"]
        return tree

    def run(
        self,
        tree: DeviceTree,
        pieces: Iterable[tuple[int, bytes]] = (),
        *,
        size: int = 1 << 20,
        flash: bytes = b"",
        typed: bytes = b"",
        until: str = "",
    ) -> str:
        """The console until the machine is off (or for LIMIT seconds), or for some seconds after it has said `until`.

        pieces  (offset, bytes) of its disk
        size    of the disk, bytes
        flash   the start of the flash that the environment is in
        typed   sent to its console twice a second
        """
        disk, control, bios = (self._folder / name for name in ("disk", "tree.dtb", "bios"))
        content = bytearray(size)
        for offset, data in pieces:
            content[offset : offset + len(data)] = data
        disk.write_bytes(content)
        control.write_bytes(write(tree))
        if self._program is None:
            arguments = [*machine_arguments(MACHINE, self._stock), "-dtb", str(control)]
        else:
            bios.write_bytes(join(self._program, write(tree)))
            arguments = machine_arguments(MACHINE, bios)
        if flash:
            second = self._folder / "flash1"
            with second.open("wb") as file:
                file.write(flash)
                file.truncate(64 << 20)
            arguments += ["-drive", f"if=pflash,unit=1,format=raw,file={second}"]
        arguments += ["-drive", f"if=none,id=d,format=raw,file={disk}", "-device", "virtio-blk-pci,drive=d"]
        arguments += ["-serial", "stdio", "-monitor", "none", "-no-reboot"]
        return _console([str(find_qemu().program), *arguments], typed, until)


def _console(command: list[str], typed: bytes, until: str) -> str:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, bufsize=0) as machine:
        assert machine.stdin is not None and machine.stdout is not None
        keyboard = machine.stdin
        over = threading.Event()

        def type_on() -> None:
            with contextlib.suppress(OSError):
                while typed and not over.wait(0.5):
                    keyboard.write(typed)

        timer, typist = threading.Timer(LIMIT, machine.kill), threading.Thread(target=type_on)
        timer.start()
        typist.start()
        said = b""
        try:
            while piece := machine.stdout.read(4096):
                before, said = until.encode() in said, said + piece
                if until and not before and until.encode() in said:
                    timer.cancel()
                    timer = threading.Timer(AFTER, machine.kill)
                    timer.start()
            return said.decode(errors="replace")
        finally:
            over.set()
            timer.cancel()
            machine.kill()
            typist.join()
