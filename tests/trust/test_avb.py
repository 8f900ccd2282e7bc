# SPDX-License-Identifier: Apache-2.0
"""vbmeta images: avbtool's bytes, what is refused, hostile input.

The golden digests were computed with AOSP's avbtool 1.3.0 (external/avb) and the key of `fixed_key`.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fixed_key import fixed_key
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.build.avb import BLOCK, add_hashtree_footer, hash_descriptor
from erofs_edge.errors import CapacityError, ErofsEdgeError, FormatError, UsageError, VerificationError
from erofs_edge.trust.avb import (
    FOOTER_SIZE,
    HASHTREE_DISABLED,
    SIZE_MAX,
    VERIFICATION_DISABLED,
    Chain,
    Cmdline,
    Descriptor,
    Footer,
    Hash,
    Hashtree,
    Property,
    VBMeta,
    decode_key,
    encode_key,
    parse_footer,
    parse_vbmeta,
    verify_vbmeta,
    write_vbmeta,
)
from erofs_edge.trust.key import KeySigner

KEY = fixed_key()
OTHER = KeySigner("other", rsa.generate_private_key(65537, 2048))
AVB_KEY = encode_key(KEY.public_key, KEY.name)  # type: ignore[arg-type]
TREE = Hashtree("system", 8192, 8192, 4096, bytes(range(32)), b"salt")
EVERY: list[Descriptor] = [
    TREE,
    Hash("boot", 5, bytes(32), b""),
    Property("a.b", b"\0\xff"),
    Cmdline("quiet é", 1),
    Chain("vendor", 3, AVB_KEY),
]
SIGNED = write_vbmeta(VBMeta(list(EVERY)), KEY)
IMAGES = {  # algorithm and bytes of the image → the whole partition of 8 MiB
    ("sha256", 4096): "156459f733f0c9431bcf211918a1b176867793f42e66c2655c04103b3a82433f",
    ("sha256", 524288): "8d7a346a79f1b2ad03b2e9948b69d3d6c11cc445f5a1f99364ef65fb036cbd86",
    ("sha256", 2867200): "0935234efae827993a496949432384604d66b507378d8cdea657a31f06bebe69",
    ("sha256", 528224): "0fac29e3394a3b584d4eab19bf90db8fb319ee35d2cd7aa3d747f14ef0111b12",
    ("sha512", 4096): "c83083d76631219649a7ae795361a717180097d79ca5ca783f2a47ee1b4706d9",
    ("sha512", 524288): "9db44fe76abf8118ebe1c246d447c06891652ff58541215cf79f9465cd637711",
    ("sha512", 2867200): "508ff7263474b4cfe72b3984818e03f57e83be5fc7be1ef12f327d229b8a8e7f",
    ("sha512", 528224): "0d7a77e10d4780868c03e5578064c75f0cd1de637581257bf0fe3ad5d7c988ef",
}
GOLDEN_VBMETA = "dac1320307825457f81ce83b655a71e41a425e636cc3a9fc817b1b5ab4638b20"
GOLDEN_HASH = "fb5ad212ff121c11fd6ba40a2b0b951bebf667fc4391f95de0f5f682e7369511"
GOLDEN_KEY = "a606b0fc29bb221f73e89e7e79f1af6ed8e69c776b2d83436bf176d26eb1c4e8"


def sample(size: int) -> bytes:
    return b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(size // 32))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("algorithm", "size"), IMAGES)
def test_partitions_are_those_of_avbtool(algorithm: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / "system.img"
    path.write_bytes(sample(size))
    meta = VBMeta([Property("com.example.os", b"13"), Cmdline("quiet")], rollback_index=7, release="golden")
    for _ in range(2):  # a second call takes off what the first has added
        add_hashtree_footer(
            path, "system", 8 << 20, KEY, meta, fec_roots=0, algorithm=algorithm, salt=bytes.fromhex("aabbcc00")
        )  # fmt: skip
        assert sha256(path.read_bytes()) == IMAGES[algorithm, size]


def test_vbmeta_images_are_those_of_avbtool(tmp_path: Path) -> None:
    chains = [Chain("boot", 2, AVB_KEY), Chain("vendor", 3, AVB_KEY, 1), Property("a", b"b")]
    meta = VBMeta(list(chains), rollback_index=5, rollback_index_location=1, release="golden")
    assert sha256(write_vbmeta(meta, KEY)) == GOLDEN_VBMETA
    assert sha256(AVB_KEY) == GOLDEN_KEY
    (tmp_path / "boot.img").write_bytes(sample(8000))
    descriptor = hash_descriptor(tmp_path / "boot.img", "boot", salt=b"\1")
    assert sha256(write_vbmeta(VBMeta([descriptor], release="golden"), KEY)) == GOLDEN_HASH


@pytest.mark.parametrize("signer", [KEY, KeySigner("big", rsa.generate_private_key(65537, 4096))], ids=["2048", "4096"])
def test_what_is_written_is_read(signer: KeySigner) -> None:
    meta = VBMeta(list(EVERY), 9, 0, 0, "x")
    raw = write_vbmeta(meta, signer)
    assert verify_vbmeta(raw + bytes(100), signer) == meta
    embedded = parse_vbmeta(raw)[1]
    assert decode_key(embedded, "k").public_key.public_numbers() == signer.public_key.public_numbers()  # type: ignore[union-attr]


def test_what_verification_is_for() -> None:
    raw = write_vbmeta(VBMeta(list(EVERY), rollback_index=4), KEY)
    verify_vbmeta(raw, KEY, minimum=4)
    with pytest.raises(VerificationError, match="rollback index 4 is below the minimum of 5"):
        verify_vbmeta(raw, KEY, minimum=5)
    with pytest.raises(VerificationError, match="another key than 'other'"):
        verify_vbmeta(raw, OTHER)
    for flag in (HASHTREE_DISABLED, VERIFICATION_DISABLED):
        with pytest.raises(VerificationError, match="switches verification off"):
            verify_vbmeta(write_vbmeta(VBMeta(flags=flag), KEY), KEY)
    unsigned = bytearray(raw)
    unsigned[28:32] = bytes(4)
    with pytest.raises(FormatError, match="not signed"):
        verify_vbmeta(bytes(unsigned), KEY)
    # the attacker's signature under the owner's key
    theirs = write_vbmeta(VBMeta(rollback_index=4), OTHER)
    swapped = theirs.replace(encode_key(OTHER.public_key, "o"), AVB_KEY)  # type: ignore[arg-type]
    auth = int.from_bytes(swapped[12:20], "big")
    digest = hashlib.sha256(swapped[:256] + swapped[256 + auth :]).digest()
    with pytest.raises(VerificationError, match="signature of the vbmeta image"):
        verify_vbmeta(swapped[:256] + digest + swapped[288:], KEY)


def test_every_byte_of_a_vbmeta_image_counts() -> None:
    raw = write_vbmeta(VBMeta(list(EVERY), rollback_index=4), KEY)
    covered = [*range(256), *range(256, 256 + 32 + 256), *range(576, len(raw))]  # but for the filler of the signature
    rng = random.Random(7)
    for at in rng.sample(covered, 200):
        broken = bytearray(raw)
        broken[at] ^= 1 << rng.randrange(8)
        with pytest.raises((FormatError, VerificationError)):
            verify_vbmeta(bytes(broken), KEY)
    for end in range(0, len(raw), 31):
        with pytest.raises((FormatError, VerificationError)):
            verify_vbmeta(raw[:end], KEY)


@given(st.data())
def test_hostile_headers_and_descriptors_are_format_errors(data: st.DataObject) -> None:
    """Resealed after the change: the parser meets it, not the hash."""
    raw = bytearray(SIGNED)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from([*range(4, 120), *range(576, 576 + 700)]))
        raw[at] = data.draw(st.sampled_from([0, 1, 7, 8, 0x7F, 0x80, 0xFF, raw[at] ^ 1]))
    auth = int.from_bytes(raw[12:20], "big")
    if auth < len(raw):
        raw[256:288] = hashlib.sha256(raw[:256] + raw[256 + auth :]).digest()
    try:
        parse_vbmeta(bytes(raw))
    except (FormatError, VerificationError):
        return
    if bytes(raw) != SIGNED:
        with pytest.raises((FormatError, VerificationError)):
            verify_vbmeta(bytes(raw), KEY)


def test_keys_that_avb_does_not_take() -> None:
    for key in (rsa.generate_private_key(65537, 3072), ec.generate_private_key(ec.SECP256R1())):
        with pytest.raises(ErofsEdgeError, match=r"AVB"):
            write_vbmeta(VBMeta(), KeySigner("k", key))
    for raw in (b"", AVB_KEY[:-1], bytes(len(AVB_KEY)), AVB_KEY[:-1] + b"\0", b"\0\0\0\7" + AVB_KEY[4:]):
        with pytest.raises(FormatError, match="public key in AVB's form"):
            decode_key(raw, "k")


def test_locations_are_used_once() -> None:
    for chains in ([Chain("a", 0, AVB_KEY)], [Chain("a", 2, AVB_KEY), Chain("b", 2, AVB_KEY)]):
        with pytest.raises(ErofsEdgeError, match="rollback index location"):
            write_vbmeta(VBMeta(list(chains)), KEY)
    with pytest.raises(ErofsEdgeError, match="at most"):
        write_vbmeta(VBMeta([Property("big", bytes(SIZE_MAX))]), KEY)


def test_footers() -> None:
    footer = Footer(100, 4096, 512)
    assert parse_footer(footer.pack(), 12288) == footer
    assert parse_footer(bytes(FOOTER_SIZE), 12288) is None
    assert parse_footer(b"", 0) is None
    for bad in (
        replace(footer, vbmeta_offset=12288),
        replace(footer, vbmeta_size=1 << 40),
        replace(footer, original_size=5000),
    ):
        with pytest.raises(FormatError, match="outside the partition"):
            parse_footer(bad.pack(), 12288)


@pytest.mark.parametrize("roots", [2, 9])
def test_tree_and_parity_are_those_of_veritysetup(roots: int, tmp_path: Path, oracle: Callable[[str], str]) -> None:
    ours, theirs, fec = tmp_path / "ours", tmp_path / "theirs", tmp_path / "fec"
    data = sample(300 * BLOCK)
    ours.write_bytes(data)
    theirs.write_bytes(data)
    tree = add_hashtree_footer(ours, "system", 4 << 20, KEY, fec_roots=roots)
    command = [
        oracle("veritysetup"), "format", theirs, theirs, "--no-superblock", f"--hash-offset={len(data)}",
        "--data-blocks=300", f"--salt={tree.salt.hex()}", f"--fec-device={fec}", f"--fec-roots={roots}",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert tree.root_digest.hex() in done.stdout
    whole = ours.read_bytes()
    assert whole[: tree.tree_offset + tree.tree_size] == theirs.read_bytes()
    assert whole[tree.fec_offset : tree.fec_offset + tree.fec_size] == fec.read_bytes()
    assert verify_vbmeta(whole[-(-(tree.fec_offset + tree.fec_size) // BLOCK) * BLOCK :], KEY).descriptors == [tree]


def test_failures_leave_the_image_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "system.img"
    path.write_bytes(sample(40_000))
    before = path.read_bytes()
    with pytest.raises(CapacityError, match="holds 49152 bytes"):
        add_hashtree_footer(path, "system", 12 * BLOCK, KEY)
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="multiple of 4096"):
        add_hashtree_footer(path, "system", 100_000, KEY)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="empty"):
        add_hashtree_footer(path, "system", 1 << 20, KEY)
