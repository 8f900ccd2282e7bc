# SPDX-License-Identifier: Apache-2.0
"""No byte of a private key reaches an output, a message, a log or the cache, whatever is done with the key."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, load_pem_private_key
from key_traces import Search

SECRET = "correct horse battery staple"


class Lab:
    """A folder in which commands run with a separate home, cache and key folder."""

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
    # failures show as much as they can: a traceback with EROFS_EDGE_DEBUG
    lab.run("sign", "nothing.img", "--key", uri, code=1)
    lab.run("sign", "system.img", "--key", uri + "?passphrase=env:WRONG", "-o", "/proc/nowhere", code=1)
    (tmp_path / "said").write_bytes(lab.said)
    assert Search(key).holders(tmp_path) == [path]


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
    assert Search(key).holders(tmp_path) == []
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
    key = open_key(path)
    search = Search(key)
    assert search.holders(tmp_path) == [path]
    packed = {found.name for found in search.unpacked}
    assert "system.img" in packed and packed & {"boot.fit", "boot_a.efi"}, packed
    # and a part of it in the middle of the disk is found
    disk = tmp_path / "out/disk.img"
    with disk.open("r+b") as file:
        file.seek(disk.stat().st_size // 2 + 777)
        file.write(search.patterns[0])
    assert search.holds(disk)
