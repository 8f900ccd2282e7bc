# SPDX-License-Identifier: Apache-2.0
"""Our NBD server against nbdkit's file plugin, our client against nbdcopy: the same image, run in turn.

usage: python benchmarks/nbd.py [--size MiB] [--runs N] [--scratch DIR]

The server rows use one client for both (nbdcopy for sequential reads, qemu-img bench for random ones), the client rows
one server (nbdkit). Python keeps its byte code, as it does for what is installed: every program runs once before what
counts. `flash --full --no-verify` is the whole command, which does what nbdcopy does, and looks whether
the image is signed. What was copied is compared with the image. Prints a markdown table: medians and ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import os
import resource
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
READS, WRITES = "reads", "writes"
SERVE = "from erofs_edge.cli.main import main; main()"
COPY_OUT = """
import os, sys
from erofs_edge.transport.nbd.connect import parse_address
from erofs_edge.transport.nbd.parallel import Connections
connection = Connections(parse_address(sys.argv[1]))
out = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.ftruncate(out, connection.size)
connection.deliver(0, connection.size, lambda at, data: os.pwrite(out, data, at))
connection.close()
"""
COPY_IN = """
import os, sys
from erofs_edge.transport.nbd.connect import parse_address
from erofs_edge.transport.nbd.parallel import Connections
connection, image = Connections(parse_address(sys.argv[1])), os.open(sys.argv[2], os.O_RDONLY)
size = os.fstat(image).st_size
for at in range(0, size, 4 << 20):
    connection.post_file(at, image, at, min(4 << 20, size - at))
connection.flush()
connection.close()
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
    subprocess.run([sys.executable, "-c", COPY_OUT, address, str(out)], check=True)


def their_write(address: str, image: Path) -> None:
    """nbdcopy of a file to the server."""
    subprocess.run([str(find("nbdcopy", host=False)), "--flush", str(image), address], check=True)


def our_write(address: str, image: Path) -> None:
    """Our client, from a file."""
    subprocess.run([sys.executable, "-c", COPY_IN, address, str(image)], check=True)


def our_flash(address: str, image: Path) -> None:
    """The command, as a user has it."""
    words = ["flash", "--image", str(image), "--to", address, "--full", "--no-verify", "--yes"]
    subprocess.run([str(Path(sys.executable).with_name("erofs-edge")), *words], check=True, capture_output=True)


def timed(work: Callable[[str, Path], None], address: str, out: Path) -> float:
    started = time.perf_counter()
    work(address, out)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--only", default="", help="rows whose names have this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "compiled")
        image, out, path = Path(folder) / "image", Path(folder) / "out", Path(folder) / "socket"
        with image.open("wb") as file:
            for _ in range(arguments.size):
                file.write(os.urandom(MIB))
        rows = [
            ("server, sequential (nbdcopy)", (ours, sequential), (nbdkit, sequential), READS),
            ("server, 4 KiB at random (qemu-img bench)", (ours, scattered), (nbdkit, scattered), ""),
            ("client, copy into a file (server: nbdkit)", (nbdkit, our_copy), (nbdkit, sequential), READS),
            ("client, copy of a file to it", (nbdkit, our_write), (nbdkit, their_write), WRITES),
            ("`flash --full --no-verify` to it", (nbdkit, our_flash), (nbdkit, their_write), WRITES),
        ]
        print("| what | ours, s, CPU s | peer, s, CPU s | throughput of the peer's |")
        print("| --- | --- | --- | --- |")
        for name, mine, peer, kind in rows:
            if arguments.only not in name:
                continue
            times: list[list[tuple[float, float]]] = [[], []]
            for run in range(arguments.runs + 1):
                for side, (server, work) in enumerate((mine, peer)):
                    out.unlink(missing_ok=True)
                    if kind is WRITES:
                        with out.open("wb") as file:
                            file.truncate(image.stat().st_size)
                    source, place = (out, image) if kind is WRITES else (image, out)
                    before = processors()
                    with server(source, path) as address:
                        seconds = timed(work, address, place)
                    if run:
                        times[side].append((seconds, processors() - before))
                    if kind and not filecmp.cmp(image, out, shallow=False):
                        sys.exit(f"{name}: what was copied is not the image")
            first, second = ([median(column) for column in zip(*found, strict=True)] for found in times)
            row = f"{first[0]:.3f}, {first[1]:.3f} | {second[0]:.3f}, {second[1]:.3f} | {second[0] / first[0]:.2f}x"
            print(f"| {name} | {row} |", flush=True)


def processors() -> float:
    """Seconds of processors that ended children took: of the server too."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
