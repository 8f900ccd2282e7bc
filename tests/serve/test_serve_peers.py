# SPDX-License-Identifier: Apache-2.0
"""Our NBD server with real clients, our client with real servers, and both over links that fail."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from waiting import wait_for

from erofs_edge.errors import DeviceError, DeviceRefusedError, ErofsEdgeError, ProtocolError
from erofs_edge.serve.export import FileExport
from erofs_edge.serve.server import Server
from erofs_edge.transport.nbd.connect import Address, Connection, parse_address

MIB = 1 << 20
Oracle = Callable[[str], str]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """5 MiB and a bit: data, a hole of 2 MiB, data."""
    path = tmp_path / "image"
    rng = random.Random(5)
    with path.open("wb") as file:
        file.write(rng.randbytes(MIB + 4096))
        file.seek(3 * MIB)
        file.write(rng.randbytes(2 * MIB + 777))
    return path


@contextlib.contextmanager
def serving(path: Path, *, writable: bool = False) -> Iterator[tuple[int, FileExport]]:
    export = FileExport(path, writable=writable)
    server = Server({"": export, "named": export})
    try:
        yield server.listen("127.0.0.1", 0), export
    finally:
        server.stop()
        export.close()


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_nbdinfo_and_nbdcopy_read_our_server(image: Path, tmp_path: Path, oracle: Oracle) -> None:
    with serving(image) as (port, export):
        info = json.loads(run(oracle("nbdinfo"), "--json", f"nbd://127.0.0.1:{port}/named"))["exports"][0]
        run(oracle("nbdcopy"), f"nbd://127.0.0.1:{port}/named", str(tmp_path / "copy"))
        parts = json.loads(run(oracle("nbdinfo"), "--json", "--map", f"nbd://127.0.0.1:{port}/named"))
        assert export.activity.bytes_read >= 3 * MIB
    assert (info["export-size"], info["is_read_only"]) == (image.stat().st_size, True)
    assert info["contexts"] == ["base:allocation"]
    assert (tmp_path / "copy").read_bytes() == image.read_bytes()
    holes = [part for part in parts if part["type"] == 3]
    assert sum(part["length"] for part in parts) == image.stat().st_size
    assert all(not any(image.read_bytes()[part["offset"] :][: part["length"]]) for part in holes)


def test_qemu_io_writes_through_our_server(image: Path, oracle: Oracle) -> None:
    expected = bytearray(image.read_bytes())
    with serving(image, writable=True) as (port, _):
        commands = ["-c", "write -P 7 4096 8192", "-c", "write -z 512 1024", "-c", "flush", "-c", "discard 0 512"]
        run(oracle("qemu-io"), "-f", "raw", *commands, f"nbd://127.0.0.1:{port}/")
    expected[4096:12288] = b"\7" * 8192
    expected[512:1536] = bytes(1024)
    assert image.read_bytes() == expected


def test_a_read_only_export_stays_as_it_is(image: Path, oracle: Oracle) -> None:
    before = image.read_bytes()
    with serving(image) as (port, _):
        done = subprocess.run(
            [oracle("qemu-io"), "-f", "raw", "-c", "write 0 512", f"nbd://127.0.0.1:{port}/"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode
    assert image.read_bytes() == before


@contextlib.contextmanager
def peer(command: list[str], path: Path) -> Iterator[None]:
    """Another server, once its socket is there."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(process, path)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _nbdkit(oracle: Oracle, image: Path, path: Path) -> list[str]:
    root = Path(oracle("nbdkit")).parent.parent / "roots/oracles-nbd"
    (plugin,) = root.glob("usr/lib/*/nbdkit/plugins/nbdkit-file-plugin.so")
    return [oracle("nbdkit"), "-f", "-U", str(path), str(plugin), f"file={image}"]


def _qemu_nbd(oracle: Oracle, image: Path, path: Path) -> list[str]:
    return [oracle("qemu-nbd"), "-f", "raw", "-k", str(path), "-t", str(image)]


def _nbd_server(oracle: Oracle, image: Path, path: Path) -> list[str]:
    config = image.with_name("nbd-server.conf")
    config.write_text(f"[generic]\nunixsock={path}\n[disk]\nexportname={image}\n")
    return [oracle("nbd-server"), "-n", "-C", str(config)]


