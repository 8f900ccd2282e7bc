# SPDX-License-Identifier: Apache-2.0
"""A rebuilder's statement about a release: that it is identical, file by file; signed with the rebuilder's own key."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from erofs_edge.build.record import RELEASE, read_release
from erofs_edge.build.signing import RELEASE_SIGNATURE
from erofs_edge.disk.sparse import sparse_sha256
from erofs_edge.errors import ErofsEdgeError, VerificationError
from erofs_edge.release.rebuild import Rebuilt
from erofs_edge.trust.dsse import SIZE_MAX, Statement, unseal
from erofs_edge.trust.key import VerificationKey

ATTESTATION = "urn:erofs-edge:rebuild:1"


def attestation(result: Rebuilt, record: dict[str, Any]) -> Statement:
    """The statement, to be signed with the rebuilder's key. Raises ErofsEdgeError if the builds differ."""
    if not result.same:
        raise ErofsEdgeError("the rebuild differs: there is nothing to attest", where=str(result.out))
    return Statement(
        ATTESTATION,
        {one.name: one.released for one in result.verdicts},
        {
            "verdict": "identical",
            "board": record["board"],
            "root_hash": record["system"]["root_hash"],
            "inputs": record["inputs"]["digest"],
            "environment": {
                "python": platform.python_version(),
                "machine": platform.machine(),
                "system": platform.system(),
            },
        },
    )


def same_claim(one: Statement, other: Statement) -> bool:
    """Whether two rebuilders state the same about the same release; where they built it may differ."""
    return (one.kind, one.subjects, _claim(one)) == (other.kind, other.subjects, _claim(other))


def _claim(statement: Statement) -> dict[str, Any]:
    return {name: value for name, value in statement.predicate.items() if name != "environment"}


def check_attestation(release: Path, file: Path, key: VerificationKey) -> None:
    """Check that a statement in `file`, signed by the key, says that every file of the release in the folder was
    rebuilt identically.

    The files listed in the record must already be verified. Raises VerificationError, FormatError, OSError.
    """
    with file.open("rb") as handle:
        statement = unseal(handle.read(SIZE_MAX + 1), key)
    if statement.kind != ATTESTATION or statement.predicate.get("verdict") != "identical":
        raise VerificationError("the statement is not about an identical rebuild", where=str(file))
    files = {name: str(entry["sha256"]) for name, entry in read_release(release)["files"].items()}
    files |= {name: sparse_sha256(release / name) for name in (RELEASE, RELEASE_SIGNATURE)}
    if statement.subjects != files:
        raise VerificationError("the statement is about another release", where=str(file))
