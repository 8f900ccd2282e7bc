# SPDX-License-Identifier: Apache-2.0
"""A signer without a key: it returns the signatures that a release already has, if they match.

So anyone who has only the public key can rebuild everything that is signed, bit for bit. A digest that the release
never signed gets a blank signature: the content differs then.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from erofs_edge.boot.fdt import MAGIC as FDT_MAGIC
from erofs_edge.boot.fdt import PROP, tags
from erofs_edge.errors import ErofsEdgeError, FormatError
from erofs_edge.trust.key import BlankSignature, verifies

if TYPE_CHECKING:
    from erofs_edge.trust.key import AnyPublicKey

SCANNED_MAX = 64 << 20
"""largest file, in bytes, that may contain signatures in a container other than a FIT"""


@dataclass(frozen=True, slots=True)
class ReplaySigner:
    """`name` and `development` as in the release; `signatures` are candidates, each of which is tried. `missing`
    collects the digests (hex) that none of them matches: those get blank signatures, so that the rest can be compared.
    """

    name: str
    public_key: AnyPublicKey
    development: bool
    signatures: tuple[bytes, ...]
    missing: list[str] = field(default_factory=list)

    def sign_digest(self, digest: bytes) -> bytes:
        for signature in self.signatures:
            if verifies(self.public_key, signature, digest):
                return signature
        self.missing.append(digest.hex())
        return _blank(self.public_key)


def _blank(key: AnyPublicKey) -> BlankSignature:
    """A blank signature as long as one of the key's, or as well-formed."""
    if hasattr(key, "curve"):
        from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

        return BlankSignature(encode_dss_signature(1, 1))
    return BlankSignature(-(-key.key_size // 8))


def signatures_in(folder: Path, key: AnyPublicKey) -> Iterator[bytes]:
    """Everything in a release's files that may be a signature: the property `value` of FITs, the signature fields of
    DSSE envelopes, and, in small binary files and the end of a RAUC bundle, each run of bytes after a DER length that
    is as long as the key's signatures."""
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name.startswith("."):
            continue
        with path.open("rb") as handle:
            head = handle.read(4)
            if head == FDT_MAGIC.to_bytes(4, "big"):
                yield from _of_fit(head + handle.read())
            elif path.suffix == ".raucb":
                yield from _of_der(_at_end(path), key)
            elif path.suffix == ".jsonl":
                yield from _of_envelope(head + handle.read(SCANNED_MAX))
            elif path.stat().st_size <= SCANNED_MAX and path.suffix in (
                ".p7s",
                ".crt",
                ".json",
                ".efi",
                ".esl",
                ".auth",
            ):
                yield from _of_der(_unwrapped(head + handle.read()), key)


def _of_fit(data: bytes) -> Iterator[bytes]:
    try:
        yield from (bytes(tag.value) for tag in tags(data) if tag.kind == PROP and tag.name == "value")
    except FormatError:
        return


def _of_envelope(data: bytes) -> Iterator[bytes]:
    try:
        for line in data.splitlines():
            yield from (base64.b64decode(one["sig"]) for one in json.loads(line)["signatures"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return


def _at_end(path: Path) -> bytes:
    """The signed manifest at the end of a RAUC bundle, before its size in eight bytes."""
    with path.open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(size - 8, 0))
        length = int.from_bytes(handle.read(8), "big")
        handle.seek(max(size - 8 - length, 0))
        return handle.read(min(length, SCANNED_MAX))


def _unwrapped(data: bytes) -> bytes:
    """The bytes encoded by PEM and by base64 in JSON, following the text itself; damaged text is skipped."""
    pieces = [data]
    try:
        if data.startswith(b"-----BEGIN"):
            text = b"".join(line for line in data.splitlines() if not line.startswith(b"-----"))
            pieces.append(base64.b64decode(text))
        elif data[:1] == b"{":
            values = json.loads(data.rstrip(b"\0")).values()
            pieces += [base64.b64decode(value) for value in values if isinstance(value, str) and len(value) > 200]
    except (ValueError, AttributeError, RecursionError):
        pass
    return b"".join(pieces)


def _of_der(data: bytes, key: AnyPublicKey) -> Iterator[bytes]:
    """OCTET STRING and BIT STRING values as long as a signature of the key; ECDSA's lengths vary."""
    size = -(-key.key_size // 8)
    if hasattr(key, "curve"):
        for length in range(2 * size - 4, 2 * size + 9):
            for lead in (b"\x04" + bytes([length]), b"\x03" + bytes([length + 1, 0])):
                yield from _behind(data, lead, length)
        return
    for lead in (b"\x04\x82" + size.to_bytes(2, "big"), b"\x03\x82" + (size + 1).to_bytes(2, "big") + b"\0"):
        yield from _behind(data, lead, size)


def _behind(data: bytes, lead: bytes, length: int) -> Iterator[bytes]:
    at = data.find(lead)
    while at >= 0:
        yield data[at + len(lead) : at + len(lead) + length]
        at = data.find(lead, at + 1)


def replay_signer(folder: Path, record: dict[str, object], key: AnyPublicKey) -> ReplaySigner:
    """The signer of a release that `record` describes. Raises ErofsEdgeError if the record names no key."""
    said = record.get("sign")
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        raise ErofsEdgeError("the record does not say who signed", where=str(folder))
    unique = dict.fromkeys(signatures_in(folder, key))
    return ReplaySigner(said["name"], key, bool(said.get("development")), tuple(unique))