@pytest.mark.parametrize(("make", "name"), [(_nbdkit, ""), (_qemu_nbd, ""), (_nbd_server, "disk")])
def test_our_client_with_real_servers(
    make: Callable[[Oracle, Path, Path], list[str]], name: str, image: Path, tmp_path: Path, oracle: Oracle
) -> None:
    expected = bytearray(image.read_bytes())
    path = tmp_path / "socket"
    with peer(make(oracle, image, path), path):
        connection = Connection(parse_address(f"nbd+unix:///{name}?socket={path}"))
        try:
            size = connection.size
            assert size == len(expected) - len(expected) % 512 or size >= len(expected)
            whole = min(size, len(expected))
            assert connection.read(0, whole) == expected[:whole]
            extents = list(connection.data(0, whole))
            assert all(not any(expected[a:b]) for a, b in gaps(extents, whole))
            new = random.Random(1).randbytes(3 * MIB)
            connection.write(MIB, new)
            connection.zero(64 << 10, 8192)
            connection.flush()
            expected[MIB : 4 * MIB] = new
            expected[64 << 10 : 72 << 10] = bytes(8192)
            assert connection.read(0, whole) == expected[:whole]
        finally:
            connection.close()
    assert image.read_bytes()[:whole] == expected[:whole]


def gaps(extents: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    at = 0
    for start, end in [*extents, (size, size)]:
        if start > at:
            yield at, start
        at = end


def test_flash_to_an_export(image: Path, tmp_path: Path, edge: str) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"old" * (2 * MIB + 500))
    with serving(disk, writable=True) as (port, _):
        command = [edge, "flash", "--image", str(image), "--to", f"nbd://127.0.0.1:{port}/", "--yes", "--json"]
        record = json.loads(run(*command))
        again = json.loads(run(*command, "--resume"))
    assert disk.read_bytes()[: image.stat().st_size] == image.read_bytes()
    assert record["target"]["kind"] == "nbd"
    assert record["bytes_total"] == image.stat().st_size
    assert record["bytes_on_wire"] > record["regions"][0]["written"] == 3 * MIB + 4096 + 777
    assert again["regions"][0]["written"] == 0


