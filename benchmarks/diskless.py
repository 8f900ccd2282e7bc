# SPDX-License-Identifier: Apache-2.0
"""Diskless starts in QEMU: how much they read, and what prefetching by a profile saves on a slow link.

usage: python benchmarks/diskless.py [--out FOLDER] [--work FOLDER] [--rate MBIT] [--round-trip MS] [--pairs N]

The system is built twice, the second time with a trace of the first one's start as its profile; the second system
prefetches what a trace of its own start lists. Both then start over a simulated slow link: 20 Mbit/s, 20 ms. The boot
image comes from QEMU itself by TFTP, at full speed, so seconds count from the kernel on.

With --pairs: only that many starts from a local disk and as many diskless ones over an unlimited link, alternating:
from the kernel to the login prompt, in seconds of wall time and of QEMU's CPU time.
The local machine has the same network card and is stopped at the same point, so none of the system's own checks is
included. Both create a new file system for /data at each start, on the disk or over the network; a third kind keeps it
in memory.
With --boots: the seconds until the kernel starts, with the boot image by TFTP and over HTTP, alternating.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import BOARD, arguments, build_board, children, heads, medians, row, running

from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.built import load_built, machine_command, run_folder
from erofs_edge.qemu.console import Console
from erofs_edge.qemu.diskless import SYSTEM, DisklessRecord, Wish, diskless_smoke
from erofs_edge.qemu.machine import Wiring, find_qemu
from erofs_edge.qemu.run import run
from erofs_edge.qemu.smoke import Observer, StageTime, data_filesystem, smoke
from erofs_edge.qemu.verdict import Expected, Watch
from erofs_edge.serve.export import FileExport
from erofs_edge.serve.server import Server
from erofs_edge.simulator.shaped import ShapedProxy
from erofs_edge.trace.record import Trace, write_trace
from erofs_edge.trust.signer import open_signer

TIMEOUT = 900.0
Runs = tuple[tuple[int, int], ...]
CARD = ("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile=")


def start(
    out: Path, wish: Wish, seen: Callable[[StageTime], None] = lambda stage: None
) -> tuple[DisklessRecord, Trace | None]:
    """Start over an unlimited link. Return the trace, if wanted."""
    board, observer = load_board(BOARD), Observer(TIMEOUT, seen)
    return diskless_smoke(board, out, open_signer(board.value.sign.key), wish=wish, observer=observer)


def local_start(out: Path) -> tuple[float, float]:
    """Start from the build's disk. Return the seconds from the kernel to the login prompt: (wall time, CPU time)."""
    board, built, emulator = load_board(BOARD).value, load_built(out), find_qemu()
    watch = Watch(Expected(built.root_hash, "a", data_filesystem(board)))
    clock = Processors()
    with run_folder(out) as folder:
        command = machine_command(board, built, emulator, folder, Wiring(built.disk, extra=CARD))
        verdict = run(command, watch, Console(), timeout=TIMEOUT, seen=lambda event: clock.see(event.match.name))
    assert verdict.ok, verdict
    return since_kernel(list(watch.reached.items())), clock.seconds()


def slow_start(out: Path, prefetch: Runs, *, rate: float, delay: float) -> tuple[DisklessRecord, int, int]:
    """Start over a slow link. Also return the requests and bytes that the server counted until the system was
    verified."""
    export = FileExport(out / "system.img")
    server = Server({SYSTEM: export})
    board = load_board(BOARD)
    try:
        with ShapedProxy(server.listen("127.0.0.1", 0), rate=rate, delay=delay) as link:
            wish = Wish(prefetch=prefetch, port=link.port)
            signer = open_signer(board.value.sign.key)
            record, _ = diskless_smoke(board, out, signer, wish=wish, observer=Observer(TIMEOUT))
            return record, export.activity.requests, export.activity.bytes_read
    finally:
        server.stop()
        export.close()


def since_kernel(stages: list[tuple[str, float]]) -> float:
    """Return the seconds from the kernel's start to the last stage."""
    times = dict(stages)
    return max(times.values()) - times["kernel"]


def times(record: DisklessRecord) -> float:
    return since_kernel([(stage.stage, stage.seconds) for stage in record.stages])


class Processors:
    """CPU seconds of QEMU from the kernel's start to its own end."""

    def __init__(self) -> None:
        self._before = 0.0

    def see(self, stage: str) -> None:
        if stage == "kernel" and not self._before:
            self._before = children() + sum(map(_running, Path("/proc/self/task").glob("*/children")))

    def seconds(self) -> float:
        return children() - self._before


def _running(listed: Path) -> float:
    """Return the CPU seconds of running children, whichever thread started them."""
    return sum(map(running, listed.read_text().split()))


