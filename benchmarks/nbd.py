# SPDX-License-Identifier: Apache-2.0
"""Our NBD server against nbdkit's file plugin, our client against nbdcopy: the same image, run in turn.

usage: python benchmarks/nbd.py [--size MiB] [--runs N] [--scratch DIR]

The server rows use one client for both (nbdcopy for sequential reads, qemu-img bench for random ones), the client rows
one server (nbdkit). What was copied is compared with the image. Prints a markdown table: medians and ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from erofs_edge.toolbox.prefix import find

MIB = 1 << 20
RANDOM_READS = 20_000
SERVE = "from erofs_edge.cli.main import main; main()"
COPY = """
import sys
from erofs_edge.transport.nbd.connect import parse_address
from erofs_edge.transport.nbd.parallel import Connections
connection = Connections(parse_address(sys.argv[1]))
buffer = memoryview(bytearray(8 << 20))
with open(sys.argv[2], "wb", buffering=0) as out:
    for at in range(0, connection.size, len(buffer)):
        part = buffer[: connection.size - at]
        connection.read_into(at, part)
        out.write(part)
"""


@contextlib.contextmanager
def nbdkit(image: Path, path: Path) -> Iterator[str]:
    """nbdkit's file plugin on a socket: its address."""
    root = find("nbdkit", host=False).parent.parent / "roots/oracles-nbd"
    (plugin,) = root.glob("usr/lib/*/nbdkit/plugins/nbdkit-file-plugin.so")
    command = [str(find("nbdkit", host=False)), "-f", "-U", str(path), str(plugin), f"file={image}"]
    yield from _running(command, path)


@contextlib.contextmanager
def ours(image: Path, path: Path) -> Iterator[str]:
    """Our server, in a process of its own."""
    yield from _running([sys.executable, "-c", SERVE, "serve", str(image), "--socket", str(path)], path)


def _running(command: list[str], path: Path) -> Iterator[str]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not path.exists():
            if process.poll() is not None:
                sys.exit(f"{command[0]} ended with {process.returncode}")
            time.sleep(0.02)
        yield f"nbd+unix:///?socket={path}"
    finally:
        process.terminate()
        process.wait()
        path.unlink(missing_ok=True)


def sequential(address: str, out: Path) -> None:
    """nbdcopy of the whole image."""
    subprocess.run([str(find("nbdcopy", host=False)), address, str(out)], check=True)


def scattered(address: str, out: Path) -> None:
    """Reads of 4 KiB, 16 under way, all over the image."""
    out.unlink(missing_ok=True)
    step = 1_048_573 * 4096
    command = [str(find("qemu-img", host=False)), "bench", "-f", "raw", "-U", "-c", str(RANDOM_READS), "-d", "16"]
    command += ["-s", "4096", "-S", str(step % (out.parent.joinpath("image").stat().st_size - 4096) // 4096 * 4096)]
    subprocess.run([*command, address], check=True, stdout=subprocess.DEVNULL)


def our_copy(address: str, out: Path) -> None:
    """Our client, into a file."""
    subprocess.run([sys.executable, "-c", COPY, address, str(out)], check=True)


def timed(work: Callable[[str, Path], None], address: str, out: Path) -> float:
    started = time.perf_counter()
    work(address, out)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        image, out, path = Path(folder) / "image", Path(folder) / "out", Path(folder) / "socket"
        with image.open("wb") as file:
            for _ in range(arguments.size):
                file.write(os.urandom(MIB))
        rows = [
            ("server, sequential (nbdcopy)", (ours, sequential), (nbdkit, sequential), True),
            ("server, 4 KiB at random (qemu-img bench)", (ours, scattered), (nbdkit, scattered), False),
            ("client, copy into a file (server: nbdkit)", (nbdkit, our_copy), (nbdkit, sequential), True),
        ]
        print("| what | ours, s | peer, s | throughput of the peer's |")
        print("| --- | --- | --- | --- |")
        for name, mine, peer, copies in rows:
            times: list[list[float]] = [[], []]
            for _ in range(arguments.runs):
                for side, (server, work) in enumerate((mine, peer)):
                    with server(image, path) as address:
                        times[side].append(timed(work, address, out))
                    if copies and not filecmp.cmp(image, out, shallow=False):
                        sys.exit(f"{name}: what was copied is not the image")
            first, second = median(times[0]), median(times[1])
            print(f"| {name} | {first:.2f} | {second:.2f} | {second / first:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
