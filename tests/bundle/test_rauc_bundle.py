# SPDX-License-Identifier: Apache-2.0
"""RAUC bundles: Debian's rauc accepts ours, finds the content it would have written itself, and refuses changed
ones."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from made_build import EPOCH, Made
from sources.debian.configure.made import text_of

from erofs_edge.build.inputs import gather
from erofs_edge.build.record import write_json
from erofs_edge.bundle.content import slot_files
from erofs_edge.bundle.rauc import INDEX, MANIFEST, Bundle, Label, read_bundle, write_bundle
from erofs_edge.cli.bundle import bundle as command
from erofs_edge.errors import ErofsEdgeError, FormatError, UsageError, VerificationError
from erofs_edge.sources.overlay import lay_overlay
from erofs_edge.tree import FileTree
from erofs_edge.trust.certificate import load_certificate, self_signed
from erofs_edge.trust.cms import enclosed, sign_enclosed
from erofs_edge.trust.key import KeySigner

TEXT = "[update]\ncompatible=made-system\nversion=7.1\n[bundle]\nformat=verity\n"


def write(built: Made, path: Path, label: Label | None = None) -> Bundle:
    certificate = load_certificate((built.out / "sign.crt").read_bytes(), "owner")
    return write_bundle(built.out, path, built.signer, certificate, label or Label())


@pytest.fixture
def rauc(oracle: Callable[[str], str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """rauc with the squashfs tools that it calls."""
    environment = os.environ | {"PATH": f"{Path(oracle('mksquashfs')).parent}:{os.environ['PATH']}"}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [oracle("rauc"), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


Rauc = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.oracle
def test_rauc_takes_it_and_unpacks_the_images(built: Made, tmp_path: Path, rauc: Rauc) -> None:
    made = write(built, tmp_path / "b.raucb", Label(description="spring"))
    done = rauc("info", "--output-format=json-2", "--keyring", built.out / "sign.crt", tmp_path / "b.raucb")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["update"] == {
        "compatible": "made-made-system",
        "version": "7.20231114221320",
        "description": "spring",
    } | {key: said["update"][key] for key in said["update"] if key not in ("compatible", "version", "description")}
    assert [(one["slot-class"], one["checksum"], one["size"], one["adaptive"]) for one in said["images"]] == [
        (one.name, one.sha256, one.size, ["block-hash-index"]) for one in made.images
    ]
    done = rauc("extract", "--keyring", built.out / "sign.crt", tmp_path / "b.raucb", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for base, path in slot_files(built.out).items():
        assert (tmp_path / "out" / f"{base}.img").read_bytes().rstrip(b"\0") == path.read_bytes().rstrip(b"\0")


@pytest.mark.oracle
def test_the_index_is_what_rauc_makes(built: Made, tmp_path: Path, rauc: Rauc, oracle: Callable[[str], str]) -> None:
    write(built, tmp_path / "ours.raucb")
    content, text = tmp_path / "content", TEXT
    subprocess.run([oracle("unsquashfs"), "-q", "-n", "-d", content, tmp_path / "ours.raucb"], check=True)
    indexes = {path.name: path.read_bytes() for path in content.glob("*" + INDEX)}
    assert set(indexes) == {f"boot.img{INDEX}", f"system.img{INDEX}"}
    for path in content.iterdir():
        if path.name.endswith((INDEX, MANIFEST)):
            path.unlink()
        else:
            text += f"[image.{path.stem}]\nfilename={path.name}\nadaptive=block-hash-index\n"
    (content / MANIFEST).write_text(text)
    key = tmp_path / "key.pem"
    key.write_bytes(built.signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    # rauc wants payloads of more than one block, and these images compress to less
    plain = "--mksquashfs-args=-no-compression"
    done = rauc("bundle", plain, "--cert", built.out / "sign.crt", "--key", key, content, tmp_path / "theirs.raucb")
    assert done.returncode == 0, done.stderr
    subprocess.run([oracle("unsquashfs"), "-q", "-n", "-d", tmp_path / "t", tmp_path / "theirs.raucb"], check=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "t").glob("*" + INDEX)} == indexes


@pytest.mark.oracle
def test_another_key_and_another_byte(built: Made, tmp_path: Path, rauc: Rauc) -> None:
    """rauc and our check refuse the same: a foreign key, a changed byte of the payload, of its tree, of the
    manifest."""
    path, crt = tmp_path / "b.raucb", built.out / "sign.crt"
    made = write(built, path)
    other = KeySigner("other", rsa.generate_private_key(65537, 2048))
    (tmp_path / "other.crt").write_bytes(self_signed(other, EPOCH).pem)
    assert rauc("info", "--keyring", tmp_path / "other.crt", path).returncode != 0
    with pytest.raises(VerificationError, match="does not match key 'other'"):
        read_bundle(path, other)
    assert read_bundle(path, built.signer) == made == read_bundle(path)
    data = path.read_bytes()
    for offset in (5000, len(data) // 2, data.rindex(b"compatible=") + 12):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        with pytest.raises(VerificationError):
            read_bundle(path, built.signer)
        (tmp_path / "out").mkdir()
        assert rauc("extract", "--keyring", crt, path, tmp_path / "out/x").returncode != 0
        shutil.rmtree(tmp_path / "out")


def system_conf(repository: Path, board: str, **variables: str) -> configparser.ConfigParser:
    """Return the /etc/rauc/system.conf of a stock board's own system."""
    loaded = gather(repository / f"boards/{board}.yaml").system.loaded
    loaded = replace(loaded, value=msgspec.structs.replace(loaded.value, variables=loaded.value.variables | variables))
    tree = FileTree()
    for index, overlay in enumerate(loaded.value.overlay):
        if overlay.from_.endswith("edge-updates"):
            lay_overlay(loaded, index, tree, overlay)
    conf = configparser.ConfigParser()
    conf.read_string(text_of(tree, "etc/rauc/system.conf"))
    return conf


