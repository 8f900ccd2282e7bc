# SPDX-License-Identifier: Apache-2.0
"""Signed FITs: compared with those of mkimage, which computes the same signature, and after every kind of change."""

from __future__ import annotations

import datetime
import hashlib
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.boot.fdt import PROP, DeviceTree, Node, cells, header, parse, string, tags, write
from erofs_edge.boot.fit import (
    KERNEL_ALIGN,
    SIGNATURE_PATH,
    Image,
    add_key,
    build_fit,
    signed_bytes,
    signed_nodes,
    verify_fit,
)
from erofs_edge.errors import ErofsEdgeError, FormatError, VerificationError
from erofs_edge.trust.signer import KeySigner

EPOCH = 1_700_000_000
IMAGES = {
    "kernel": Image("kernel_noload", bytes(range(256)) * 40 + b"odd", "Linux 6.12"),
    "ramdisk": Image("ramdisk", b"initramfs" * 33, "initramfs"),
    "fdt": Image("flat_dt", write(DeviceTree(Node({"model": string("x")}))), "board.dtb"),
}


@pytest.fixture(scope="module")
def signer() -> KeySigner:
    return KeySigner("dev", rsa.generate_private_key(65537, 2048))


@pytest.fixture(scope="module")
def fit(signer: KeySigner) -> bytes:
    return build_fit(IMAGES, description="board", epoch=EPOCH, signer=signer, load_address=0x50000000)


