# SPDX-License-Identifier: Apache-2.0
"""Sigstore bundles in a channel: requirements of the channel, or of a follower, in addition to TUF's signatures.

Two more targets: `sigstore.policy`, which says whose bundles are accepted, and for each board `BOARD.sigstore`, the
bundle over its release record. The record contains the digest of the disk image, so the bundle covers the image, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from erofs_edge.build.record import RELEASE
from erofs_edge.disk.sparse import sparse_sha256
from erofs_edge.errors import VerificationError
from erofs_edge.trust.sigstore import BUNDLE, BUNDLE_MAX, POLICY_MAX, Policy, check_bundle, parse_policy, read_policy
from erofs_edge.writing import beside

POLICY_TARGET = "sigstore.policy"
REMEMBERED = "sigstore.json"
"""in a follower's state: the policy that was given once"""


def bundle_target(board: str) -> str:
    """Name of the target with a board's bundle."""
    return f"{board}.sigstore"


def bundle_beside(out: Path) -> Path:
    """Path of the bundle over the release record in a build's folder."""
    return out / (RELEASE + BUNDLE)


def read_bundle(path: Path, where: str) -> bytes:
    """Read a bundle. Raises VerificationError if there is none."""
    try:
        with path.open("rb") as handle:
            return handle.read(BUNDLE_MAX + 1)
    except OSError as error:
        raise VerificationError(
            "a Sigstore bundle is required, but there is none", where=where,
            hint=f"sign {RELEASE} with Sigstore: the bundle is {RELEASE}{BUNDLE}",
        ) from error  # fmt: skip


def staged_targets(out: Path, board: str, policies: list[Policy], policy: Policy | None) -> dict[str, bytes | None]:
    """Targets of an added build, by name; None for one to remove, because its bundle belonged to another build.

    policies  the channel's current requirements: the build's bundle is checked before it is published
    policy    its requirements from now on

    Raises as `check_bundle` does.
    """
    path = bundle_beside(out)
    for one in policies:
        check_bundle(read_bundle(path, str(out)), (out / RELEASE).read_bytes(), one, str(path))
    found: dict[str, bytes | None] = {bundle_target(board): None}
    if path.is_file():
        found[bundle_target(board)] = read_bundle(path, str(out))
    if policy is not None:
        found[POLICY_TARGET] = policy.encode()
    return found


def remembered(folder: Path, given: Policy | None) -> Policy | None:
    """The follower's policy: the one given, which is stored in the channel's state; or the one given before."""
    path = folder / REMEMBERED
    if given is None:
        return read_policy(path) if path.exists() else None
    with beside(path, "the policy") as temporary:
        temporary.write_bytes(given.encode())
    return given


Get = Callable[[str, int], bytes | None]
"""(name, maximum bytes) → a target of the channel, None if it has none"""


def demanded(get: Get, mine: Policy | None, where: str) -> list[Policy]:
    """What a bundle must fulfil: the channel's policy, and the follower's."""
    raw = get(POLICY_TARGET, POLICY_MAX)
    policies = [] if raw is None else [parse_policy(raw, where)]
    return policies if mine is None else [*policies, mine]


def check_record(raw: bytes, board: str, get: Get, policies: list[Policy], where: str) -> None:
    """Raises VerificationError if a policy does not accept the bundle over a release record, or there is none."""
    if not policies:
        return
    bundle = get(bundle_target(board), BUNDLE_MAX)
    if bundle is None:
        raise VerificationError(
            f"a Sigstore bundle is required, but the channel has none for '{board}'", where=where,
            hint="ask the channel's owner; or remove the policy from this machine's state of the channel",
        )  # fmt: skip
    for policy in policies:
        check_bundle(bundle, raw, policy, where)


def check_image(image: Path, record: Mapping[str, Any], where: str) -> None:
    """Raises VerificationError if an image is not that of the record that the bundle covers."""
    files = record.get("files")
    entry = files.get("disk.img") if isinstance(files, Mapping) else None
    if not isinstance(entry, Mapping) or sparse_sha256(image) != entry.get("sha256"):
        image.unlink()
        raise VerificationError("the image is not the one in the record that the Sigstore bundle signs", where=where)
