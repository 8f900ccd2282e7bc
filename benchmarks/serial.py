# SPDX-License-Identifier: Apache-2.0
"""Which part of a serial line's rate is payload, and what errors cost, in simulated time: to a simulated U-Boot, whose
receiver behaves like the real one, on a line limited to its rate.

usage: python benchmarks/serial.py [--windows N] [--seeds N]

Writes N windows of incompressible data, with all steps of each: querying what is there, starting the receiver, the
checksum in memory, writing, reading back. The disk is compared with the data each time. Errors hit every hundredth
block once: a byte is changed, lost, doubled, or followed by an extra one, in either direction. Prints a markdown table;
other load on the machine does not change its numbers.
"""

from __future__ import annotations

import random

from common import arguments, heads, row

from erofs_edge.simulator.serial_line import Fault, SerialLine, no_fault
from erofs_edge.simulator.uboot import UBoot
from erofs_edge.transport.serial import uboot
from erofs_edge.transport.serial.console import Console
from erofs_edge.transport.serial.port import drive

RATES = (115200, 921600)
BLOCK_BYTES = 1033  # on the line, of a block and the gap behind it


def damage(seed: int) -> Fault:
    """Damage one byte of every hundredth block."""
    chance = random.Random(seed)

    def fault(_way: str, _number: int, byte: int) -> bytes:
        if chance.random() >= 0.01 / BLOCK_BYTES:
            return bytes([byte])
        changed, added = byte ^ 1 << chance.randrange(8), chance.randrange(256)
        return chance.choice((bytes([changed]), b"", bytes([byte, byte]), bytes([byte, added])))

    return fault


def seconds(baud: int, data: bytes, fault: Fault) -> float:
    """Return the seconds on the line that writing the data takes."""
    device = UBoot(bytearray(len(data) + (1 << 20)), baud=baud)
    line, console = SerialLine(device, baud, fault=fault), Console(baud, 0.1)
    drive(console.open(), line)
    told = drive(uboot.learn(console), line)
    disk = uboot.Disk(console, told, drive(uboot.disks(console, told), line)[0])
    began, step = line.now, uboot.window_size(baud)
    for at in range(0, len(data), step):
        drive(disk.write(at, data[at : at + step]), line)
    assert device.disk[: len(data)] == data
    return line.now - began


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--windows", type=int, default=4, help="default: 4")
    parser.add_argument("--seeds", type=int, default=5, help="runs with errors (default: 5)")
    options = parser.parse_args()
    heads("line, baud", "bytes", "payload of the line's rate", "every 100th block damaged", "that costs")
    for baud in RATES:
        data = random.Random(baud).randbytes(options.windows * uboot.window_size(baud))
        ideal = len(data) * 10 / baud
        clean = seconds(baud, data, no_fault)
        hurt = [seconds(baud, data, damage(seed)) for seed in range(options.seeds)]
        row(
            baud, len(data), f"{ideal / clean:.1%}", f"{ideal / max(hurt):.1%} to {ideal / min(hurt):.1%}",
            f"{min(hurt) / clean - 1:.1%} to {max(hurt) / clean - 1:.1%}",
        )  # fmt: skip


if __name__ == "__main__":
    main()
