# SPDX-License-Identifier: Apache-2.0
"""The search for traces of a key finds them in every form, at every place, packed or not."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from key_traces import CHUNK, PIECE, STRIDE, WRAPPED_MAX, Search, numbers_of

from erofs_edge.boot.initramfs import compress
from erofs_edge.erofs import api

FORMS = [
    "der", "pem", "base64", "base64, shifted", "hex", "hex, upper case", "decimal", "bytes turned round", "one piece",
]  # fmt: skip


@pytest.fixture(scope="module", params=["rsa2048", "ecdsa-p256"])
def key(request: pytest.FixtureRequest) -> object:
    return generate_rsa(65537, 2048) if request.param == "rsa2048" else generate_ec(SECP256R1())


@pytest.fixture(scope="module")
def search(key: object) -> Search:
    return Search(key)


def form_of(key: object, form: str) -> bytes:
    der: bytes = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined]
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined]
    number = numbers_of(key)[-1]
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return {
        "der": der, "pem": pem, "base64": base64.b64encode(der), "base64, shifted": base64.b64encode(b"x" + der),
        "hex": der.hex().encode(), "hex, upper case": der.hex().upper().encode(), "decimal": repr(number).encode(),
        "bytes turned round": raw[::-1], "one piece": raw[:PIECE],
    }[form]  # fmt: skip


def almost(piece: bytes) -> bytes:
    """Return the same bytes with another last byte."""
    return piece[:-1] + bytes([piece[-1] ^ 1])


@pytest.mark.parametrize("form", FORMS)
def test_every_form(tmp_path: Path, key: object, search: Search, form: str) -> None:
    leak, clean = tmp_path / "leak", tmp_path / "clean"
    leak.write_bytes(b"before" + form_of(key, form) + b"behind")
    clean.write_bytes(b"before" + bytes(4096) + b"behind")
    assert search.holders(tmp_path) == [leak]


def test_a_name(tmp_path: Path, key: object, search: Search) -> None:
    named = tmp_path / form_of(key, "one piece").hex()
    named.touch()
    assert search.holds(named) and not search.holds(Path(__file__))


def test_every_distance_from_a_stride(search: Search) -> None:
    for pattern in search.patterns:
        for before in range(STRIDE):
            assert search.found(bytes(before) + pattern), before
            assert search.found(bytes(before) + pattern + b"\xff" * 99), before
        assert not search.found(almost(pattern[:PIECE]))


def test_a_large_file_with_holes(tmp_path: Path, search: Search) -> None:
    """A piece across two chunks, at both ends, after a hole of a gigabyte; none is found before it is there."""
    piece, size = search.patterns[0], (1 << 30) + 4096
    disk = tmp_path / "disk"
    for at in (0, WRAPPED_MAX + 5, CHUNK - 1, CHUNK - PIECE + 1, 2 * CHUNK - 7, size - PIECE):
        with disk.open("wb") as file:
            file.write(bytes(range(1, 256)) * (2 * CHUNK // 255))
            file.truncate(size)
            os.pwrite(file.fileno(), almost(piece), at)
            assert not search.holds(disk)
            os.pwrite(file.fileno(), piece, at)
        assert search.holds(disk), at


def test_what_is_packed(tmp_path: Path, key: object, search: Search) -> None:
    """A key as text in a file of an EROFS image and in an initramfs, where no piece of it is visible."""
    source, image, boot = tmp_path / "source", tmp_path / "system.img", tmp_path / "boot.efi"
    source.mkdir()
    secret = form_of(key, "one piece").hex().encode()
    # LZ4 assembles it from earlier data, Zstandard packs letters into bits
    text = b"".join(secret[at : at + 8] + b"|" for at in range(0, len(secret), 8)) + b"some words " * 2000
    text += secret * 2
    (source / "file").write_bytes(text)
    api.build(source, image, compression="zstd")
    boot.write_bytes(b"a section" * 99 + compress(b"an archive" * 99_999, text) + b"another section" * 99)
    (source / "file").unlink()
    assert not any(pattern in file.read_bytes() for file in (image, boot) for pattern in search.patterns)
    assert sorted(search.holders(tmp_path)) == [boot, image]
    assert search.unpacked == {boot, image}


def test_what_is_packed_and_clean(tmp_path: Path, search: Search) -> None:
    source, image, boot = tmp_path / "source", tmp_path / "system.img", tmp_path / "boot.fit"
    source.mkdir()
    (source / "file").write_bytes(bytes(range(256)) * 800)
    api.build(source, image, compression="zstd")
    boot.write_bytes(b"a section" * 99 + compress(b"an archive" * 99_999) + b"\x02\x21\x4c\x18 by chance")
    (tmp_path / "disk.img").write_bytes(bytes(4 << 20))
    assert search.holders(tmp_path) == []
    assert search.unpacked >= {boot, image}