@pytest.mark.parametrize("board", ["qemu-aarch64", "rpi4"])
def test_devices_want_what_bundles_say(repository: Path, built: Made, tmp_path: Path, board: str) -> None:
    """A bundle for one board is not accepted by another, though the system has the same name."""
    wanted = system_conf(repository, board)["system"]["compatible"]
    assert wanted == f"{board}-edge-base"
    record = json.loads((built.out / "release.json").read_text())
    record["board"], record["system"]["name"] = board, "edge-base"
    write_json(built.out / "release.json", record)
    built.seal()
    assert write(built, tmp_path / "b.raucb").compatible == wanted
    assert system_conf(repository, board, COMPATIBLE="fleet")["system"]["compatible"] == "fleet"


def test_the_same_bytes_each_time(built: Made, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(built, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    write(built, tmp_path / "two", Label(version="8"))
    assert (tmp_path / "one").read_bytes() != (tmp_path / "two").read_bytes()
    assert read_bundle(tmp_path / "two", built.signer).version == "8"


def test_what_is_refused(built: Made, tmp_path: Path) -> None:
    for word in ("a\nb", "", " a", "a\x7f"):
        with pytest.raises(UsageError, match="not a valid description" if word else "not a valid version"):
            write(built, tmp_path / "b", Label(description=word) if word else Label(version="\t"))
    record = json.loads((built.out / "release.json").read_text())
    record["files"]["system.img"]["sha256"] = "0" * 64
    (built.out / "release.json").write_text(json.dumps(record))
    with pytest.raises(VerificationError, match="differs from what the build's record lists"):
        write(built, tmp_path / "b")
    built.flip("system.img", 4096)
    with pytest.raises(ErofsEdgeError, match="holds none of the build's files"):
        write(built, tmp_path / "b")
    (built.out / "disk.img").write_bytes(bytes(1 << 20))
    with pytest.raises(UsageError, match="no slots"):
        write(built, tmp_path / "b")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".b", "b."))]


