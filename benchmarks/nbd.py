# SPDX-License-Identifier: Apache-2.0
"""Our NBD server against nbdkit's file plugin, our client against nbdcopy: the same image, run in turn.

usage: python benchmarks/nbd.py [--size MiB] [--runs N] [--scratch DIR]
       python benchmarks/nbd.py --board [--tls] [--image FILE] [--size MiB] [--runs N] [--scratch DIR]

The server rows use one client for both (nbdcopy for sequential reads, qemu-img bench for random ones), the client rows
one server (nbdkit). Python caches its byte code, as for installed packages: every program first runs once without being
counted. `flash --full --no-verify` is the whole command, which does the same as nbdcopy, and also looks whether the
image is signed. Copies are compared with the image. Prints a markdown table: medians and ratios.

`--board`: to the provisioning system of an emulated board instead, which is started once, through the emulator's
network: an image (random bytes, or FILE) to the start of its disk, by nbdcopy, by our client, and by `flash`, which
sends it compressed where that is faster, and can have the board prove the result. CPU seconds are those of the emulator
and the client.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import BOARD, EDGE, MIB, arguments, children, compiled, heads, medians, row, running

from erofs_edge.flash.provision import disk_address
from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.attach import attached
from erofs_edge.toolbox.prefix import find

RANDOM_READS = 20_000
READS, WRITES = "reads", "writes"
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
    """Start nbdkit's file plugin on a socket. Yields its address."""
    root = find("nbdkit", host=False).parent.parent / "roots/oracles-nbd"
    (plugin,) = root.glob("usr/lib/*/nbdkit/plugins/nbdkit-file-plugin.so")
    command = [str(find("nbdkit", host=False)), "-f", "-U", str(path), str(plugin), f"file={image}"]
    yield from _running(command, path)


@contextlib.contextmanager
def ours(image: Path, path: Path) -> Iterator[str]:
    """Start our server, in a separate process."""
    yield from _running([*EDGE, "serve", str(image), "--socket", str(path)], path)


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
    """Read the whole image with nbdcopy."""
    subprocess.run([str(find("nbdcopy", host=False)), address, str(out)], check=True)