def test_flash_refuses_what_it_cannot_write(image: Path, tmp_path: Path, edge: str) -> None:
    def refused(disk: Path, *, writable: bool, code: int) -> str:
        with serving(disk, writable=writable) as (port, _):
            done = subprocess.run(
                [edge, "flash", "--image", str(image), "--to", f"nbd://127.0.0.1:{port}/", "--yes"],
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
        assert done.returncode == code
        return done.stderr

    small = tmp_path / "small"
    small.write_bytes(b"x" * 4096)
    assert "read-only" in refused(image, writable=False, code=7)
    assert f"needs {image.stat().st_size - 4096} more" in refused(small, writable=True, code=1)
    assert small.read_bytes() == b"x" * 4096


def test_serve_says_where_and_what_was_read(image: Path, tmp_path: Path, edge: str, oracle: Oracle) -> None:
    path = tmp_path / "a socket"
    process = subprocess.Popen(
        [edge, "serve", str(image), "--socket", str(path), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    uri = process.stderr.readline().strip()
    run(oracle("qemu-io"), "-r", "-f", "raw", "-c", "read 0 5000", "-c", "read 0 512", uri)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    (export,) = json.loads(out)["exports"]
    assert export["bytes_touched"] == 8192
    assert export["bytes_read"] >= 5512
    assert not path.exists()


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - day).not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem, private = folder / f"{name}.pem", folder / f"{name}.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, private


def test_tls_both_ways(image: Path, tmp_path: Path, oracle: Oracle) -> None:
    import ssl

    pem, key = _certificate(tmp_path, "localhost")
    other, _ = _certificate(tmp_path, "elsewhere")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    export = FileExport(image)
    server = Server({"": export}, tls=context)
    port = server.listen("127.0.0.1", 0)
    address = parse_address(f"nbds://localhost:{port}/")
    try:
        connection = Connection(address, trust=lambda: ssl.create_default_context(cafile=str(pem)))
        assert connection.read(0, connection.size) == image.read_bytes()
        connection.close()
        with pytest.raises(DeviceError, match="TLS failed"):
            Connection(address, trust=lambda: ssl.create_default_context(cafile=str(other)))
        with pytest.raises(DeviceRefusedError, match="wants TLS"):
            Connection(parse_address(f"nbd://localhost:{port}/"))
        authority = tmp_path / "ca"
        authority.mkdir()
        (authority / "ca-cert.pem").write_bytes(pem.read_bytes())
        uri = f"nbds://localhost:{port}/?tls-certificates={quote(str(authority))}"
        run(oracle("nbdcopy"), uri, str(tmp_path / "copy"))
        idle = Connection(address, trust=lambda: ssl.create_default_context(cafile=str(pem)))
    finally:
        stopping = threading.Thread(target=server.stop, daemon=True)
        stopping.start()
        stopping.join(60)
    assert not stopping.is_alive()
    idle.close()
    assert (tmp_path / "copy").read_bytes() == image.read_bytes()


def test_two_hundred_clients_at_once(image: Path) -> None:
    """All get what they ask for, while twenty more connect, ask for all of it and never read."""
    content = image.read_bytes()
    with serving(image) as (port, _):
        address = parse_address(f"nbd://127.0.0.1:{port}/named")
        stuck = [Connection(address) for _ in range(20)]
        for connection in stuck:
            for _ in range(8):
                connection._client.read(0, memoryview(bytearray(4 * MIB)))
            connection._send()
        clients = [Connection(address) for _ in range(200)]
        before = _resident()
        wrong = []

        def use(connection: Connection, seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(10):
                at = rng.randrange(len(content) - 70000)
                if connection.read(at, 70000) != content[at : at + 70000]:
                    wrong.append(seed)

        threads = [threading.Thread(target=use, args=(client, n)) for n, client in enumerate(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert not wrong
        assert _resident() - before < 200 * MIB
        for connection in [*clients, *stuck]:
            connection.close()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Link:
    """A TCP link between a client and `port` that ends, stalls or corrupts after so many bytes from the server."""

    def __init__(self, port: int, fault: str, after: int) -> None:
        self._port, self._fault, self._after = port, fault, after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        server = socket.create_connection(("127.0.0.1", self._port))
        with self._listener, server, self._listener.accept()[0] as client:
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            self._down(server, client)

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := server.recv(4096):
                if passed + len(data) > self._after:
                    keep = data[: max(0, self._after - passed)]
                    rest = data[len(keep) :]
                    client.sendall(keep)
                    if self._fault == "cut":
                        return
                    if self._fault == "stall":
                        time.sleep(3)
                        return
                    if self._fault == "duplicate":
                        client.sendall(rest[:64] + rest)
                    if self._fault == "drop":
                        client.sendall(rest[64:])
                    if self._fault == "delay":
                        time.sleep(0.3)
                        client.sendall(rest)
                    self._after = 1 << 60
                else:
                    client.sendall(data)
                passed += len(data)


@pytest.mark.parametrize("after", [0, 10, 30, 200, 300_000])
@pytest.mark.parametrize("fault", ["cut", "stall", "drop", "duplicate", "delay"])
def test_a_link_that_fails(image: Path, fault: str, after: int) -> None:
    """An error in time, or the right bytes; where bytes were lost inside of data, NBD itself cannot tell."""
    content = image.read_bytes()
    with serving(image) as (port, _):
        link = Link(port, fault, after)
        # where nothing comes for longer, that is the error; bytes that are only late must come in time on any machine
        patience = 60.0 if fault == "delay" else 0.25
        try:
            connection = Connection(Address("link", "named", "127.0.0.1", link.port), timeout=patience)
            got = connection.read(0, MIB)
            connection.read(MIB, 4096)
        except (DeviceError, ProtocolError):
            assert fault != "delay"
        except ErofsEdgeError as error:
            pytest.fail(f"unexpected {error!r}")
        else:
            assert fault == "delay"
            assert got == content[:MIB]
