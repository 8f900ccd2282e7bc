# SPDX-License-Identifier: Apache-2.0
"""Start a board in QEMU to be flashed: with a blank or used disk, reachable at an address, stopped afterwards.

serial    the same U-Boot as for `fastboot`, at its prompt, with its console on a Unix socket: a virtio console, a
          hundred times as fast as the emulated UART. The disk is the board's: virtio, or a card
nbd       the provisioning system, with its two exports forwarded to two ports of this machine
nbds      the same with TLS: certificates are made for this one start
fastboot  a U-Boot compiled for this purpose, over UDP, with the disk as an SD card
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from erofs_edge.errors import BootCheckError, CapacityError, DeviceError, ToolError, UsageError
from erofs_edge.manifest.load import Loaded
from erofs_edge.manifest.lockfile import load_lock, lock_path
from erofs_edge.manifest.model import Board, size_bytes
from erofs_edge.provision.credentials import board_credentials, make_credentials, write_credentials
from erofs_edge.provision.initramfs import build_provisioning
from erofs_edge.provision.kept import kept_provisioning
from erofs_edge.qemu.console import clean
from erofs_edge.qemu.flashing import (
    LISTENS,
    MACHINE,
    RATE,
    card_arguments,
    console_arguments,
    flashing_tree,
    network_arguments,
)
from erofs_edge.qemu.machine import dump_tree, find_qemu, machine_arguments, qemu_of
from erofs_edge.sources.cache import Cache
from erofs_edge.toolbox.emulator import Emulator, escaped, start
from erofs_edge.u_boot.compile import FLASHING, compiled
from erofs_edge.writing import scratch_folder

TRANSPORTS = ("serial", "nbd", "nbds", "fastboot")
READY, FAILED = b"erofs-edge: provisioning ready", b"erofs-edge: provisioning failed"
PORT = 10809
"""of the disk inside the machine; the control export uses the next one: provision/init.sh"""
START = 300.0  # seconds until a machine must be reachable; a busy host takes many times as long as an idle one
LOG = "console.txt"  # the machine's output, in its folder
COMPLAINTS = "qemu.txt"  # QEMU's own messages, there
SAID, TOLD = 200, 400  # bytes of these in a hint, and in a message
LOOK = 0.05  # seconds between two checks
END = 20.0  # seconds for QEMU to exit by itself
GUEST = "10.0.2.15/24"
"""the address that QEMU's user network gives the guest"""
UNGUARDED = "nokaslr mitigations=off cryptomgr.notests maxcpus=1"
"""kernel arguments: an emulated processor has no speculation that programs of this one start could exploit, and the
separate page tables that KASLR implies cost a fifth of the boot (kernel-parameters.txt; arm64's cpufeature.c,
`kaslr_requires_kpti`). The kernel's own ciphers and digests, whose self-tests cost a sixth of it, are not used here:
digests and TLS are handled by programs. The other processors are started by the provisioning system, once the kernel is
up: with them it takes half as long again"""


@contextmanager
def attached(
    board: Loaded[Board], out: Path, transport: str, disk: Path, say: Callable[[str], None] = lambda text: None
) -> Iterator[str]:
    """Start the board in QEMU; yields the address for `find_target`. The machine is off when the block ends.

    out   where the board was built
    disk  a file; if it is missing or empty, it becomes a blank disk of the board's size

    Raises UsageError for a board or a transport that does not support this, ToolError without a usable QEMU or if it
    ends early, BootCheckError if the machine does not come up.
    """
    if transport not in TRANSPORTS:
        raise UsageError(f"no transport 'qemu:{transport}'", hint=f"known: {', '.join(TRANSPORTS)}")
    emulator = find_qemu()
    _make_disk(disk, size_bytes(board.value.disk.size))
    with scratch_folder("qemu") as folder:
        begin = {"serial": _serial, "nbd": _nbd, "nbds": _nbds, "fastboot": _fastboot}[transport]
        with begin(board, out, emulator, disk, folder) as address:
            say(f"QEMU {emulator.version_text} has {disk}; the board is at {address}")
            with telling(folder / LOG):
                yield address


AGAIN = "run the same command again"
"""the end of hints that fit any device"""


@contextmanager
def telling(log: Path) -> Iterator[None]:
    """If the machine fails or falls silent while the block runs, add its last output as the hint, unless there is a
    better one.
    """
    try:
        yield
    except DeviceError as error:
        if (error.hint or AGAIN).endswith(AGAIN) and (said := _last(log, SAID)):
            error.hint = f"its console ends with: {said}"
        raise


def _last(file: Path, size: int = TOLD) -> str:
    """The end of the output, on one line; '' for none."""
    return " ".join(clean(file.read_bytes()[-size:]).split()) if file.exists() else ""


@contextmanager
def _serial(board: Loaded[Board], _out: Path, emulator: Emulator, disk: Path, folder: Path) -> Iterator[str]:
    boot, log = board.value.boot, folder / LOG
    if boot.storage == "mmc":
        drive = card_arguments(disk, disk.stat().st_size)
    elif boot.uefi is not None or boot.u_boot.build is not None:
        raise UsageError(
            f"board '{board.value.board}' has no U-Boot prompt",
            hint="use --to qemu:nbd, which needs none, or a board that is not locked",
        )
    else:
        drive = _drive(disk)
    console = folder / "console"
    machine = [*_loader(board.value, emulator, folder, prompt=True), *drive, *console_arguments(console)]
    said = ["-serial", f"file:{escaped(log)}", "-monitor", "none"]
    with _running([str(emulator.program), *machine, *said], folder) as process:
        _wait(process, console.exists, folder)
        yield f"serial+unix://{console}?console={RATE}"