def scattered(address: str, out: Path) -> None:
    """Read 4 KiB at random places of the image, with 16 requests in flight."""
    out.unlink(missing_ok=True)
    step = 1_048_573 * 4096
    command = [str(find("qemu-img", host=False)), "bench", "-f", "raw", "-U", "-c", str(RANDOM_READS), "-d", "16"]
    command += ["-s", "4096", "-S", str(step % (out.parent.joinpath("image").stat().st_size - 4096) // 4096 * 4096)]
    subprocess.run([*command, address], check=True, stdout=subprocess.DEVNULL)


def our_copy(address: str, out: Path) -> None:
    """Copy to a file with our client."""
    subprocess.run([sys.executable, "-c", COPY_OUT, address, str(out)], check=True)


def their_write(address: str, image: Path) -> None:
    """Copy a file to the server with nbdcopy."""
    subprocess.run([str(find("nbdcopy", host=False)), "--flush", str(image), address], check=True)


def our_write(address: str, image: Path) -> None:
    """Copy a file to the server with our client."""
    subprocess.run([sys.executable, "-c", COPY_IN, address, str(image)], check=True)


def our_flash(address: str, image: Path, *more: str) -> None:
    """Run the command, as a user does."""
    words = ["flash", "--image", str(image), "--to", address, "--full", "--yes", *(more or ("--no-verify",))]
    subprocess.run([*EDGE, *words], check=True, capture_output=True)


def proved(address: str, image: Path) -> None:
    """Run the command, with its proof."""
    our_flash(address, image, "--whole")


def there_and_back(address: str, image: Path) -> None:
    """Verify a copy without help from the other side: nbdcopy reads all of it back."""
    their_write(address, image)
    with tempfile.NamedTemporaryFile(dir=image.parent) as back:
        subprocess.run([str(find("nbdcopy", host=False)), address, back.name], check=True)
        subprocess.run(["cmp", "-n", str(image.stat().st_size), back.name, str(image)], check=True)


def timed(work: Callable[[str, Path], None], address: str, out: Path) -> float:
    started = time.perf_counter()
    work(address, out)
    return time.perf_counter() - started


def on_board(image: Path, disk: Path, runs: int, *, tls: bool) -> None:
    """Print the rows of `--board`; the first, nbdcopy's, is what the others are compared with."""
    with disk.open("xb") as file:
        file.truncate(image.stat().st_size)
    with attached(load_board(BOARD), disk.parent, "nbds" if tls else "nbd", disk) as board:
        place = disk_address(board)
        plain = f"nbd://{place.host}:{place.port}"
        if tls:
            plain = f"nbds://{place.host}:{place.port}/?tls-certificates={place.certificates}&tls-hostname={place.name}"
        works: list[tuple[str, Callable[[], None]]] = [
            ("nbdcopy", lambda: their_write(plain, image)),
            ("our client", lambda: our_write(plain, image)),
            ("`flash --full --no-verify`", lambda: our_flash(board, image)),
            ("nbdcopy there and back, compared", lambda: there_and_back(plain, image)),
            ("`flash --full`, proved by the board", lambda: proved(board, image)),
        ]
        (emulator,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        found: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in works}
        for _ in range(runs):
            for name, work in works:
                with disk.open("r+b") as file:
                    for at in range(0, image.stat().st_size, 64 * MIB):
                        os.pwrite(file.fileno(), os.urandom(4096), at)
                before, started = children() + running(emulator), time.perf_counter()
                work()
                seconds = time.perf_counter() - started
                found[name].append((seconds, children() + running(emulator) - before))
                if not filecmp.cmp(image, disk, shallow=False):
                    sys.exit(f"{name}: what is on the disk is not the image")
        heads("what", "s", "CPU s with the emulator's", "speed to nbdcopy, by s and CPU s")
        base = medians(found["nbdcopy"])
        for name, times in found.items():
            seconds, used = medians(times)
            row(name, f"{seconds:.1f}", f"{used:.1f}", f"{base[0] / seconds:.2f}x, {base[1] / used:.2f}x")


def main() -> None:
    parser = arguments(__doc__, runs=5)
    parser.add_argument("--size", type=int, default=300, help="MiB (default: 300)")
    parser.add_argument("--only", default="", help="rows whose names have this")
    parser.add_argument("--board", action="store_true", help="to the provisioning system of an emulated board")
    parser.add_argument("--tls", action="store_true", help="with --board: encrypted")
    parser.add_argument("--image", type=Path, help="for --board, of whole MiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ |= compiled(Path(folder))
        image, out, path = Path(folder) / "image", Path(folder) / "out", Path(folder) / "socket"
        if not (options.board and options.image):
            with image.open("wb") as file:
                for _ in range(options.size):
                    file.write(os.urandom(MIB))
        if options.board:
            on_board(options.image or image, Path(folder) / "disk.img", options.runs, tls=options.tls)
            return
        rows = [
            ("server, sequential (nbdcopy)", (ours, sequential), (nbdkit, sequential), READS),
            ("server, 4 KiB at random (qemu-img bench)", (ours, scattered), (nbdkit, scattered), ""),
            ("client, copy into a file (server: nbdkit)", (nbdkit, our_copy), (nbdkit, sequential), READS),
            ("client, copy of a file to it", (nbdkit, our_write), (nbdkit, their_write), WRITES),
            ("`flash --full --no-verify` to it", (nbdkit, our_flash), (nbdkit, their_write), WRITES),
            ("`flash --full`; peer: there, back, compared", (nbdkit, proved), (nbdkit, there_and_back), WRITES),
        ]
        heads("what", "ours, s, CPU s", "peer, s, CPU s", "speed to the peer")
        for name, mine, peer, kind in rows:
            if options.only not in name:
                continue
            times: list[list[tuple[float, float]]] = [[], []]
            for run in range(options.runs + 1):
                for side, (server, work) in enumerate((mine, peer)):
                    out.unlink(missing_ok=True)
                    if kind is WRITES:
                        with out.open("wb") as file:
                            file.truncate(image.stat().st_size)
                    source, place = (out, image) if kind is WRITES else (image, out)
                    before = children()
                    with server(source, path) as address:
                        seconds = timed(work, address, place)
                    if run:
                        times[side].append((seconds, children() - before))
                    if kind and not filecmp.cmp(image, out, shallow=False):
                        sys.exit(f"{name}: what was copied is not the image")
            first, second = map(medians, times)
            figures = (f"{one[0]:.3f}, {one[1]:.3f}" for one in (first, second))
            row(name, *figures, f"{second[0] / first[0]:.2f}x")


if __name__ == "__main__":
    main()
