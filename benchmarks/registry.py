# SPDX-License-Identifier: Apache-2.0
"""Traffic with a registry, for the second version of an image and for the start of a board. Bytes only.

usage: python benchmarks/registry.py [--tree DIR] [--update DIR] [--out FOLDER] [--scratch DIR] [versions] [boot]

'versions': the tree and its newer version are pushed to Debian's docker-registry, and the newer one is read back by
`pull` and compared. 'boot': the stock board (built in FOLDER) is pushed, its system exported by `serve oci:` and booted
diskless in QEMU; what is requested from the registry is counted. Prints markdown tables.
"""

from __future__ import annotations

import filecmp
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from common import BOARD, arguments, build_board, heads, row, trees_of

from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.write import write_image
from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.diskless import SYSTEM, Wish, diskless_smoke
from erofs_edge.registry.export import exports_of
from erofs_edge.registry.gather import gather
from erofs_edge.registry.pull import fetch, find
from erofs_edge.registry.push import push
from erofs_edge.registry.remote import Remote, open_remote
from erofs_edge.serve.server import Server
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.directory import scan
from erofs_edge.sources.oci.reference import parse_reference
from erofs_edge.toolbox.prefix import find as find_tool
from erofs_edge.trust.signer import open_signer

LZ4HC = WriteOptions(compression="lz4hc", pcluster=65536)


@contextmanager
def registry(folder: Path) -> Iterator[int]:
    """Run Debian's docker-registry. Yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    storage = {"filesystem": {"rootdirectory": str(folder / "data")}}
    http = {"addr": f"127.0.0.1:{port}"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(
        json.dumps({"version": "0.1", "log": {"level": "error"}, "storage": storage, "http": http})
    )
    program = str(find_tool("docker-registry", host=False))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def remote(port: int, name: str) -> Remote:
    return open_remote(parse_reference(f"localhost:{port}/{name}"), plain_http=True)


def sent(port: int, name: str, image: Path, devices: Sequence[Path], piece: int | None) -> int:
    """Push. Return the bytes of blobs that the registry did not have."""
    value, cuts = gather(image, devices=devices, piece=piece)
    return push(value, cuts, remote(port, name)).sent_bytes


def versions(older: Path, newer: Path, folder: Path) -> None:
    """Print the table of second versions."""
    heads("stored as", "first version", "second sends", "of the second", "both to the first")
    base, blob = folder / "a.img", folder / "a.blob"
    chunks = WriteOptions(compression="none", chunk_size=4096)
    with CompressionCache(folder / "compressed") as cache, registry(folder / "registry") as port:
        lz4hc = LZ4HC.replaced(cache=cache)
        write_image(scan(older), base, lz4hc)
        first, second = Version(base, ()), folder / "b.img"
        write_image(scan(newer), second, lz4hc.replaced(bases=(base,)))
        stored("lz4hc 64K, second on the first", port, first, Version(second, (base,)), None, folder)
        write_image(scan(newer), second, lz4hc.replaced(baseline=base))
        for piece in (None, 1 << 20, 1 << 18, 1 << 16):
            name = f"in pieces of {piece >> 10} KiB" if piece else "whole"
            stored(f"lz4hc 64K with `--baseline`, {name}", port, first, Version(second, ()), piece, folder)
        write_image(scan(older), base, chunks.replaced(blob=blob))
        new = folder / "b.blob"
        info = write_image(scan(newer), second, chunks.replaced(blob=new, bases=(base,), base_devices=(blob,)))
        stored("chunks of 4K", port, Version(base, (blob,)), Version(second, info.devices), None, folder)


class Version(NamedTuple):
    """An image and its devices."""

    image: Path
    devices: tuple[Path, ...]


def stored(name: str, port: int, first: Version, second: Version, piece: int | None, folder: Path) -> None:
    """Push both to a new repository, compare what comes back, and print a line."""
    place = "bench/" + re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    before = sent(port, f"{place}:1", *first, piece)
    added = sent(port, f"{place}:2", *second, piece)
    check(port, f"{place}:2", [second.image, *second.devices], folder)
    size = sum(path.stat().st_size for path in (second.image, *second.devices))
    share = added / size
    row(name, before, added, f"{share:.3f}", f"{(before + added) / before:.3f}x")


def check(port: int, name: str, files: Sequence[Path], folder: Path) -> None:
    """Check that what comes back is what was pushed."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        out, opened = Path(place), remote(port, name)
        fetch(find(opened, "arm64"), opened, out / "out", Cache(out / "cache"))
        for path in files:
            if not filecmp.cmp(path, out / "out" / path.name, shallow=False):
                sys.exit(f"{path.name} came back as something else")


def boot(out: Path, folder: Path) -> None:
    """Print the table of a board that starts from a registry."""
    build_board(out)
    board = load_board(BOARD)
    heads("start", "image", "fetched", "of the image", "requests")
    with registry(folder / "registry") as port:
        value, cuts = gather(out)
        done = push(value, cuts, remote(port, "board:1"))
        for start in ("first", "second, from the cache"):
            opened = remote(port, "board:1")
            exports = exports_of(find(opened, "arm64"), opened, Cache(folder / "cache"), say=print)
            server = Server(exports)
            try:
                told = server.listen("127.0.0.1", 0)
                diskless_smoke(board, out, open_signer(board.value.sign.key), wish=Wish(port=told))
            finally:
                for export in exports.values():
                    export.close()
                server.stop()
            file = exports[SYSTEM].file
            share = file.fetched_bytes / file.size
            row(start, file.size, file.fetched_bytes, f"{share:.3f}", file.requests)
    print(f"\nthe build in the registry: {done.sent_bytes} bytes in {done.sent_blobs} blobs", flush=True)


def main() -> None:
    parser = arguments(__doc__, trees=2, board=True)
    parser.add_argument("parts", nargs="*", choices=["versions", "boot"], help="default: both")
    given = parser.parse_args()
    for part in given.parts or ["versions", "boot"]:
        with tempfile.TemporaryDirectory(dir=given.scratch) as name:
            if part == "versions":
                versions(*trees_of(given), Path(name))
            else:
                boot(given.out, Path(name))
        print(flush=True)


if __name__ == "__main__":
    main()