def test_hostile_bundles(built: Made, tmp_path: Path) -> None:
    path = tmp_path / "b"
    write(built, path)
    data = path.read_bytes()
    length = int.from_bytes(data[-8:], "big")
    cuts = (b"", data[:7], data[:-9], data[4096:], data[: -8 - length] + bytes(8), data[:-8] + b"\xff" * 8)
    for piece in cuts:
        path.write_bytes(piece)
        with pytest.raises(VerificationError if piece == data[4096:] else FormatError):
            read_bundle(path, built.signer)
    certificate = self_signed(built.signer, 0)
    good = enclosed(data[-8 - length : -8]).decode()
    for text in (
        good.replace("format=verity", "format=plain"),
        good.replace("verity-size=", "verity-size=-"),
        good.replace("verity-hash=", "verity-hash=zz"),
        good.replace("verity-salt=", "verity-salt=" + "00" * 300),
        good.replace("[update]", "[bundle]"),
        good.replace("[bundle]", ""),
        "\xff",
        "[update",
    ):
        raw = sign_enclosed(text.encode("latin-1"), built.signer, certificate)
        path.write_bytes(data[: -8 - length] + raw + len(raw).to_bytes(8, "big"))
        with pytest.raises(FormatError):
            read_bundle(path, built.signer)


@pytest.mark.oracle
def test_openssl_reads_ours_and_we_read_openssls(
    owner: KeySigner, tmp_path: Path, oracle: Callable[[str], str]
) -> None:
    content, certificate = b"some [text]\n" * 300, self_signed(owner, EPOCH)
    (tmp_path / "crt").write_bytes(certificate.pem)
    (tmp_path / "key").write_bytes(owner.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "in").write_bytes(content)
    (tmp_path / "ours").write_bytes(sign_enclosed(content, owner, certificate))
    openssl = [oracle("openssl"), "cms", "-binary"]
    verify: list[str | Path] = [
        "-verify",
        "-inform",
        "der",
        "-in",
        tmp_path / "ours",
        "-CAfile",
        tmp_path / "crt",
        "-purpose",
        "any",
    ]
    done = subprocess.run([*openssl, *verify], capture_output=True, check=True)
    assert done.stdout == content
    sign: list[str | Path] = [
        "-sign",
        "-nodetach",
        "-noattr",
        "-outform",
        "der",
        "-signer",
        tmp_path / "crt",
        "-inkey",
        tmp_path / "key",
    ]
    subprocess.run([*openssl, *sign, "-in", tmp_path / "in", "-out", tmp_path / "theirs"], check=True)
    assert enclosed((tmp_path / "theirs").read_bytes(), owner) == content


@given(st.binary(max_size=300), st.integers(0, 10_000), st.integers(0, 255))
def test_any_bytes(owner: KeySigner, junk: bytes, at: int, value: int) -> None:
    raw = bytearray(sign_enclosed(b"content", owner, self_signed(owner, 0)))
    changed = at % len(raw)
    same = raw[changed] == value
    raw[changed] = value
    for data in (junk, bytes(raw)):
        with contextlib.suppress(ErofsEdgeError):
            assert enclosed(data, owner) == b"content" and (same or data != junk)


def test_the_command(built: Made, tmp_path: Path) -> None:
    key, path = tmp_path / "key.pem", tmp_path / "b.raucb"
    key.write_bytes(built.signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    call = ["rauc", str(built.out), "--key", f"file:{key}", "-o", str(path), "--version", "9", "--json"]
    done = CliRunner().invoke(command, call)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["compatible"], said["version"]) == ("made-made-system", "9") and said["size"] == path.stat().st_size
    assert [one["slot"] for one in said["images"]] == ["boot", "system"]
    done = CliRunner().invoke(command, ["check", str(path), "--key", str(built.out / "sign.pub.pem")])
    assert done.exit_code == 0 and "made-made-system, version 9" in done.stdout