def _loader(board: Board, emulator: Emulator, folder: Path, *, prompt: bool) -> list[str]:
    """Arguments for a machine with the U-Boot for flashing (compiled at first use, which takes about two minutes),
    without a disk. `prompt`: as in `flashing.script`."""
    qemu_of(board)
    bios, tree = folder / "u-boot.bin", folder / "control.dtb"
    bios.write_bytes(compiled(FLASHING, Cache()).image)
    tree.write_bytes(flashing_tree(dump_tree(emulator, MACHINE, bios), board.board, prompt=prompt))
    return [*machine_arguments(MACHINE, bios), "-dtb", str(tree)]


def _nbd(board: Loaded[Board], _out: Path, emulator: Emulator, disk: Path, folder: Path) -> AbstractContextManager[str]:
    return _provisioning(board, emulator, disk, folder, None)


def _nbds(
    board: Loaded[Board], _out: Path, emulator: Emulator, disk: Path, folder: Path
) -> AbstractContextManager[str]:
    secrets = folder / "tls"
    write_credentials(secrets, make_credentials())
    return _provisioning(board, emulator, disk, folder, secrets)


@contextmanager
def _provisioning(
    board: Loaded[Board], emulator: Emulator, disk: Path, folder: Path, secrets: Path | None
) -> Iterator[str]:
    """The kernel and the provisioning initramfs, loaded as in a network boot. `secrets`: certificates for both sides,
    if TLS is wanted."""
    qemu = qemu_of(board.value)
    lock, cache = load_lock(lock_path(board.path)), Cache()
    if secrets is None:
        parts = kept_provisioning(board.value, lock, cache)
    else:
        parts = build_provisioning(board.value, lock, cache, board_credentials(secrets), packed=False)
    (folder / "kernel").write_bytes(parts.kernel)
    (folder / "initramfs").write_bytes(parts.initramfs)
    port, log = _two_ports(), folder / LOG
    rules = "".join(f",hostfwd=tcp:127.0.0.1:{port + n}-:{PORT + n}" for n in (0, 1))
    command = [
        str(emulator.program), "-no-user-config", "-nodefaults", "-display", "none", "-machine", qemu.machine,
        "-cpu", qemu.cpu, "-m", f"{size_bytes(qemu.memory) >> 20}M", "-smp", str(qemu.smp),
        "-kernel", str(folder / "kernel"), "-initrd", str(folder / "initramfs"),
        "-append", f"console=ttyAMA0 quiet panic=-1 {UNGUARDED} edge.disk=vda edge.ip={GUEST}", *_drive(disk),
        "-netdev", f"user,id=net0{rules}", "-device", "virtio-net-pci,netdev=net0,romfile=",
        "-serial", f"file:{escaped(log)}", "-monitor", "none", "-no-reboot",
    ]  # fmt: skip

    def said() -> bytes:
        return log.read_bytes() if log.exists() else b""

    with _running(command, folder) as machine:
        _wait(machine, lambda: READY in said() or FAILED in said(), folder)
        if FAILED in said():
            raise BootCheckError(f"the provisioning system did not start: {_last(log)}")
        address = f"127.0.0.1:{port}"
        yield f"provisions://{address}?tls-certificates={secrets}" if secrets else f"provision://{address}"


@contextmanager
def _fastboot(board: Loaded[Board], _out: Path, emulator: Emulator, disk: Path, folder: Path) -> Iterator[str]:
    port, log = _udp_port(), folder / LOG
    command = [
        str(emulator.program), *_loader(board.value, emulator, folder, prompt=False),
        *card_arguments(disk, disk.stat().st_size), *network_arguments(port),
        "-serial", f"file:{escaped(log)}", "-monitor", "none", "-no-reboot",
    ]  # fmt: skip

    def said() -> bytes:
        return log.read_bytes() if log.exists() else b""

    with _running(command, folder) as machine:
        _wait(machine, lambda: LISTENS in said(), folder)
        yield f"fastboot+udp://127.0.0.1:{port}"


def _drive(disk: Path) -> list[str]:
    return ["-drive", f"if=none,id=disk0,format=raw,file={escaped(disk)}", "-device", "virtio-blk-pci,drive=disk0"]


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run QEMU for the duration of the block. It dies with this process; its output goes to a file."""
    with (folder / COMPLAINTS).open("w+b") as complaints:
        machine = start(command, complaints)
        try:
            yield machine
        finally:
            machine.terminate()  # QEMU flushes its buffers
            try:
                machine.wait(END)
            except subprocess.TimeoutExpired:
                machine.kill()
                machine.wait()
            if machine.stdout:
                machine.stdout.close()


def _wait(machine: subprocess.Popen[bytes], ready: Callable[[], bool], folder: Path) -> None:
    """Wait until the machine started in `folder` is `ready`."""
    deadline = time.monotonic() + START
    while not ready():
        if machine.poll() is not None:
            why = _last(folder / COMPLAINTS) or _last(folder / LOG) or "no message"
            raise ToolError(f"QEMU ended with exit code {machine.returncode}: {why}")
        if time.monotonic() > deadline:
            said = _last(folder / LOG) or "nothing"
            raise BootCheckError(f"the machine was not ready after {START:g} s; its last output: {said}")
        time.sleep(LOOK)


def _two_ports() -> int:
    """A free port of this machine whose successor is free as well."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise ToolError("this machine has no two free ports")


def _udp_port() -> int:
    """A free UDP port of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _make_disk(disk: Path, size: int) -> None:
    """Create a blank disk if there is none. An empty file counts as none."""
    try:
        if disk.exists() and disk.stat().st_size:
            return
        with disk.open("ab") as file:
            file.truncate(size)
    except OSError as error:
        raise CapacityError(f"cannot make a disk of {size} bytes: {error.strerror}", where=str(disk)) from error
