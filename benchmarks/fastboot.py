# SPDX-License-Identifier: Apache-2.0
"""Our fastboot client against Google's: the same file to the same real U-Boot in QEMU over UDP, alternating.

usage: python benchmarks/fastboot.py [--size MiB] [--runs N] [--scratch DIR] [--only download] [--simulated]

`--simulated`: to the simulator's device over TCP and UDP instead, both clients as processes, with their CPU time: a
figure that hardly depends on other load.

`download` puts the file into the device's memory; `flash` also writes it to a partition of the emulated SD card, whose
content is compared with the file each time; `flash, sparse` does that with an Android sparse file of the same size, in
which every other MiB is zeros that are not sent. Prints a markdown table: medians in MiB/s of content, and the ratios.
Ours is listed twice, with the CPU seconds of the commands: within this process, as a program would use it, and as the
command, which includes Python's start.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import BLOCK, BOARD, EDGE, MIB, arguments, children, compiled, heads, medians, row

from erofs_edge.disk import android_sparse, gpt
from erofs_edge.flash.fastboot import Fastboot
from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.attach import attached
from erofs_edge.simulator.fastboot import FastbootDevice, serve_tcp, serve_udp
from erofs_edge.toolbox.prefix import find
from erofs_edge.transport.fastboot import client
from erofs_edge.transport.fastboot.link import open_device

OURS = [*EDGE, "fastboot"]
VERBS = ("download", "flash", "flash, sparse")
START = 2 * MIB  # of the partition on the card


def table(size: int, room: int) -> bytes:
    """Return a disk of `size` bytes with one partition of `room` bytes at START: its first sectors."""
    part = gpt.Partition("bench", gpt.TYPE_LINUX, gpt.guid_from(b"b", "bench"), START // 512, (START + room) // 512 - 1)
    return gpt.encode(gpt.Table(gpt.guid_from(b"b", ""), size // 512, (part,)))[0][: 34 * 512]


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def ours(address: str, image: Path, verb: str) -> None:
    with open_device(address) as device:
        fastboot = Fastboot(device)
        if verb == "download":
            fastboot.stage(image)
        else:
            (name,) = fastboot.named("bench")  # asks whether it has slots, as the commands do: 0.7 s of this U-Boot
            fastboot.flash(name, image)


def command(address: str, image: Path, verb: str) -> None:
    words = ["stage", str(image)] if verb == "download" else ["flash", "bench", str(image)]
    subprocess.run([*OURS, "-s", address, *words], check=True, capture_output=True, env=compiled(image.parent))


def google(address: str, image: Path, verb: str) -> None:
    words = ["stage", str(image)] if verb == "download" else ["flash", "bench", str(image)]
    subprocess.run([str(find("fastboot", host=False)), "-s", address, *words], check=True, capture_output=True)


def sparse(content: bytes, path: Path) -> bytes:
    """Write an Android sparse file. Return what it stands for: every other MiB of the content."""
    kept = [(at, at + MIB) for at in range(0, len(content), 2 * MIB)]
    (piece,) = android_sparse.plan_pieces(len(content), kept, len(content) + MIB)
    path.write_bytes(b"".join(piece.encode(lambda offset, length: content[offset : offset + length])))
    return b"".join(content[at : at + MIB] + bytes(MIB) for at in range(0, len(content), 2 * MIB))[: len(content)]


def simulated(size: int, runs: int, image: Path) -> None:
    """Flash the same file to a device in memory with both clients, alternating; prints a row for each transport."""
    environment = compiled(image.parent)
    programs = {"ours": OURS, "google": [str(find("fastboot", host=False))]}
    heads(f"{runs} runs", "ours: s, CPU s", "Google's: s, CPU s", "CPU, ours/Google's")
    for wire, serve, length in (("tcp", serve_tcp, size * MIB), ("udp", serve_udp, min(size, 16) * MIB)):
        with image.open("r+b") as file:
            file.truncate(length)
        device = FastbootDevice({"bench": bytearray(length)}, memory=length + MIB)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
        with serve(device) as address:
            for _ in range(runs):
                for who, program in programs.items():
                    device.partitions["bench"][0:BLOCK] = bytes(BLOCK)
                    words = [*program, "-s", address, "flash", "bench", str(image)]
                    before = children()
                    seconds = timed(lambda: subprocess.run(words, check=True, capture_output=True, env=environment))  # noqa: B023
                    found[who].append((seconds, children() - before))
                    assert bytes(device.partitions["bench"][0:length]) == image.read_bytes(), who
        mine, theirs = (medians(found[who]) for who in programs)
        cells = (f"{one[0]:.2f}, {one[1]:.2f}" for one in (mine, theirs))
        row(f"{wire}, {length // MIB} MiB", *cells, f"{mine[1] / theirs[1]:.2f}x")


def main() -> None:
    parser = arguments(__doc__, runs=5)
    parser.add_argument("--size", type=int, default=32, help="MiB (default: 32)")
    parser.add_argument("--only", action="append", choices=VERBS, help="default: all")
    parser.add_argument("--simulated", action="store_true", help="to the simulator's device")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        image, disk = Path(name) / "image", Path(name) / "card.img"
        content = b"".join(map(random.Random(1).randbytes, [MIB] * options.size))
        image.write_bytes(content)
        if options.simulated:
            simulated(options.size, options.runs, image)
            return
        with attached(load_board(BOARD), Path(name), "fastboot", disk) as found:
            address = "udp:" + found.partition("://")[2]
            raw = table(disk.stat().st_size, options.size * MIB)
            with open_device(address) as device:
                device.run(client.download(len(raw), [raw]))
                device.run(client.command("flash:gpt"))
            packed = Path(name) / "sparse"
            files = {"download": (image, content), "flash": (image, content)}
            files["flash, sparse"] = packed, sparse(content, packed)
            heads(
                f"{options.size} MiB, {options.runs} runs, MiB/s", "ours", "our command", "Google's",
                "speed to Google's: ours, our command", "CPU s: our command, Google's",
            )  # fmt: skip
            first = [*OURS, "-s", address, "getvar", "product"]  # compiles the modules
            subprocess.run(first, check=True, env=compiled(Path(name)), capture_output=True)
            for verb in options.only or VERBS:
                compare(address, verb, *files[verb], disk, options.runs)


def compare(address: str, verb: str, image: Path, want: bytes, disk: Path, runs: int) -> None:
    """Run both clients in turn, to a card that holds something else each time; prints a row."""
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "command": [], "google": []}
    for _ in range(runs):
        for who, action in (("ours", ours), ("command", command), ("google", google)):
            with disk.open("r+b") as file:
                for at in range(0, len(want), MIB):
                    os.pwrite(file.fileno(), b"other" * 800, START + at)
            before = children()
            seconds = timed(lambda: action(address, image, verb))  # noqa: B023
            found[who].append((len(want) / MIB / seconds, children() - before))
            if verb != "download":
                with disk.open("rb") as file:
                    file.seek(START)
                    assert file.read(len(want)) == want, who
    (mine, _), (mine_started, busy), (theirs, theirs_busy) = map(medians, found.values())
    speeds = (f"{speed:.1f}" for speed in (mine, mine_started, theirs))
    ratios = f"{mine / theirs:.2f}x, {mine_started / theirs:.2f}x"
    row(verb, *speeds, ratios, f"{busy:.2f}, {theirs_busy:.2f}")


if __name__ == "__main__":
    main()
