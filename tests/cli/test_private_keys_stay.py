# SPDX-License-Identifier: Apache-2.0
"""No byte of a private key reaches an output, a message, a log or the cache, whatever is done with the key."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

PIECE = 24
"""bytes: a shorter piece may be there by chance"""
WRAPPED_MAX = 1 << 20
"""bytes of files that may be text, whose line breaks a trace may cross"""
SECRET = "correct horse battery staple"


def numbers_of(key: object) -> list[int]:
    if isinstance(key, RSAPrivateKey):
        n = key.private_numbers()
        return [n.p, n.q, n.d, n.dmp1, n.dmq1, n.iqmp]
    assert isinstance(key, EllipticCurvePrivateKey)
    return [key.private_numbers().private_value]


def traces(key: object) -> Iterator[bytes]:
    """What would give a key away: pieces of each secret number in either byte order, in hex, in decimal, in base64."""
    for number in numbers_of(key):
        raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
        for at in range(0, len(raw) - PIECE + 1, PIECE):
            piece = raw[at : at + PIECE]
            yield from (piece, piece[::-1], piece.hex().encode(), piece.hex().upper().encode())
            # base64 at each of the three places that a piece may have in it, without the edges
            for shift in range(3):
                yield base64.b64encode(bytes(shift) + piece)[4:-4]
        yield str(number).encode()[:40]


def content(path: Path) -> bytes:
    """What a file holds, without its holes: a disk has gigabytes of them, and each pattern goes through all of it."""
    pieces = []
    with path.open("rb") as file:
        at = 0
        with suppress(OSError):  # nothing but a hole until the end
            while at < os.fstat(file.fileno()).st_size:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
                at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                file.seek(start)
                pieces.append(file.read(at - start))
    return b"".join(pieces)


def holders(folder: Path, key: object) -> list[Path]:
    """Files below a folder that hold a trace, or are named by one."""
    patterns = list(traces(key))
    found = []
    for path in folder.rglob("*"):
        if not path.is_file() or path.is_symlink():
            continue
        data = content(path)
        data += data.replace(b"\n", b"") if len(data) < WRAPPED_MAX else b""
        if any(pattern in data for pattern in patterns):
            found.append(path)
    return found


class Lab:
    """A folder in which commands run with a home, a cache and a folder of keys of their own."""

    def __init__(self, folder: Path, edge: str) -> None:
        self.folder, self.edge = folder, edge
        self.said = b""
        (folder / "tmp").mkdir()
        self.environment = os.environ | {
            "HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "tmp"),
            "EROFS_EDGE_KEYS": str(folder / "keys"), "EROFS_EDGE_DEBUG": "1", "SECRET": SECRET, "WRONG": "x",
        }  # fmt: skip

    def run(self, *words: str, code: int = 0) -> None:
        command = [self.edge, *words]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, check=False)
        self.said += done.stdout + done.stderr
        assert (done.returncode != 0) == bool(code), done.stderr.decode()


@pytest.fixture
def lab(tmp_path: Path, edge: str) -> Lab:
    return Lab(tmp_path, edge)


def open_key(path: Path, secret: str | None = None) -> object:
    return load_pem_private_key(path.read_bytes(), secret.encode() if secret else None)


def test_the_search_finds_what_it_looks_for(tmp_path: Path, lab: Lab) -> None:
    lab.run("keys", "new", "product")
    (path,) = (tmp_path / "keys").glob("*product*.pem")
    key = open_key(path)
    assert holders(tmp_path, key) == [path]
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined]
    forms = [
        der,
        base64.b64encode(der),
        base64.b64encode(b"x" + der),
        der.hex().encode(),
        repr(numbers_of(key)).encode(),
    ]
    for number, form in enumerate(forms):
        leak = tmp_path / f"leak{number}"
        leak.write_bytes(b"before" + form)
        assert leak in holders(tmp_path, key)


@pytest.mark.parametrize("kind", ["rsa2048", "rsa4096", "ecdsa-p256"])
def test_all_that_signs_keeps_the_key(tmp_path: Path, lab: Lab, kind: str) -> None:
    lab.run("keys", "new", "product", "--type", kind)
    (path,) = (tmp_path / "keys").glob("*product*.pem")
    key, uri = open_key(path), f"file:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "system.img").write_bytes(bytes(range(256)) * 256)
    lab.run("keys", "show", uri)
    lab.run("keys", "list", "--json")
    lab.run("verity", "format", "system.img")
    lab.run("sign", "system.img", "--key", uri)
    lab.run("sign", "system.img", "--key", uri, "--form", "verity-signature")
    if kind != "ecdsa-p256":
        lab.run("avb", "make-vbmeta-image", "--key", uri, "--output", "vbmeta.img")
    # failures show what they can: a traceback with EROFS_EDGE_DEBUG
    lab.run("sign", "nothing.img", "--key", uri, code=1)
    lab.run("sign", "system.img", "--key", uri + "?passphrase=env:WRONG", "-o", "/proc/nowhere", code=1)
    (tmp_path / "said").write_bytes(lab.said)
    assert holders(tmp_path, key) == [path]


def test_an_encrypted_key_and_its_passphrase_stay(tmp_path: Path, lab: Lab) -> None:
    lab.run("keys", "new", "product")
    (path,) = (tmp_path / "keys").glob("*product*.pem")
    key = open_key(path)
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption

    path.write_bytes(
        key.private_bytes(  # type: ignore[attr-defined]
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(SECRET.encode())
        )
    )
    (tmp_path / "system.img").write_bytes(bytes(65536))
    lab.run("verity", "format", "system.img")
    lab.run("sign", "system.img", "--key", f"file:{path}?passphrase=env:SECRET")
    lab.run("sign", "system.img", "--key", f"file:{path}?passphrase=env:WRONG", code=1)
    lab.run("keys", "show", f"file:{path}?passphrase=env:SECRET")
    (tmp_path / "said").write_bytes(lab.said)
    assert holders(tmp_path, key) == []
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


@pytest.mark.long
@pytest.mark.parametrize("board", ["qemu-aarch64", "generic-uefi-arm64"])
def test_a_build_keeps_the_key(tmp_path: Path, lab: Lab, repository: Path, board: str) -> None:
    lab.run("keys", "new", "product")
    (path,) = (tmp_path / "keys").glob("*product*.pem")
    build = ["build", str(repository / f"boards/{board}.yaml"), "-o", "out", "--key", f"file:{path}"]
    lab.run(*build, "--relock-if-gone")
    lab.run("verify", "out", "--key", "out/sign.pub.pem")
    (tmp_path / "said").write_bytes(lab.said)
    assert holders(tmp_path, open_key(path)) == [path]
