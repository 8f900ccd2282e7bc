# SPDX-License-Identifier: Apache-2.0
"""Files of a registry read in parts: what is fetched, what is checked, and what happens when the registry fails."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from sources.oci.registries import Fake, fake_server

from erofs_edge.cli.main import cli
from erofs_edge.errors import ErofsEdgeError, MirrorError, SourceError, VerificationError
from erofs_edge.registry import artifact, lazy
from erofs_edge.registry.artifact import BLOCK
from erofs_edge.registry.export import exports_of
from erofs_edge.registry.gather import gather
from erofs_edge.registry.lazy import LazyFile
from erofs_edge.registry.pull import Found, find
from erofs_edge.registry.push import push
from erofs_edge.registry.remote import Remote, open_remote
from erofs_edge.serve.server import Server
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.oci.reference import parse_reference
from erofs_edge.transport.nbd import wire
from erofs_edge.transport.nbd.connect import Connection, parse_address

MIB = 1 << 20
SIZE = 8 * MIB + 777


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, two MiB of zeros in it, and an odd end."""
    path = tmp_path_factory.mktemp("lazy") / "image.raw"
    noise = random.Random(5).randbytes(SIZE)
    path.write_bytes(noise[: 3 * MIB] + bytes(2 * MIB) + noise[5 * MIB :])
    return path


def remote(port: int, name: str) -> Remote:
    return open_remote(parse_reference(f"localhost:{port}/{name}"))


@pytest.fixture(scope="module", params=[None, MIB], ids=["whole", "pieces"])
def pushed(request: pytest.FixtureRequest, registry: int, image: Path) -> str:
    name = f"lazy/{request.param or 0}"
    value, cuts = gather(image, piece=request.param)
    push(value, cuts, remote(registry, name))
    return name


def open_lazy(port: int, name: str, cache: Cache) -> LazyFile:
    opened = remote(port, name)
    (file,) = find(opened, "arm64").value.files
    return LazyFile(file, opened, cache)


