# SPDX-License-Identifier: Apache-2.0
"""Signed statements in a DSSE envelope, as used by in-toto.

Sources: the DSSE protocol and envelope, version 1 (pre-authentication encoding, base64 payload, several signatures);
in-toto attestation framework, statement v1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from erofs_edge.errors import FormatError, VerificationError
from erofs_edge.trust.key import Signer, VerificationKey, fingerprint, sign, verifies

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
SIZE_MAX = 64 << 20
SIGNATURES_MAX = 64


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement about files. `subjects`: name → SHA-256 in hex."""

    kind: str
    subjects: dict[str, str]
    predicate: dict[str, Any]

    def encode(self) -> bytes:
        """JSON with sorted keys."""
        subjects = [{"name": name, "digest": {"sha256": sha}} for name, sha in sorted(self.subjects.items())]
        value = {"_type": STATEMENT, "subject": subjects, "predicateType": self.kind, "predicate": self.predicate}
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def pre_authentication(payload: bytes, kind: str = PAYLOAD_TYPE) -> bytes:
    """The bytes that the signatures of an envelope cover."""
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def seal(statement: Statement, signer: Signer) -> bytes:
    """Make an envelope with one signature, a line of JSON."""
    payload = statement.encode()
    signature = sign(signer, pre_authentication(payload))
    return _envelope(payload, [{"keyid": fingerprint(signer), "sig": base64.b64encode(signature).decode()}])


def add_signature(envelope: bytes, signer: Signer, agrees: Callable[[Statement], bool]) -> bytes:
    """The same envelope with another signature added, so that several parties can sign. Raises FormatError, and
    VerificationError if `agrees` is false for the statement in it: nobody should sign a statement by others unread."""
    payload, signatures = _parse(envelope)
    if not agrees(_statement(payload)):
        raise VerificationError("it holds another statement than the one to be signed", hint="name another file")
    kept = [{"keyid": key, "sig": base64.b64encode(value).decode()} for key, value in signatures]
    kept = [one for one in kept if one["keyid"] != fingerprint(signer)]
    signature = sign(signer, pre_authentication(payload))
    return _envelope(payload, [*kept, {"keyid": fingerprint(signer), "sig": base64.b64encode(signature).decode()}])


def unseal(envelope: bytes, key: VerificationKey) -> Statement:
    """The statement, if one of the signatures is the key's. Raises FormatError, VerificationError."""
    payload, signatures = _parse(envelope)
    digest = hashlib.sha256(pre_authentication(payload)).digest()
    if not any(verifies(key.public_key, signature, digest) for _, signature in signatures):
        raise VerificationError(
            f"none of the {len(signatures)} signature(s) of the statement is by '{key.name}'",
            hint="the public key of whoever made the statement",
        )
    return _statement(payload)


def _envelope(payload: bytes, signatures: list[dict[str, str]]) -> bytes:
    value = {"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(payload).decode(), "signatures": signatures}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _parse(envelope: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    if len(envelope) > SIZE_MAX:
        raise FormatError(f"an envelope of more than {SIZE_MAX} bytes")
    try:
        value = json.loads(envelope)
        if value["payloadType"] != PAYLOAD_TYPE:
            raise FormatError(f"the envelope holds {str(value['payloadType'])[:80]!r}, not a statement")
        payload = base64.b64decode(value["payload"], validate=True)
        listed = value["signatures"]
        if not isinstance(listed, list) or len(listed) > SIGNATURES_MAX:
            raise FormatError("the envelope's signatures are no list, or too many")
        signatures = [(str(one.get("keyid", "")), base64.b64decode(one["sig"], validate=True)) for one in listed]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise FormatError(f"not a DSSE envelope: {error}") from error
    return payload, signatures


def _statement(payload: bytes) -> Statement:
    try:
        value = json.loads(payload)
        if value["_type"] != STATEMENT:
            raise FormatError(f"a statement of type {str(value['_type'])[:80]!r}")
        subjects = {str(one["name"]): str(one["digest"]["sha256"]) for one in value["subject"]}
        if len(subjects) != len(value["subject"]) or not isinstance(value["predicate"], dict):
            raise FormatError("a subject is named twice, or the predicate is no object")
        return Statement(str(value["predicateType"]), subjects, value["predicate"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"not an in-toto statement: {error}") from error
