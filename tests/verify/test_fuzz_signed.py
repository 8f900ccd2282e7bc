# SPDX-License-Identifier: Apache-2.0
"""Every signed container, damaged at random from fixed seeds: never accepted with other content, never a crash."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from made_build import make_build, make_fit

from erofs_edge.boot.contents import init_values
from erofs_edge.boot.fit import verify_fit
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.trust.avb import (
    Chain,
    Hashtree,
    Property,
    VBMeta,
    encode_key,
    parse_vbmeta,
    verify_vbmeta,
    write_vbmeta,
)
from erofs_edge.trust.certificate import load_certificate, self_signed
from erofs_edge.trust.key import KeySigner
from erofs_edge.trust.root_hash import (
    parse_detached,
    parse_verity_signature,
    sign_root_hash,
    verify_root_hash,
    verity_signature_json,
)
from erofs_edge.verify.path import verify_path

KEY = KeySigner("product", rsa.generate_private_key(65537, 2048))
ROOT = bytes(range(32))
ROUNDS = 400


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to four of: bits flipped, bytes of note, pieces cut out, doubled or moved, the end cut off."""
    raw = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(max(len(raw), 1)), rng.randint(1, 40)
        kind = rng.randrange(6)
        if kind == 0 and raw:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[at : at + 4] = rng.choice([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
        elif kind == 2:
            del raw[at : at + length]
        elif kind == 3:
            raw[at:at] = raw[at : at + length]
        elif kind == 4:
            raw[at : at + length] = rng.randbytes(length)
        else:
            del raw[at:]
    return bytes(raw)


def fuzz(data: bytes, accept: Callable[[bytes], object], seed: int) -> None:
    """`accept` returns what a damaged container says; it must be what the whole one says, or an ErofsEdgeError."""
    rng, said = random.Random(seed), accept(data)
    for _ in range(ROUNDS):
        broken = damage(data, rng)
        try:
            found = accept(broken)
        except ErofsEdgeError:
            continue
        assert found == said, "accepted with other content"


def test_fits() -> None:
    fit = make_fit({"ROOT_HASH": ROOT.hex()}, KEY)

    def accept(raw: bytes) -> object:
        verify_fit(raw, KEY.key.public_key())  # type: ignore[arg-type]
        return init_values(raw)

    fuzz(fit, accept, 1)
    fuzz(fit, lambda raw: init_values(raw) and None, 2)


def test_vbmeta() -> None:
    key = encode_key(KEY.public_key, "k")  # type: ignore[arg-type]
    tree = Hashtree("system", 8192, 8192, 4096, ROOT, b"salt")
    raw = write_vbmeta(VBMeta([tree, Property("a", b"b"), Chain("boot", 1, key)], 3), KEY)
    fuzz(raw, lambda data: verify_vbmeta(data, KEY), 3)
    fuzz(raw, lambda data: parse_vbmeta(data) and None, 4)


def test_pkcs7_json_and_certificates() -> None:
    certificate = self_signed(KEY, 5)
    signature = sign_root_hash(ROOT, KEY, certificate)
    fuzz(signature, lambda raw: verify_root_hash(raw, ROOT, KEY), 5)
    fuzz(signature, lambda raw: parse_detached(raw) and None, 6)

    def accept(raw: bytes) -> object:
        root_hash, _, found = parse_verity_signature(raw)
        verify_root_hash(found, root_hash, KEY)
        return root_hash

    fuzz(verity_signature_json(ROOT, KEY, certificate).rstrip(b"\0"), accept, 7)
    fuzz(certificate.der, lambda raw: load_certificate(raw, "x") and None, 8)


def test_release_records(tmp_path: Path) -> None:
    made = make_build(tmp_path / "out", KEY)
    path = made.out / "release.json"
    whole = path.read_bytes()
    (made.out / "disk.img").unlink()  # its rows would only cost time
    rng = random.Random(9)
    for _ in range(40):
        path.write_bytes(damage(whole, rng))
        assert not verify_path(made.out, KEY).ok


@pytest.mark.parametrize("name", ["system.root-hash.p7s", "system.verity-sig.json", "sign.crt", "release.json.p7s"])
def test_files_of_a_build_that_are_garbage(name: str, tmp_path: Path) -> None:
    made = make_build(tmp_path / "out", KEY)
    for garbage in (b"", b"\0" * 1000, b"{" * 2000, json.dumps({"rootHash": 1}).encode()):
        (made.out / name).write_bytes(garbage)
        assert not verify_path(made.out, KEY).ok
    shutil.rmtree(made.out)
