# SPDX-License-Identifier: Apache-2.0
"""TLS of the provisioning system: the real nbdkit with the options of its init, right and wrong certificates."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from waiting import wait_for

from erofs_edge.boot.contents import unpack_initramfs
from erofs_edge.boot.cpio import read_cpio
from erofs_edge.errors import DeviceError, DeviceRefusedError, SourceError, UsageError
from erofs_edge.flash.nbd import NbdTarget
from erofs_edge.flash.provision import BOARD_NAME, _addresses, open_provisioned
from erofs_edge.provision.credentials import (
    AUTHORITY,
    CLIENT,
    NAME,
    ON_BOARD,
    board_credentials,
    make_credentials,
    write_credentials,
)
from erofs_edge.provision.initramfs import FOLDER
from erofs_edge.transport.nbd.connect import Connection, parse_address
from erofs_edge.transport.nbd.parallel import Connections

Served = Callable[[], str]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Credentials: 'host' of the host, 'board' what the board has, 'other' those of another board."""
    top = tmp_path_factory.mktemp("tls")
    for name in ("host", "other"):
        write_credentials(top / name, make_credentials())
    write_credentials(top / "board", board_credentials(top / "host"))
    write_credentials(top / "nobody", {AUTHORITY: (top / "host" / AUTHORITY).read_bytes()})
    return {name: top / name for name in ("host", "board", "other", "nobody")}


