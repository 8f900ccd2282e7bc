# SPDX-License-Identifier: Apache-2.0
"""Our NBD server with libnbd's shell, which can ask what other clients never do: option by option, many requests at
once, requests that are not in order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from erofs_edge.serve.export import FileExport
from erofs_edge.serve.server import Server
from erofs_edge.toolbox.prefix import prefix

MIB = 1 << 20
HOLE = 3
"""flags of base:allocation: a hole, of zeros"""
Session = Callable[..., Any]

AGREED = """
said = {
    "size": h.get_size(), "read only": h.is_read_only(), "many connections": h.can_multi_conn(),
    "flush": h.can_flush(), "write": [h.can_fua(), h.can_trim(), h.can_zero()],
    "structured": h.get_structured_replies_negotiated(), "tls": h.get_tls_negotiated(),
    "allocation": h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION), "protocol": h.get_protocol(),
}
"""
READS = """
import hashlib
size, parts = h.get_size(), []
def part(data, offset, status, error):
    parts.append([offset, len(data), status == nbd.READ_DATA, error.value])
data = h.pread_structured(1 << 20, 4096, part)
whole = b"".join(h.pread(min(1 << 20, size - at), at) for at in range(0, size, 1 << 20))
said = {"parts": parts, "data": hashlib.sha256(data).hexdigest(), "whole": hashlib.sha256(whole).hexdigest()}
"""
EXTENTS = """
said, at = [], 0
def extents(context, offset, entries, error):
    assert (context, offset, error.value) == ("base:allocation", at, 0)
    said.extend(zip(entries[::2], entries[1::2]))
while at < h.get_size():
    h.block_status(h.get_size() - at, at, extents)
    at = sum(length for length, _ in said)
"""
ONE = """
said = []
h.block_status(h.get_size(), 0, lambda _, offset, entries, error: said.append(entries), nbd.CMD_FLAG_REQ_ONE)
"""
AT_ONCE = """
import hashlib
size, left = h.get_size(), {}
pieces = [(at, min(100000, size - at)) for at in range(0, size, 100000)]
buffers = [nbd.Buffer(length) for _, length in pieces]
for number, ((at, _), buffer) in enumerate(zip(pieces, buffers)):
    def over(error, number=number):
        left[number] = error.value
        return 1
    h.aio_pread(buffer, at, over)
while len(left) < len(pieces):
    h.poll(-1)
whole = b"".join(bytes(buffer.to_bytearray()) for buffer in buffers)
said = [sorted(set(left.values())), hashlib.sha256(whole).hexdigest()]
"""
OUT_OF_ORDER = """
import hashlib
def error_of(ask):
    try:
        ask()
    except nbd.Error as error:
        return error.errno
h.set_strict_mode(0)
size = h.get_size()
said = [
    error_of(lambda: h.pread(512, size)), error_of(lambda: h.pread(512, 1 << 62)), error_of(lambda: h.pread(0, 0)),
    error_of(lambda: h.pwrite(b"x" * 512, 0)), error_of(lambda: h.zero(512, 0)), error_of(lambda: h.trim(512, 0)),
    error_of(lambda: h.cache(512, 0)), error_of(lambda: h.block_status(512, size, lambda *_: 0)),
    hashlib.sha256(h.pread(4096, 0)).hexdigest(),
]
"""
OPTIONS = """
h.set_opt_mode(True)
h.connect_uri(uri)
names, said = [], []
h.opt_list(lambda name, description: names.append(name))
h.set_export_name("none")
try:
    h.opt_info()
except nbd.Error as error:
    said.append(error.errno)
h.set_export_name("named")
h.opt_info()
said += [sorted(names), h.get_size(), h.aio_is_negotiating()]
h.opt_abort()
said.append(h.aio_is_closed())
"""
SIMPLE = """
import hashlib
h.set_request_structured_replies(False)
h.connect_uri(uri)
said = [h.get_structured_replies_negotiated(), hashlib.sha256(h.pread(1 << 20, 512)).hexdigest()]
h.shutdown()
said.append(h.aio_is_closed())
"""
WRITES = """
h.pwrite(b"\\7" * 8192, 4096)
h.pwrite(b"\\10" * 512, 1 << 20, nbd.CMD_FLAG_FUA)
h.zero(1024, 8192)
h.trim(4096, 1 << 21)
h.flush()
said = [h.pread(8192, 4096).hex(), h.pread(1024, 1 << 20).hex()]
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """3 MiB and a bit: data, a hole of 1 MiB, data."""
    path = tmp_path / "image"
    rng = random.Random(6)
    with path.open("wb") as file:
        file.write(rng.randbytes(MIB))
        file.seek(2 * MIB)
        file.write(rng.randbytes(MIB + 777))
    return path