def test_what_is_read_is_fetched_once(registry: int, pushed: str, image: Path, cache: Cache) -> None:
    content = image.read_bytes()
    rng = random.Random(6)
    file = open_lazy(registry, pushed, cache)
    touched: set[int] = set()
    for _ in range(40):
        at = rng.randrange(SIZE)
        length = min(rng.choice([1, 512, 4096, 200_000]), SIZE - at)
        assert file.read(at, length) == content[at : at + length]
        touched |= set(range(at // BLOCK, -(-(at + length) // BLOCK)))
    data = {number for number in touched if any(content[number * BLOCK :][:BLOCK])}
    assert touched - data, "zeros were among them"
    assert file.fetched_bytes == sum(min(BLOCK, SIZE - number * BLOCK) for number in data)
    file.close()
    again = open_lazy(registry, pushed, Cache(cache.root))
    assert again.read(0, SIZE) == content
    assert again.fetched_bytes < SIZE - 2 * MIB - file.fetched_bytes + BLOCK
    assert again.requests < 60, "neighbours come together"
    again.close()


def test_many_readers_fetch_each_block_once(registry: int, pushed: str, image: Path, cache: Cache) -> None:
    content, file, wrong = image.read_bytes(), open_lazy(registry, pushed, cache), []

    def use(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(20):
            at = rng.randrange(MIB)
            if file.read(at, 150_000) != content[at : at + 150_000]:
                wrong.append(seed)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)
    assert file.fetched_bytes <= MIB + 150_000 + BLOCK
    file.close()


@contextlib.contextmanager
def serving(found: Found, opened: Remote, cache: Cache, said: list[str]) -> Iterator[int]:
    exports = exports_of(found, opened, cache, say=said.append)
    server = Server(exports, say=said.append)
    try:
        yield server.listen("127.0.0.1", 0)
    finally:
        for export in exports.values():
            export.close()
        server.stop()


def test_serve_to_a_real_client(
    registry: int, pushed: str, image: Path, tmp_path: Path, cache: Cache, oracle: Callable[[str], str], edge: str
) -> None:
    """`serve oci:`, read by libnbd's nbdcopy; holes are told, and not fetched."""
    socket, copy = tmp_path / "s", tmp_path / "copy"
    command = [edge, "serve", f"oci:localhost:{registry}/{pushed}", "--socket", str(socket), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        uri = process.stderr.readline().strip()
        done = subprocess.run([oracle("nbdcopy"), uri, copy], capture_output=True, text=True, check=False, timeout=60)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert done.returncode == 0, done.stderr
    (export,) = json.loads(out)["exports"]
    assert copy.read_bytes() == image.read_bytes()
    assert export["bytes_fetched"] == SIZE - 2 * MIB
    assert copy.stat().st_blocks * 512 < 7 * MIB


def faulty(image: Path, piece: int | None) -> tuple[Fake, Found, bytes]:
    """A registry that says what it is told, with the image in it."""
    value, cuts = gather(image, piece=piece)
    manifest = artifact.encode(value)
    fake, content = Fake(), image.read_bytes()
    blobs = {f"sha256:{p.sha256}": content[p.offset :][: p.size] for p in value.files[0].pieces}
    fake.hold("app", "latest", blobs | {f"sha256:{value.files[0].blocks}": cuts[0].table}, manifest)
    return fake, Found("0" * 64, artifact.decode(manifest, "here")), content


class Ranged:
    """Ranges with an end, which `Fake` does not know; `broken` blobs have one bit flipped; `away` answers 503."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.away = 0
        self.flip = ""

    def __call__(
        self, path: str, headers: dict[str, str], body: bytes, method: str
    ) -> tuple[int, dict[str, str], bytes]:
        asked = headers.pop("Range", "")
        status, more, data = self.fake(path, headers, body, method)
        if not asked or status != 200:
            return status, more, data
        if self.away:
            self.away -= 1
            return 503, {}, b""
        start, end = (int(part) for part in asked.removeprefix("bytes=").split("-"))
        part = bytearray(data[start : end + 1])
        if self.flip and self.flip in path:
            part[0] ^= 1
        return 206, {"Content-Range": f"bytes {start}-{end}/{len(data)}"}, bytes(part)


def test_a_registry_that_is_away_is_waited_for(image: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "PAUSE", 0.01)
    fake, found, content = faulty(image, None)
    answer, said = Ranged(fake), list[str]()
    with fake_server(answer) as port:
        file = LazyFile(found.value.files[0], remote(port, "app"), cache, say=said.append)
        answer.away = 3
        assert file.read(100, 10) == content[100:110]
        assert len(said) == 2
        assert "503" in said[0]
        assert said[1] == "the registry is back"
        monkeypatch.setattr(lazy, "PATIENCE", 0.05)
        answer.away = 1000
        with pytest.raises(MirrorError, match="503"):
            file.read(BLOCK, 10)
        answer.away = 0
        assert file.read(BLOCK, 10) == content[BLOCK : BLOCK + 10]
        file.close()


def test_other_bytes_are_neither_given_nor_kept(image: Path, cache: Cache) -> None:
    """A client gets an error for that block, and goes on reading others."""
    fake, found, content = faulty(image, MIB)
    answer, said = Ranged(fake), list[str]()
    answer.flip = found.value.files[0].pieces[0].sha256
    with fake_server(answer) as port, serving(found, remote(port, "app"), cache, said) as nbd:
        connection = Connection(parse_address(f"nbd://127.0.0.1:{nbd}/"))
        with pytest.raises(ErofsEdgeError):
            connection.read(0, 4096)
        assert any("not what was pushed" in line for line in said)
        connection.close()
        connection = Connection(parse_address(f"nbd://127.0.0.1:{nbd}/"))
        assert connection.read(MIB, 4096) == content[MIB : MIB + 4096]
        connection.close()
    kept = {path.name for path in (cache.root / "blobs").rglob("*") if path.is_file()}
    assert len(kept) == 2, "the table, and the good block"


def test_what_cannot_be_read_in_parts(image: Path, cache: Cache, tmp_path: Path) -> None:
    fake, found, _ = faulty(image, None)
    file = found.value.files[0]
    with fake_server(fake) as port:
        opened = LazyFile(file, remote(port, "app"), cache)
        fake.faults[f"app/blobs/sha256:{file.pieces[0].sha256}"] = [(200, {}, b"x" * 100)]
        with pytest.raises(SourceError, match="cannot send parts"):
            opened.read(0, 1)
        for wrong, kind in (
            (b"", VerificationError), (b"x" * 40, VerificationError), (b"x" * MIB, SourceError),
        ):  # fmt: skip
            fake.contents[f"app/blobs/sha256:{file.blocks}"] = wrong
            with pytest.raises(kind):
                LazyFile(file, remote(port, "app"), Cache(tmp_path / "other"))
        small = tmp_path / "small.raw"
        small.write_bytes(b"small")
        value, _ = gather(small)
        with pytest.raises(SourceError, match="no table of hashes"):
            LazyFile(value.files[0], remote(port, "app"), cache)


def test_holes_are_told(image: Path, cache: Cache) -> None:
    fake, found, _ = faulty(image, None)
    with fake_server(fake) as port:
        export = exports_of(found, remote(port, "app"), cache)[""]
        hole = wire.STATE_HOLE | wire.STATE_ZERO
        assert export.extents(0, SIZE) == [(3 * MIB, 0), (2 * MIB, hole), (SIZE - 5 * MIB, 0)]
        with pytest.raises(OSError, match="read-only"):
            export.write(0, b"x")
        with pytest.raises(OSError, match="read-only"):
            export.zero(0, 1)
        export.close()


def test_serve_refuses(registry: int, pushed: str) -> None:
    for arguments, words in (
        ([f"oci:localhost:{registry}/{pushed}", "--writable"], "--writable is not possible"),
        ([f"oci:localhost:{registry}/none"], "the registry has no none"),
        (["nowhere.img"], "no such file, folder or board: nowhere.img"),
    ):
        result = CliRunner().invoke(cli, ["serve", *arguments])
        assert result.exit_code
        assert words in result.output
