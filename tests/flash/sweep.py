# SPDX-License-Identifier: Apache-2.0
"""The power-cut sweep: an update of a simulated board over a transport, and every state that a cut may leave.

Each scenario is run once with a log of the operations that reach the disk. Then, for each operation of the log and each
model of the disk's cache, the power fails: the medium must start the old system or the new one, complete (or, if the
board was blank, must at least be repairable), and the same command must then complete, over the same transport.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from erofs_edge.disk import slots
from erofs_edge.flash.execute import flash
from erofs_edge.flash.fastboot_target import FastbootTarget
from erofs_edge.flash.fastboot_uboot import UBootTarget
from erofs_edge.flash.image import Image
from erofs_edge.flash.nbd import NbdTarget
from erofs_edge.flash.prepare import Wish, prepare, prepare_repair
from erofs_edge.flash.serial import Address, SerialTarget
from erofs_edge.flash.target import Ability, Target
from erofs_edge.flash.update import read_layout
from erofs_edge.simulator import nbd
from erofs_edge.simulator.boot import Started, start
from erofs_edge.simulator.disk import FLUSH, Cache, SimulatedDisk, Write
from erofs_edge.simulator.fastboot import FastbootDevice, MemoryLink
from erofs_edge.simulator.fastboot_uboot import UBootFastboot
from erofs_edge.simulator.images import disk_image, opened
from erofs_edge.simulator.partitions import DiskPartitions
from erofs_edge.simulator.power import cut
from erofs_edge.simulator.serial_line import QuickLine
from erofs_edge.simulator.target import SimulatedTarget
from erofs_edge.simulator.uboot import UBoot
from erofs_edge.transport.fastboot.link import Device
from erofs_edge.transport.fastboot.uboot import consents

KINDS = ("blank", "update", "switch", "repair")
TRANSPORTS = ("block", "provisioning", "nbd", "fastboot", "u-boot", "serial")
SLOWER = {"u-boot": 30, "serial": 40}
"""how much longer a command takes than on a block device: it is repeated less often"""
ROUNDS = {"u-boot": 10, "serial": 10}
"""how often the cuts of one run are made, with different random numbers: they cost less than another run"""
SCENARIOS = [
    (kind, transport) for kind in KINDS for transport in TRANSPORTS if (kind, transport) != ("repair", "u-boot")
]
"""a U-Boot is asked for no pieces smaller than these slots: a repair takes them for another system"""


def quiet(_label: str) -> nullcontext[Callable[[int, int], None]]:
    return nullcontext(lambda done, total: None)


@dataclass
class Board:
    """Builds v1 and v2, and a board that is reached over a transport."""

    folder: Path
    images: dict[int, Path] = field(default_factory=dict)
    roots: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for version in (1, 2):
            self.images[version] = disk_image(self.folder / f"v{version}.img", version)
            begun = started(bytearray(self.images[version].read_bytes()))
            assert begun is not None
            self.roots[version] = begun.root_hash
        with Image(self.images[1]) as image:
            layout = read_layout(image)
        assert layout is not None
        self.places = layout.places
        self.size = self.images[1].stat().st_size

    def target(self, disk: SimulatedDisk, transport: str) -> Target:
        if transport == "block":
            return SimulatedTarget(disk)
        if transport == "provisioning":
            return SimulatedTarget(disk, Ability.READ | Ability.HASH | Ability.COPY)
        if transport == "nbd":
            return NbdTarget(nbd.connect(disk))
        if transport == "serial":
            return _serial(disk)
        if transport == "u-boot":
            link = Device(MemoryLink(UBootFastboot(DiskPartitions(disk), quirks=frozenset({"no-fetch", "no-slots"}))))
            uboot = link.run(consents())
            assert uboot is not None
            return UBootTarget(link, uboot, self.places, self.size)
        device = FastbootDevice(DiskPartitions(disk), memory=24 << 10)  # several downloads for one partition
        return FastbootTarget(Device(MemoryLink(device)), self.places, self.size)

    def before(self, kind: str, random: Random) -> bytearray:
        """Return the initial content of the disk."""
        if kind == "blank":
            return bytearray(self.size)
        disk = bytearray(self.images[1].read_bytes())
        self._mark(disk, "a", "good")
        if kind == "switch":  # v2 lies in slot b already, for instance because it was tried and failed
            self._take(disk, 2, "b")
            self._mark(disk, "b", "bad")
        if kind == "repair":
            slot = random.choice("ab")  # one that runs, or the other one; somebody has to be whole
            for name, blocks in (f"boot_{slot}", 1), (f"system_{slot}", 9):
                begin, _ = self.places[name]
                for _ in range(2):
                    disk[begin + random.randrange(blocks * 4096)] ^= 0x55
        return disk

    def run(self, kind: str, disk: SimulatedDisk, transport: str) -> None:
        """Run what the user would call."""
        target = self.target(disk, transport)
        if kind == "repair":
            for found in prepare_repair(self.images[1], target, None, quiet):
                flash(found.plan, target, quiet, found=found.found)
            return
        version = 1 if kind == "blank" else 2
        prepared = prepare(self.images[version], target, Wish(), quiet)
        flash(prepared.plan, target, quiet, found=prepared.found)

    def _mark(self, disk: bytearray, slot: str, standing: slots.Standing) -> None:
        at = self.places["misc"][0]
        state = slots.decode_state(bytes(disk[at : at + slots.STATE_SIZE]))[0]
        disk[at : at + slots.STATE_SIZE] = slots.encode_state(slots.mark(state, slot, standing))

    def _take(self, disk: bytearray, version: int, slot: str) -> None:
        raw = self.images[version].read_bytes()
        for base in ("boot", "system"):
            (source, end), (to, _) = self.places[f"{base}_a"], self.places[f"{base}_{slot}"]
            disk[to : to + end - source] = raw[source:end]


def _serial(disk: SimulatedDisk) -> SerialTarget:
    """A U-Boot at its console, with write-through."""

    def write(offset: int, data: bytes) -> bytes:
        if disk.log is not None:
            disk.log += [Write(offset, data), FLUSH]
        return data

    board = UBoot(disk.memory, on_write=write, memory=bytearray(16 << 20))
    return SerialTarget(QuickLine(board), Address(Path("line"), 115200, 115200, None, False), 0.1)


def started(memory: bytearray) -> Started | None:
    def read(offset: int, length: int) -> bytes:
        with memoryview(memory) as view:
            return bytes(view[offset : offset + length])

    return start(read, len(memory), opened)


@dataclass
class Outcome:
    """The results of a sweep. `bricked` and `unfinished` must stay empty; `old`, `new`, `nothing` are counts."""

    cuts: int = 0
    old: int = 0
    new: int = 0
    nothing: int = 0
    bricked: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)


def sweep(board: Board, kind: str, transport: str, cache: Cache, seed: int, outcome: Outcome, every: int = 1) -> None:
    """Run all cuts of one scenario. The command is repeated after every `every`th one, less often over a slow
    transport."""
    random = Random(f"{kind} {transport} {cache} {seed}")
    before = board.before(kind, random)
    disk = SimulatedDisk(bytearray(before), log=[])
    board.run(kind, disk, transport)
    log = disk.log or []
    wanted = board.roots[1 if kind in ("blank", "repair") else 2]
    first = started(disk.memory)
    assert first is not None and first.root_hash == wanted, "it does not even work without a cut"
    for number in range(ROUNDS.get(transport, 1) * (len(log) + 1)):
        count = number % (len(log) + 1)
        medium = cut(before, log, count, cache, random)
        what = f"{kind} over {transport}, {cache}, seed {seed}, cut {number} at operation {count} of {len(log)}"
        _judge(board, kind, started(medium), what, outcome)
        outcome.cuts += 1
        if number % (every * SLOWER.get(transport, 1)) == 0:
            again = SimulatedDisk(medium)
            board.run(kind, again, transport)
            found = started(again.memory)
            if found is None or found.root_hash != wanted or found.attempts != 1:
                outcome.unfinished.append(what)


def _judge(board: Board, kind: str, found: Started | None, what: str, outcome: Outcome) -> None:
    if found is None:
        outcome.nothing += 1
        if kind != "blank":  # a blank board has nothing to fall back to
            outcome.bricked.append(what)
    elif found.root_hash == board.roots[1]:
        outcome.old += 1
    elif found.root_hash == board.roots[2]:
        outcome.new += 1
    else:
        outcome.bricked.append(f"{what}: starts {found.root_hash.hex()}")