@contextmanager
def served(nbdkit: str, place: Path, certificates: Path) -> Iterator[Path]:
    """nbdkit with the options that init.sh gives it, on a socket."""
    script = (FOLDER / "init.sh").read_text()
    found = re.search(r"tls='(--tls=require .*)'", script)
    assert found and script.count(" $tls ") == 2, "both exports get them"
    options = found[1].replace("/tls", str(certificates)).split()
    socket, image = place / "socket", place / "image"
    image.write_bytes(bytes(1 << 20))
    root = Path(nbdkit).parent.parent / "roots/oracles-nbd"
    (plugin,) = root.glob("usr/lib/*/nbdkit/plugins/nbdkit-file-plugin.so")
    command = [nbdkit, "-f", "-U", str(socket), "-t", "8", *options, str(plugin), f"file={image}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as server:
        try:
            wait_for(server, socket)
            yield socket
        finally:
            server.terminate()
            server.communicate()


def address(socket: Path, folder: Path | None, name: str = NAME) -> str:
    query = f"socket={socket}" + (f"&tls-certificates={folder}&tls-hostname={name}" if folder else "")
    return f"nbd{'s' if folder else ''}+unix:///?{query}"


def test_host_and_board_know_each_other(folders: dict[str, Path], tmp_path: Path, oracle: Callable[[str], str]) -> None:
    with served(oracle("nbdkit"), tmp_path, folders["board"]) as socket:
        target = NbdTarget(Connections(parse_address(address(socket, folders["host"]))))
        with closing(target):  # or the server would wait for it
            target.write(4096, b"by way of TLS")
            target.flush()
            assert target.read(4096, 13) == b"by way of TLS"
            data = bytes(range(256)) * 1024
            (tmp_path / "file").write_bytes(data)
            with (tmp_path / "file").open("rb") as file:
                assert target.send(8192, file.fileno(), 0, len(data))
                target.settle()
            assert target.holds(8192, bytearray(data))
        assert (tmp_path / "image").read_bytes()[4096:4109] == b"by way of TLS"


@pytest.mark.parametrize(
    ("who", "name", "message"),
    [
        ("other", NAME, "TLS failed: .*(unable to get local issuer|signature|self-signed)"),
        ("host", "elsewhere", "TLS failed: Hostname mismatch"),
        ("nobody", NAME, "connection lost|closed the connection|TLS failed"),
        (None, "", "TLS"),
    ],
)
def test_strangers_are_refused_by_either_side(
    who: str | None, name: str, message: str, folders: dict[str, Path], tmp_path: Path, oracle: Callable[[str], str]
) -> None:
    """Another board's host, another name, a host without a certificate, and one without TLS."""
    with served(oracle("nbdkit"), tmp_path, folders["board"]) as socket:
        uri = address(socket, folders[who] if who else None, name)
        with pytest.raises((DeviceError, DeviceRefusedError), match=message):
            Connection(parse_address(uri)).read(0, 512)
    assert not any((tmp_path / "image").read_bytes())


def test_a_board_with_the_certificate_of_another_is_refused(
    folders: dict[str, Path], tmp_path: Path, oracle: Callable[[str], str]
) -> None:
    with (
        served(oracle("nbdkit"), tmp_path, folders["other"]) as socket,
        pytest.raises(DeviceError, match="TLS failed"),
    ):
        Connection(parse_address(address(socket, folders["host"])))


def test_openssl_agrees(folders: dict[str, Path], oracle: Callable[[str], str]) -> None:
    for folder, names in (("host", CLIENT[:1]), ("board", ("server-cert.pem",))):
        for name in names:
            purpose = "sslclient" if folder == "host" else "sslserver"
            command = [
                oracle("openssl"), "verify", "-x509_strict", "-CAfile", str(folders["host"] / AUTHORITY), "-purpose",
                purpose, str(folders[folder] / name),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


def test_secrets_are_for_their_owner_and_never_overwritten(folders: dict[str, Path], tmp_path: Path) -> None:
    assert {oct(path.stat().st_mode & 0o777) for path in folders["host"].iterdir()} == {"0o600"}
    assert {path.name for path in folders["board"].iterdir()} == set(ON_BOARD), "the host's key is not the board's"
    with pytest.raises(UsageError, match="already a certificate"):
        write_credentials(folders["host"], make_credentials())
    with pytest.raises(SourceError, match="board's certificate"):
        board_credentials(tmp_path)


def test_addresses(tmp_path: Path) -> None:
    disk, commands = _addresses(f"provisions://192.0.2.7?tls-certificates={tmp_path}")
    assert (disk.tls, disk.certificates, disk.name) == (True, tmp_path, BOARD_NAME) and BOARD_NAME == NAME
    assert (commands.certificates, commands.name, commands.port) == (tmp_path, NAME, disk.port + 1)
    with pytest.raises(UsageError, match="need TLS"):
        parse_address(f"nbd://192.0.2.7?tls-certificates={tmp_path}")
    with pytest.raises(UsageError, match="need TLS") as found:
        open_provisioned(f"provision://192.0.2.7?tls-certificates={tmp_path}")
    assert (found.value.where or "").startswith("provision://192") and found.value.hint == "use provisions://…"
    (tmp_path / AUTHORITY).write_text("no certificate")
    with pytest.raises((UsageError, DeviceError)):
        Connection(disk)


@pytest.mark.parametrize(
    "address", ["provision://", "provisions://board:x", "provision://{port}", "provision+unix://{0}"]
)
def test_errors_name_the_address_that_was_given(address: str, tmp_path: Path) -> None:
    """And not that of an export behind it."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        given = address.format(tmp_path, port=f"127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises((UsageError, DeviceError)) as found:
            open_provisioned(given)
    assert found.value.where == given


@pytest.mark.oracle
def test_the_initramfs_has_the_boards_part_alone(edge: str, repository: Path, tmp_path: Path) -> None:
    command = [edge, "provision", "boards/qemu-aarch64.yaml", "--tls", str(tmp_path / "tls"), "-o"]
    for out in ("one", "two"):
        done = subprocess.run(
            [*command, str(tmp_path / out)], cwd=repository, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert ("can be flashed with" in done.stderr) == (out == "one")
    one, two = ((tmp_path / out / "initramfs").read_bytes() for out in ("one", "two"))
    assert one == two
    members = {m.name.decode(): m for m in read_cpio(unpack_initramfs(one))}
    assert {name for name in members if name.startswith("tls/")} == {f"tls/{name}" for name in ON_BOARD}
    for name in ON_BOARD:
        assert members[f"tls/{name}"].data == (tmp_path / "tls" / name).read_bytes()
    assert (tmp_path / "tls/client-key.pem").read_bytes() not in unpack_initramfs(one)