@contextlib.contextmanager
def serving(path: Path, *, writable: bool = False) -> Iterator[str]:
    export = FileExport(path, writable=writable)
    server = Server({"": export, "named": export})
    try:
        yield f"nbd://127.0.0.1:{server.listen('127.0.0.1', 0)}/named"
    finally:
        server.stop()
        export.close()


@pytest.fixture
def nbdsh(oracle: Callable[[str], str]) -> Session:
    """`nbdsh(code, uri)`: what the code left in `said`. It is connected, with base:allocation, but for `connect=False`.

    The shell is a module of Python, so it is Debian's own Python that runs, which must be told where it lies.
    """
    program, root = oracle("nbd-python3"), prefix() / "roots/oracles-nbdsh"
    packages = root / "usr/lib/python3/dist-packages"
    words = {"PYTHONHOME": str(root / "usr"), "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(code: str, uri: str, *, connect: bool = True) -> Any:
        options = ["--base-allocation", "--uri", uri] if connect else []
        ends = ["-c", f"uri = {uri!r}", "-c", code, "-c", "import json; print(json.dumps(said))"]
        done = subprocess.run(
            [program, "-m", "nbd", *options, *ends],
            env=os.environ | words, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_what_is_agreed(image: Path, nbdsh: Session) -> None:
    size = image.stat().st_size
    with serving(image) as uri:
        assert nbdsh(AGREED, uri) == {
            "size": size, "read only": True, "many connections": True, "flush": True, "write": [False, False, False],
            "structured": True, "tls": False, "allocation": True, "protocol": "newstyle-fixed",
        }  # fmt: skip
        errno, names, told, negotiating, closed = nbdsh(OPTIONS, uri, connect=False)
    assert (errno, names, told, negotiating, closed) == ("ENOENT", ["", "named"], size, True, True)


def test_reads_one_after_the_other_at_once_and_without_structured_replies(image: Path, nbdsh: Session) -> None:
    content = image.read_bytes()
    with serving(image) as uri:
        said = nbdsh(READS, uri)
        assert nbdsh(AT_ONCE, uri) == [[0], digest(content)]
        assert nbdsh(SIMPLE, uri, connect=False) == [False, digest(content[512 : 512 + MIB]), True]
    assert (said["data"], said["whole"]) == (digest(content[4096 : 4096 + MIB]), digest(content))
    assert sum(length for _, length, _, _ in said["parts"]) == MIB
    assert all(is_data and not error for _, _, is_data, error in said["parts"])


def test_block_status(image: Path, nbdsh: Session) -> None:
    content = image.read_bytes()
    with serving(image) as uri:
        found, ((first, flags),) = nbdsh(EXTENTS, uri), nbdsh(ONE, uri)
    assert sum(length for length, _ in found) == len(content)
    assert [first, flags] == found[0], "one extent where one was asked for"
    at = 0
    for length, kind in found:
        assert kind in (0, HOLE)
        assert kind == 0 or not any(content[at : at + length])
        at += length


def test_requests_that_are_not_in_order(image: Path, nbdsh: Session) -> None:
    """Each has its error, none harms the image, and the connection goes on."""
    content = image.read_bytes()
    with serving(image) as uri:
        said = nbdsh(OUT_OF_ORDER, uri)
    assert said == [*["EINVAL"] * 3, *["EPERM"] * 3, *["EINVAL"] * 2, digest(content[:4096])]
    assert image.read_bytes() == content


def test_writes(image: Path, nbdsh: Session) -> None:
    expected = bytearray(image.read_bytes())
    expected[4096:12288] = b"\7" * 8192
    expected[8192:9216] = bytes(1024)
    expected[MIB : MIB + 512] = b"\10" * 512
    with serving(image, writable=True) as uri:
        said = nbdsh(WRITES, uri)
        assert nbdsh(AGREED, uri)["write"] == [True, True, True]
    assert said == [expected[4096:12288].hex(), expected[MIB : MIB + 1024].hex()]
    found = bytearray(image.read_bytes())
    assert found[2 * MIB + 4096 :] == expected[2 * MIB + 4096 :], "what was trimmed may be anything"
    assert found[: 2 * MIB] == expected[: 2 * MIB]


def digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()
