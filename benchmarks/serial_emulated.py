# SPDX-License-Identifier: Apache-2.0
"""Throughput of a real U-Boot's console in QEMU: the emulated UART with Debian's U-Boot, and the virtio console of the
U-Boot for flashing, which `--to qemu:serial` uses.

usage: python benchmarks/serial_emulated.py [--kib N] [--runs N] [--out FOLDER]

The same incompressible bytes go to the memory of both machines in turn, by YMODEM; U-Boot's crc32 is compared with
ours. The other machine is stopped meanwhile. The rate depends on the host's load; QEMU's CPU time per byte is the
actual cost. Prints a markdown table, medians of the runs.
"""

from __future__ import annotations

import random
import signal
import statistics
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import BOARD, arguments, build_board, heads, row, running

from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.flashing import MACHINE, RATE, console_arguments, flashing_tree
from erofs_edge.qemu.machine import dump_tree, find_qemu, machine_arguments, qemu_of
from erofs_edge.sources.cache import Cache
from erofs_edge.transport.serial import uboot, ymodem
from erofs_edge.transport.serial.console import Console
from erofs_edge.transport.serial.line import Exchange
from erofs_edge.transport.serial.port import SocketPort, drive
from erofs_edge.u_boot.compile import FLASHING, compiled

LATENCY, LISTEN = 2.0, 20.0
"""seconds, as in flash/serial.py for emulated machines"""


@dataclass
class Machine:
    """One U-Boot at its prompt. `baud` determines how many blocks are in flight."""

    process: subprocess.Popen[bytes]
    port: SocketPort
    console: Console
    memory: int
    rates: list[float]
    costs: list[float]

    def take(self, data: bytes) -> None:
        """Send the bytes to the machine's memory; record bytes per second and CPU time per byte."""
        began, used = time.monotonic(), running(self.process.pid)
        drive(self._send(data), self.port)
        self.rates.append(len(data) / (time.monotonic() - began))
        self.costs.append((running(self.process.pid) - used) / len(data))
        said = drive(self.console.run(f"crc32 {self.memory:x} {len(data):x}", wait=60), self.port).output
        assert f"{zlib.crc32(data):08x}" in said, said

    def _send(self, data: bytes) -> Exchange[None]:
        yield from self.console.start(f"loady {self.memory:x}", mark=True)
        yield from ymodem.send(data, baud=self.console.baud, latency=LATENCY)
        yield from self.console.finish()


@contextmanager
def started(words: list[str], socket: Path, baud: int) -> Iterator[Machine]:
    """Yield a machine whose console is at that socket."""
    program = str(find_qemu().program)
    with subprocess.Popen([program, *words, "-monitor", "none"], stderr=subprocess.DEVNULL) as process:
        try:
            while not socket.exists():
                assert process.poll() is None
                time.sleep(0.1)
            port, console = SocketPort(socket), Console(baud, LATENCY, LISTEN)
            drive(console.open(), port)
            memory = drive(uboot.learn(console), port).staging[0]
            yield Machine(process, port, console, memory, [], [])
        finally:
            process.kill()


def emulated_uart(out: Path, folder: Path) -> tuple[list[str], Path]:
    socket = folder / "uart"
    machine = machine_arguments(qemu_of(load_board(BOARD).value), out / "u-boot.bin")
    return [*machine, "-serial", f"unix:{socket},server=on,wait=on"], socket


def virtio_console(folder: Path) -> tuple[list[str], Path]:
    socket, bios, tree = folder / "virtio", folder / "u-boot.bin", folder / "control.dtb"
    bios.write_bytes(compiled(FLASHING, Cache()).image)
    tree.write_bytes(flashing_tree(dump_tree(find_qemu(), MACHINE, bios), "lab", prompt=True))
    machine = [*machine_arguments(MACHINE, bios), "-dtb", str(tree), *console_arguments(socket)]
    return [*machine, "-serial", "null"], socket


def main() -> None:
    parser = arguments(__doc__, runs=5, board=True)
    parser.add_argument("--kib", type=int, default=64, help="default: 64")
    options = parser.parse_args()
    build_board(options.out)
    data = random.Random(1).randbytes(options.kib << 10)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        uart, virtio = emulated_uart(options.out, Path(name)), virtio_console(Path(name))
        with started(*uart, 115200) as first, started(*virtio, RATE) as second:
            for _ in range(options.runs):
                for machine in (first, second):
                    other = second if machine is first else first
                    other.process.send_signal(signal.SIGSTOP)  # it would look for input all the time
                    machine.take(data)
                    other.process.send_signal(signal.SIGCONT)
    heads("console", "KB/s", "CPU time of QEMU, µs per byte")
    for title, machine in (("UART, Debian's U-Boot", first), ("virtio, the U-Boot for flashing", second)):
        rate, cost = statistics.median(machine.rates), statistics.median(machine.costs)
        row(title, f"{rate / 1000:.1f}", f"{cost * 1e6:.1f}")


if __name__ == "__main__":
    main()
