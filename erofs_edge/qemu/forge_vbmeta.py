# SPDX-License-Identifier: Apache-2.0
"""Forgeries of vbmeta partitions by someone who has everything but the private key, see `forge.py`."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from struct import Struct

from erofs_edge.qemu.forge import MASK, Change, Target
from erofs_edge.trust.avb import (
    SIZE_MAX,
    VERIFICATION_DISABLED,
    Chain,
    Hash,
    Hashtree,
    encode_key,
    parse_vbmeta,
    write_vbmeta,
)
from erofs_edge.trust.key import KeySigner

_SIZES = Struct(">2Q")  # of the blocks, at byte 12 of the header
HEADER, SIZES_AT, FLAGS_AT, DIGEST = 256, 12, 120, 32
"""size of the header; offsets of sizes and flags (u32) in it; size of the digest after it (avb_vbmeta_image.h)"""


def descriptor(target: Target) -> list[Change]:
    """Another digest in the first descriptor; the digest of the image is corrected, the signature cannot be."""
    raw = bytearray(_image(target))
    meta = parse_vbmeta(bytes(raw))[0]
    first = next(one for one in meta.descriptors if isinstance(one, Hash | Hashtree))
    digest = first.digest if isinstance(first, Hash) else first.root_digest
    at = raw.index(digest, HEADER + _SIZES.unpack_from(raw, SIZES_AT)[0])
    raw[at] ^= MASK
    return _hashed(raw, f"byte {at:#x}")


def switched_off(target: Target) -> list[Change]:
    """The flag that tells boot loaders to verify nothing; the digest of the image is corrected."""
    raw = bytearray(_image(target))
    raw[FLAGS_AT + 3] |= VERIFICATION_DISABLED
    return _hashed(raw, "the flags")


def in_signature(target: Target) -> list[Change]:
    """Flip a bit of the signature."""
    raw = bytearray(_image(target))
    at = HEADER + DIGEST + len(parse_vbmeta(bytes(raw))[2]) // 2
    return [Change(at, bytes([raw[at] ^ MASK]), f"byte {at:#x}")]


def other_key(target: Target) -> list[Change]:
    """Sign properly with another key, whose public half is included."""
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

    meta, _, signature, _ = parse_vbmeta(_image(target))
    key = generate_private_key(65537, 8 * len(signature))
    public = encode_key(key.public_key(), "other")
    descriptors = [replace(one, public_key=public) if isinstance(one, Chain) else one for one in meta.descriptors]
    return [Change(0, write_vbmeta(replace(meta, descriptors=descriptors), KeySigner("other", key)), "the signature")]


def _hashed(raw: bytearray, what: str) -> list[Change]:
    authentication, _ = _SIZES.unpack_from(raw, SIZES_AT)
    raw[HEADER : HEADER + DIGEST] = sha256(raw[:HEADER] + raw[HEADER + authentication :]).digest()
    return [Change(0, bytes(raw), what)]


def _image(target: Target) -> bytes:
    raw = target.read(0, SIZE_MAX)
    return raw[: HEADER + sum(_SIZES.unpack_from(raw, SIZES_AT))]
