# SPDX-License-Identifier: Apache-2.0
"""Diskless starts in QEMU: what they read, and what a profile with prefetch saves on a slow link.

usage: python benchmarks/diskless.py [--out FOLDER] [--work FOLDER] [--rate MBIT] [--round-trip MS] [--pairs N]

The system is built twice, the second time by a trace of the first one's start; the second start fetches ahead what a
trace of its own names. Both then start over a link of ours that is slow: 20 Mbit/s, 20 ms. The boot image comes by TFTP
from QEMU itself and is not slowed, so seconds count from the kernel on.

With --pairs: that many starts from a local disk and as many diskless ones without a limit, in turn, and nothing else:
seconds from the kernel on, and the seconds of processors that QEMU took for all of it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.diskless import SYSTEM, DisklessRecord, Wish, diskless_smoke
from erofs_edge.qemu.smoke import smoke
from erofs_edge.serve.export import FileExport
from erofs_edge.serve.server import Server
from erofs_edge.simulator.shaped import ShapedProxy
from erofs_edge.trace.record import Trace, write_trace
from erofs_edge.trust.signer import open_signer

EDGE = str(Path(sys.executable).with_name("erofs-edge"))
BOARD = Path("boards/qemu-aarch64.yaml")
TIMEOUT = 900.0
Runs = tuple[tuple[int, int], ...]


def build(out: Path, *words: str) -> None:
    """The board, where it is not up to date."""
    command = [EDGE, "build", str(BOARD), "-o", str(out), "--relock-if-gone", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start(out: Path) -> tuple[DisklessRecord, Trace]:
    """A start over a link without limits, and its trace."""
    board = load_board(BOARD)
    wish = Wish(trace=True)
    record, trace = diskless_smoke(board, out, open_signer(board.value.sign.key), wish=wish, timeout=TIMEOUT)
    assert trace is not None
    return record, trace


def slow_start(out: Path, prefetch: Runs, *, rate: float, delay: float) -> tuple[DisklessRecord, int, int]:
    """A start over a slow link; requests and bytes that the server saw until the proof."""
    export = FileExport(out / "system.img")
    server = Server({SYSTEM: export})
    board = load_board(BOARD)
    try:
        with ShapedProxy(server.listen("127.0.0.1", 0), rate=rate, delay=delay) as link:
            wish = Wish(prefetch=prefetch, port=link.port)
            record, _ = diskless_smoke(board, out, open_signer(board.value.sign.key), wish=wish, timeout=TIMEOUT)
            return record, export.activity.requests, export.activity.bytes_read
    finally:
        server.stop()
        export.close()


def since_kernel(stages: list[tuple[str, float]]) -> float:
    """Seconds from the kernel's start to the last stage."""
    times = dict(stages)
    return max(times.values()) - times["kernel"]


def times(record: DisklessRecord) -> float:
    return since_kernel([(stage.stage, stage.seconds) for stage in record.stages])


def processors() -> float:
    """Seconds of all children that have ended: QEMU's."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def pairs(out: Path, count: int) -> None:
    """Local and diskless in turn; a table of the medians."""
    found: dict[str, list[tuple[float, float]]] = {"local disk": [], "diskless": []}
    for _ in range(count):
        before = processors()
        local = smoke(load_board(BOARD).value, out, timeout=TIMEOUT)
        seconds = since_kernel([(stage.stage, stage.seconds) for stage in local.stages if stage.stage != "checks"])
        found["local disk"].append((seconds, processors() - before))
        before = processors()
        record, _ = start(out)
        found["diskless"].append((times(record), processors() - before))
    print("| start | s from the kernel on | CPU s |\n| --- | --- | --- |")
    middles = {}
    for name, rows in found.items():
        middles[name] = [median(column) for column in zip(*rows, strict=True)]
        texts = (", ".join(f"{value:.1f}" for value in column) for column in zip(*rows, strict=True))
        print(f"| {name} | {' | '.join(texts)} |")
    ratios = (f"{a / b:.2f}x" for a, b in zip(middles["diskless"], middles["local disk"], strict=True))
    print(f"| ratio of the medians | {' | '.join(ratios)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/qemu-aarch64"))
    parser.add_argument("--work", type=Path, help="Keep the second build and the traces here.")
    parser.add_argument("--rate", type=float, default=20.0, help="Mbit/s")
    parser.add_argument("--round-trip", type=float, default=20.0, help="ms")
    parser.add_argument("--runs", type=int, default=1, help="Accepted as by the others; each start is made once.")
    parser.add_argument("--pairs", type=int, default=0)
    options = parser.parse_args()
    if options.pairs:
        build(options.out)
        pairs(options.out, options.pairs)
        return
    link = {"rate": options.rate * 1e6 / 8, "delay": options.round_trip / 2000}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        build(options.out)
        local = smoke(load_board(BOARD).value, options.out, timeout=TIMEOUT)
        plain, trace = start(options.out)
        write_trace(trace, work / "plain.trace")
        build(work / "profiled", "--profile", str(work / "plain.trace"))
        profiled, second = start(work / "profiled")
        write_trace(second, work / "profiled.trace")
        slow, slow_requests, slow_bytes = slow_start(options.out, (), **link)
        ahead, ahead_requests, ahead_bytes = slow_start(work / "profiled", second.runs(), **link)
    of_local = since_kernel([(stage.stage, stage.seconds) for stage in local.stages if stage.stage != "checks"])
    print("| start | s from the kernel on | requests | read | of the image | read/touched |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| local disk | {of_local:.1f} | | | | |")
    for title, one in (("diskless", plain), ("diskless, laid out by a trace", profiled)):
        print(
            f"| {title} | {times(one):.1f} | {one.requests} | {one.bytes_read / 1e6:.2f} MB "
            f"| {one.bytes_read / one.image_bytes:.1%} | {one.bytes_read / one.bytes_touched:.3f} |"
        )
    for title, one, requests, size in (
        ("slow link", slow, slow_requests, slow_bytes),
        ("slow link, laid out and fetched ahead", ahead, ahead_requests, ahead_bytes),
    ):
        print(f"| {title} | {times(one):.1f} | {requests} | {size / 1e6:.2f} MB | | |")
    print()
    print(f"requests: {ahead_requests / slow_requests:.2f}x; time: {times(ahead) / times(slow):.2f}x")


if __name__ == "__main__":
    main()