def diskless_start(out: Path, *, on_disk: bool) -> tuple[float, float]:
    """Like `local_start`, but diskless; `on_disk`: with a new disk over the network."""
    with tempfile.TemporaryDirectory() as folder:
        wish, clock = Wish(data=Path(folder) / "data.img" if on_disk else None), Processors()
        record, _ = start(out, wish, lambda stage: clock.see(stage.stage))
    return times(record), clock.seconds()


def pairs(out: Path, count: int) -> None:
    """Print a table of medians of local and diskless starts, alternating."""
    kinds: dict[str, Callable[[], tuple[float, float]]] = {
        "local disk": lambda: local_start(out),
        "diskless, /data over the network": lambda: diskless_start(out, on_disk=True),
        "diskless, /data in memory": lambda: diskless_start(out, on_disk=False),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(count):
        for name, kind in kinds.items():
            found[name].append(kind())
            print(f"{name}: {found[name][-1]}", file=sys.stderr, flush=True)
    heads("start", "s from the kernel on", "CPU s", "to the local disk: s / CPU s")
    local, *_ = map(medians, found.values())
    for name, rows in found.items():
        texts = (", ".join(f"{value:.1f}" for value in column) for column in zip(*rows, strict=True))
        ratios = (f"{a / b:.2f}x" for a, b in zip(medians(rows), local, strict=True))
        row(name, *texts, " / ".join(ratios))


def boots(out: Path, count: int) -> None:
    """Print the seconds that the boot image takes by TFTP and over HTTP, alternating."""
    found: dict[bool, list[float]] = {False: [], True: []}
    size = 0
    for _ in range(count):
        for http, rows in found.items():
            record, _ = start(out, Wish(http=http))
            stages = {stage.stage: stage.seconds for stage in record.stages}
            rows.append(stages["slot"] - stages["u-boot"])
            size = record.fit_bytes
    heads(f"boot image of {size / 1e6:.1f} MB", "s, addressing by DHCP included")
    for http, rows in found.items():
        row("HTTP" if http else "TFTP", ", ".join(f"{value:.1f}" for value in rows))


def main() -> None:
    parser = arguments(__doc__, board=True)
    parser.add_argument("--work", type=Path, help="where to keep the second build and the traces")
    parser.add_argument("--rate", type=float, default=20.0, help="Mbit/s (default: 20)")
    parser.add_argument("--round-trip", type=float, default=20.0, help="ms (default: 20)")
    parser.add_argument("--pairs", type=int, default=0, help="only so many starts of each kind")
    parser.add_argument("--boots", type=int, default=0, help="only so many by TFTP and over HTTP")
    options = parser.parse_args()
    if options.pairs or options.boots:
        build_board(options.out)
        if options.pairs:
            pairs(options.out, options.pairs)
        if options.boots:
            boots(options.out, options.boots)
        return
    link = {"rate": options.rate * 1e6 / 8, "delay": options.round_trip / 2000}
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        build_board(options.out)
        local = smoke(load_board(BOARD).value, options.out, observer=Observer(TIMEOUT))
        plain, trace = start(options.out, Wish(trace=True))
        assert trace is not None
        write_trace(trace, work / "plain.trace")
        build_board(work / "profiled", "--profile", str(work / "plain.trace"))
        profiled, second = start(work / "profiled", Wish(trace=True))
        assert second is not None
        write_trace(second, work / "profiled.trace")
        slow, slow_requests, slow_bytes = slow_start(options.out, (), **link)
        ahead, ahead_requests, ahead_bytes = slow_start(work / "profiled", second.runs(), **link)
    of_local = since_kernel([(stage.stage, stage.seconds) for stage in local.stages if stage.stage != "checks"])
    heads("start", "s from the kernel on", "requests", "read", "of the image", "read/touched")
    row("local disk", f"{of_local:.1f}", "", "", "", "")
    for title, one in (("diskless", plain), ("diskless, laid out by a trace", profiled)):
        row(
            title, f"{times(one):.1f}", one.requests, f"{one.bytes_read / 1e6:.2f} MB",
            f"{one.bytes_read / one.image_bytes:.1%}", f"{one.bytes_read / one.bytes_touched:.3f}",
        )  # fmt: skip
    for title, one, requests, size in (
        ("slow link", slow, slow_requests, slow_bytes),
        ("slow link, laid out and fetched ahead", ahead, ahead_requests, ahead_bytes),
    ):
        row(title, f"{times(one):.1f}", requests, f"{size / 1e6:.2f} MB", "", "")
    print()
    print(f"requests: {ahead_requests / slow_requests:.2f}x; time: {times(ahead) / times(slow):.2f}x")


if __name__ == "__main__":
    main()
