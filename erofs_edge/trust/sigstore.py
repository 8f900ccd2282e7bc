# SPDX-License-Identifier: Apache-2.0
"""Sigstore bundles over release records, checked without a network.

A bundle states that someone with an identity (a mail address, a workflow of a CI system), vouched for by an issuer,
signed some bytes, and that a public log has recorded the signature at a time when the certificate was valid. A policy
says what is trusted: the identity, its issuer, and the trusted root, which names the certificate authorities and logs.
No network access is needed: a bundle contains its certificate and the log's proof.

Bundles are checked entirely by the Sigstore project's own library. Sources: Sigstore's bundle format (0.1 to 0.3) and
trusted root (0.1).
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from erofs_edge.errors import FormatError, SourceError, ToolError, VerificationError

BUNDLE = ".sigstore.json"
"""what is appended to the name of the signed file for its bundle"""
BUNDLE_MAX = 1 << 20  # bytes
POLICY_MAX = 4 << 20  # bytes
_WORDS = ("identity", "issuer", "trusted_root")


@dataclass(frozen=True, slots=True)
class Policy:
    """Whose bundles are accepted. `trusted_root`: the value of a trusted_root.json."""

    identity: str
    issuer: str
    trusted_root: dict[str, Any]

    def encode(self) -> bytes:
        """JSON with sorted keys, for `parse_policy`."""
        value = {name: getattr(self, name) for name in _WORDS}
        return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Seen:
    """A valid bundle: who signed, and its place in the log (its number and the time, in UTC)."""

    identity: str
    issuer: str
    index: int
    time: datetime


def parse_policy(data: bytes, where: str = "policy") -> Policy:
    """Parse a policy. Raises FormatError for anything else, and for unknown keys."""
    try:
        if len(data) > POLICY_MAX:
            raise ValueError(f"more than {POLICY_MAX} bytes")
        value = json.loads(data)
        if not isinstance(value, dict) or set(value) != set(_WORDS):
            raise ValueError(f"it has {', '.join(_WORDS)} and nothing else")
        if not all(isinstance(value[name], str) and value[name] for name in _WORDS[:2]):
            raise ValueError("identity and issuer must be text")
        if not isinstance(value["trusted_root"], dict):
            raise ValueError("trusted_root is the value of a trusted_root.json")
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"not a policy for Sigstore bundles: {error}", where=where, hint="make one: erofs-edge keys sigstore"
        ) from error
    return Policy(**value)


def read_policy(path: Path) -> Policy:
    """Read the policy in a file. Raises SourceError if it cannot be read, else as `parse_policy`."""
    try:
        with path.open("rb") as handle:
            return parse_policy(handle.read(POLICY_MAX + 1), str(path))
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error


def check_bundle(bundle: bytes, data: bytes, policy: Policy, where: str = "bundle") -> Seen:
    """Return who signed `data`, according to a bundle that the policy accepts.

    Raises VerificationError for a bundle that is damaged, of other data or another signer, or not proved by the
    policy's root; FormatError if that root is invalid; ToolError without the library.
    """
    if len(bundle) > BUNDLE_MAX:
        raise VerificationError(f"a bundle of more than {BUNDLE_MAX} bytes", where=where)
    verifier = _verifier(policy, where)
    from sigstore.errors import Error
    from sigstore.models import Bundle
    from sigstore.verify.policy import Identity

    try:
        read = Bundle.from_json(bundle)
        verifier.verify_artifact(data, read, Identity(identity=policy.identity, issuer=policy.issuer))
        entry = json.loads(bundle)["verificationMaterial"]["tlogEntries"][0]
        index, moment = int(entry["logIndex"]), read.signing_certificate.not_valid_before_utc
        if "integratedTime" in entry:
            moment = datetime.fromtimestamp(int(entry["integratedTime"]), moment.tzinfo)
    except Error as error:
        raise VerificationError(
            f"the Sigstore bundle does not verify: {_line(error)}", where=where,
            hint=f"it must sign exactly this file, as {policy.identity}",
        ) from error  # fmt: skip
    except Exception as error:  # anything the library may raise for a forged bundle
        raise VerificationError(f"not a Sigstore bundle: {_line(error)}", where=where) from error
    return Seen(policy.identity, policy.issuer, index, moment)


def check_root(policy: Policy, where: str = "policy") -> None:
    """Raises FormatError if the policy's root cannot be used to check bundles, ToolError as above."""
    _verifier(policy, where)


def _verifier(policy: Policy, where: str) -> Any:
    """The library's verifier for this root; it uses no network."""
    try:
        from sigstore.models import TrustedRoot
        from sigstore.verify import Verifier
    except ImportError:
        raise ToolError(
            "Sigstore bundles need the Python package sigstore", hint="pip install 'erofs-edge[sigstore]'"
        ) from None
    with tempfile.NamedTemporaryFile("w", prefix="erofs-edge-root-") as file:
        json.dump(policy.trusted_root, file)
        file.flush()
        try:
            return Verifier(trusted_root=TrustedRoot.from_file(file.name))
        except Exception as error:  # the library's, pydantic's or cryptography's: it is not a trusted root
            raise FormatError(f"not a trusted root: {_line(error)}", where=where) from error


def _line(error: Exception) -> str:
    """The first line of a library's message, which may quote a whole document."""
    return " ".join(str(error).split()).partition(" For further information")[0][:200]
