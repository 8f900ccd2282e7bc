# SPDX-License-Identifier: Apache-2.0
"""Signatures and papers of an artifact: what is attached to a manifest in a registry.

A signature is a DSSE envelope (trust/dsse.py) with an in-toto statement whose subject is the manifest's digest; it
covers every blob, since the manifest names them by their hashes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from erofs_edge.errors import SourceError
from erofs_edge.registry.push import Paper
from erofs_edge.trust.dsse import Statement, seal
from erofs_edge.trust.key import Signer

SIGNED = "urn:erofs-edge:artifact:1"
"""predicateType of the statement that approves a manifest"""
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
CYCLONEDX = "application/vnd.cyclonedx+json"
SPDX = "application/spdx+json"
PKCS7 = "application/pkcs7-signature"
STATEMENT_MAX = 4 << 20  # bytes
PREDICATE = "predicateType"
BILLS = ("bom.cdx.json", "bom.spdx.json")
PROVENANCE = "provenance.intoto.jsonl"
ROOT_HASH = "system.root-hash.p7s"


def signature(name: str, sha256: str, signer: Signer) -> Paper:
    """The signer's statement about the manifest of `name` (registry/repository)."""
    envelope = seal(Statement(SIGNED, {name: sha256}, {}), signer)
    return Paper(ENVELOPE, ENVELOPE, "signature.dsse.json", envelope, {PREDICATE: SIGNED})


def bill(path: Path) -> Paper:
    """Read a bill of materials in CycloneDX or SPDX, in JSON. Raises SourceError if the file is neither."""
    try:
        data = path.read_bytes()
        value = json.loads(data)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"not JSON: {error}", where=str(path)) from error
    if isinstance(value, dict) and value.get("bomFormat") == "CycloneDX":
        return Paper(CYCLONEDX, CYCLONEDX, path.name, data)
    if isinstance(value, dict) and "spdxVersion" in value:
        return Paper(SPDX, SPDX, path.name, data)
    raise SourceError("neither a CycloneDX nor an SPDX document", where=str(path))


def papers_of(folder: Path) -> Iterator[Paper]:
    """The papers in a build's or release's folder: bills, provenance, the signed root hash."""
    for name in BILLS:
        if (folder / name).is_file():
            yield bill(folder / name)
    for name, media, said in (
        (PROVENANCE, ENVELOPE, {PREDICATE: "https://slsa.dev/provenance/v1"}),
        (ROOT_HASH, PKCS7, {}),
    ):
        if (folder / name).is_file():
            yield Paper(media, media, name, (folder / name).read_bytes(), said)