@pytest.fixture
def mkimage(oracle: Callable[[str], str], signer: KeySigner, tmp_path: Path) -> Callable[..., str]:
    """Run mkimage in a directory that has the key as dev.key and dev.crt."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dev")])
    day = datetime.datetime(2024, 1, 1)
    certificate = x509.CertificateBuilder(name, name, signer.public_key, 1, day, day + datetime.timedelta(9999))
    pem = signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "dev.key").write_bytes(pem)
    (tmp_path / "dev.crt").write_bytes(certificate.sign(signer.key, SHA256()).public_bytes(Encoding.PEM))
    program = oracle("mkimage")

    def run(*arguments: str) -> str:
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), "TZ": "UTC", "LC_ALL": "C"}
        folder = Path(oracle("dtc")).parent
        environment["PATH"] = f"{folder}:{environment['PATH']}"
        done = subprocess.run(
            [program, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def value_of(fit: bytes, path: str = SIGNATURE_PATH, name: str = "value") -> bytes:
    node = parse(fit).root.at(path)
    assert node is not None
    return node.props[name]


def test_mkimage_signs_our_fit_with_the_same_bytes(fit: bytes, mkimage: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "ours.fit").write_bytes(fit)
    mkimage("-F", "-k", ".", "-r", "ours.fit")
    theirs = (tmp_path / "ours.fit").read_bytes()
    assert value_of(theirs, name="signer-name") == b"mkimage\0", "mkimage did sign it anew"
    assert value_of(theirs) == value_of(fit)
    assert value_of(theirs, name="hashed-nodes") == value_of(fit, name="hashed-nodes")


def test_we_accept_what_mkimage_builds(mkimage: Callable[..., str], signer: KeySigner, tmp_path: Path) -> None:
    for name, image in IMAGES.items():
        (tmp_path / name).write_bytes(image.data)
    nodes = "".join(
        f'{name} {{ data = /incbin/("{name}"); type = "{image.kind}"; arch = "arm64"; os = "linux";'
        f' compression = "none"; load = <0>; entry = <0>; hash-1 {{ algo = "sha256"; }}; }};'
        for name, image in IMAGES.items()
    )
    (tmp_path / "t.its").write_text(
        f'/dts-v1/; / {{ description = "t"; #address-cells = <1>; images {{ {nodes} }};'
        ' configurations { default = "conf"; conf { kernel = "kernel"; ramdisk = "ramdisk"; fdt = "fdt";'
        ' signature-1 { algo = "sha256,rsa2048"; key-name-hint = "dev"; sign-images = "kernel", "ramdisk", "fdt"; };'
        " }; }; };"
    )
    mkimage("-f", "t.its", "-k", ".", "-r", "theirs.fit")
    verify_fit((tmp_path / "theirs.fit").read_bytes(), signer.public_key)


def test_mkimage_and_dumpimage_read_it(
    fit: bytes, mkimage: Callable[..., str], oracle: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "ours.fit").write_bytes(fit)
    listing = mkimage("-l", "ours.fit")
    assert "Default Configuration: 'conf'" in listing
    assert "sha256,rsa2048:dev" in listing
    for index, name in enumerate(["ramdisk", "fdt", "kernel"]):
        command = [oracle("dumpimage"), "-T", "flat_dt", "-p", str(index), "-o", str(tmp_path / name), "ours.fit"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        assert (tmp_path / name).read_bytes() == IMAGES[name].data
        assert hashlib.sha256(IMAGES[name].data).hexdigest() in listing


def test_same_input_same_bytes(fit: bytes, signer: KeySigner) -> None:
    assert build_fit(IMAGES, description="board", epoch=EPOCH, signer=signer, load_address=0x50000000) == fit
    assert int.from_bytes(fit[4:8], "big") == len(fit), "totalsize is all of it"


def test_every_bit_counts(signer: KeySigner) -> None:
    """Any flipped bit is found, except in what U-Boot does not sign either: memory reservations, padding after values,
    and the signature node around its value."""
    fit = build_fit(IMAGES, description="board", epoch=EPOCH, signer=signer)
    verify_fit(fit, signer.public_key)
    unsigned = set(range(56))
    for tag in tags(fit):
        if tag.kind == PROP:
            unsigned |= set(range(tag.start + 12 + len(tag.value), tag.end))
            if tag.path == SIGNATURE_PATH and tag.name not in ("value", "hashed-strings"):
                unsigned |= set(range(tag.start, tag.end))
    positions = set(range(0, len(fit), 31)) - unsigned
    assert len(positions) > 300
    for position in sorted(positions):
        broken = bytearray(fit)
        broken[position] ^= 1
        with pytest.raises((VerificationError, FormatError)):
            verify_fit(bytes(broken), signer.public_key)


def test_other_key_and_no_signature_are_refused(fit: bytes) -> None:
    other = rsa.generate_private_key(65537, 2048)
    with pytest.raises(VerificationError, match="signature does not match"):
        verify_fit(fit, other.public_key())
    unsigned = build_fit(IMAGES, description="board", epoch=EPOCH, signer=None)
    with pytest.raises(VerificationError, match="not signed"):
        verify_fit(unsigned, other.public_key())


def inserted(fit: bytes, before: tuple[str, str], tree: Node, *, inner: bool = False) -> bytes:
    """Return a FIT with tokens of `tree` inserted before a property of a node: the whole node or, with `inner`, its
    content. Missing names are appended to the strings."""
    words, at = list(header(fit)), next(t.start for t in tags(fit) if (t.path, t.name) == before)
    donor = write(DeviceTree(Node(children={"new": tree})))
    strings = fit[words[3] : words[3] + words[8]]
    pieces = b""
    for tag in list(tags(donor))[1:-2][1 if inner else 0 : -1 if inner else None]:
        piece = donor[tag.start : tag.end]
        if tag.kind == PROP:
            name = tag.name.encode() + b"\0"
            strings += b"" if name in strings else name
            piece = piece[:8] + strings.index(name).to_bytes(4, "big") + piece[12:]
        pieces += piece
    body = fit[words[2] : at] + pieces + fit[at : words[2] + words[9]]
    words[9], words[8], words[3] = len(body), len(strings), words[2] + len(body)
    words[1] = words[3] + words[8]
    return struct.pack(">10I", *words) + fit[40 : words[2]] + body + strings


@pytest.mark.parametrize("name", ["data", "data-position", "data-offset", "data-size"])
def test_no_second_data_beside_what_is_hashed(name: str, signer: KeySigner) -> None:
    """The signature does not cover the data property, so it could be added twice; a reader takes the first."""
    fit = build_fit(IMAGES, description="board", epoch=EPOCH, signer=signer)
    evil = inserted(fit, ("/images/kernel", "description"), Node({name: b"evil"}), inner=True)
    words = header(evil)
    assert len(evil) == words[1]
    with pytest.raises((VerificationError, FormatError), match=r"twice|must not hold"):
        verify_fit(evil, signer.public_key)


def test_no_node_that_answers_to_the_name_of_another(signer: KeySigner) -> None:
    """libfdt finds /images/kernel@1 when asked for /images/kernel (CVE-2021-27138), and no signature covers the
    former."""
    fit = build_fit(IMAGES, description="board", epoch=EPOCH, signer=signer)
    evil = inserted(fit, ("/images/ramdisk", "ramdisk"), Node({"data": b"evil"})).replace(
        b"\0\0\0\1new\0", b"\0\0\0\1k@1\0"
    )
    assert signed_bytes(evil, signed_nodes(list(IMAGES))) == signed_bytes(fit, signed_nodes(list(IMAGES)))
    with pytest.raises(VerificationError, match="k@1"):
        verify_fit(evil, signer.public_key)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 24).map(lambda n: n * 8), st.integers(0, 5000), st.integers(0, 3000))
def test_uncompressed_kernel_starts_where_it_can_run(load_address: int, ramdisk: int, fdt: int) -> None:
    images = {
        "kernel": Image("kernel_noload", b"K" * 4096, "k"),
        "ramdisk": Image("ramdisk", b"R" * ramdisk, "r"),
        "fdt": Image("flat_dt", b"F" * fdt, "f"),
    }
    fit = build_fit(images, description="x", epoch=0, signer=None, load_address=load_address)
    assert (load_address + fit.index(b"K" * 4096)) % KERNEL_ALIGN == 0
    assert list(parse(fit).root.children["images"].children)[-1] == "kernel", "nothing behind the kernel"
    assert len(fit) < KERNEL_ALIGN + 16384


def test_control_tree_gets_the_same_key_as_from_mkimage(
    fit: bytes, mkimage: Callable[..., str], signer: KeySigner, tmp_path: Path
) -> None:
    control = write(DeviceTree(Node({"compatible": string("virt")}, {"memory": Node({"reg": cells(0, 1)})})))
    (tmp_path / "ours.fit").write_bytes(fit)
    (tmp_path / "control.dtb").write_bytes(control)
    mkimage("-F", "-k", ".", "-K", "control.dtb", "-r", "ours.fit")
    theirs = parse((tmp_path / "control.dtb").read_bytes()).root
    assert parse(add_key(control, signer)).root == theirs
    assert theirs.at("/signature/key-dev") is not None


def test_key_that_u_boot_cannot_use_is_refused() -> None:
    for key in (rsa.generate_private_key(65537, 1024), rsa.generate_private_key(3, 2048)):
        with pytest.raises(ErofsEdgeError, match="RSA key of"):
            build_fit(IMAGES, description="x", epoch=0, signer=KeySigner("k", key))
