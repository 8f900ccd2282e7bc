# SPDX-License-Identifier: Apache-2.0
"""A channel's folder, for its owner: keys and thresholds, added releases, signed metadata.

The metadata is TUF's (specification 1.0, consistent snapshots), written with python-tuf. The web server has

    metadata/   N.root.json, N.targets.json, N.snapshot.json, timestamp.json
    targets/    for each board its release record, the index of its disk image and optionally a Sigstore bundle, with
                their SHA-256 in front of the name
    blocks/     the blocks of the images, named after their index: read in ranges, each verified by the index
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from erofs_edge.build.record import RELEASE, read_release
from erofs_edge.channel.index import write_index
from erofs_edge.channel.sigstore import POLICY_TARGET, staged_targets
from erofs_edge.channel.tuf_keys import ChannelSigner, tuf_key
from erofs_edge.errors import FormatError, SourceError, UsageError
from erofs_edge.trust.key import Signer
from erofs_edge.trust.sigstore import Policy, read_policy
from erofs_edge.writing import beside

METADATA, TARGETS, BLOCKS = "metadata", "targets", "blocks"
STAGED = "staged.json"
"""beside these three, not published: input of the next `publish`"""
DISK = "disk.img"
KEPT = 3  # files of blocks kept per board, since devices may be in the middle of reading one
ROLES = ("root", "targets", "snapshot", "timestamp")
DAYS = {"root": 365, "targets": 90, "snapshot": 30, "timestamp": 14}
"""role → lifetime of its metadata"""


@dataclass(frozen=True, slots=True)
class Keys:
    """Who signs a role, and how many signatures it needs."""

    signers: tuple[Signer, ...]
    threshold: int = 1


def init(folder: Path, keys: Mapping[str, Keys], *, now: datetime, days: Mapping[str, int] = DAYS) -> Path:
    """Make an empty channel in a new folder; return the path of the first root, which devices must be given.

    keys  for each of ROLES; of 'root', enough signers to reach its threshold

    Raises UsageError for a folder with a channel, or keys that cannot reach their threshold.
    """
    if (folder / METADATA).exists():
        raise UsageError("there is already a channel here", where=str(folder))
    root = Root(version=1, expires=_expiry(now, days["root"]), consistent_snapshot=True)
    for role in ROLES:
        _assign(root, role, keys[role])
    for name in (METADATA, TARGETS, BLOCKS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return _write(folder, "1.root", _signed(Metadata(root), root, "root", keys["root"].signers))


def add(folder: Path, out: Path, policy: Policy | None = None) -> list[str]:
    """Put the build or release in `out` into the channel's folder, to be signed by the next `publish`; return its
    targets.

    policy  whose Sigstore bundle every release of the channel needs from now on

    Raises ErofsEdgeError if there is no build or no channel, VerificationError if the channel's policy does not accept
    the build's bundle.
    """
    _latest_root(folder)
    record = read_release(out)
    board = str(record["board"])
    policy = policy or _policy(folder)
    bundles = staged_targets(out, board, [] if policy is None else [policy], policy)
    scratch = folder / BLOCKS / f".{board}"
    index = write_index(out / DISK, scratch).encode()
    scratch.replace(folder / BLOCKS / f"{hashlib.sha256(index).hexdigest()}.{board}")
    staged = _staged(folder)
    targets: dict[str, bytes | None] = {f"{board}.json": (out / RELEASE).read_bytes(), f"{board}.index": index}
    targets |= bundles
    for name, data in targets.items():
        staged[name] = None
        if data is not None:
            digest = hashlib.sha256(data).hexdigest()
            _replace(folder / TARGETS / f"{digest}.{name}", data)
            staged[name] = {"length": len(data), "sha256": digest}
    _replace(folder / STAGED, json.dumps(staged, indent=1, sort_keys=True).encode() + b"\n")
    kept = {folder / BLOCKS / f"{staged[f'{board}.index']['sha256']}.{board}"}
    old = sorted(set((folder / BLOCKS).glob(f"*.{board}")) - kept, key=lambda path: -path.stat().st_mtime_ns)
    for path in old[KEPT - 1 :]:
        path.unlink()
    return [name for name, data in targets.items() if data is not None]


def publish(
    folder: Path, signers: Sequence[Signer], *, now: datetime, days: Mapping[str, int] = DAYS
) -> dict[str, int]:
    """Sign what was added, and that it is current; return role → version. If nothing was added, the old targets stay in
    force, and their lifetime is extended if the signers may sign them.

    Raises UsageError if the signers given do not reach a required threshold.
    """
    root = _latest_root(folder).signed
    staged = _staged(folder)
    targets = _latest(folder, "targets", Targets)
    may = {ChannelSigner(one).public_key.keyid for one in signers}
    renew = len(may & set(root.roles["targets"].keyids)) >= root.roles["targets"].threshold
    if staged or renew or targets is None:
        fresh = Targets(version=1) if targets is None else targets.signed
        fresh.version = 1 if targets is None else fresh.version + 1
        fresh.expires = _expiry(now, days["targets"])
        for name, entry in staged.items():
            fresh.targets.pop(name, None)
            if entry is not None:
                fresh.targets[name] = TargetFile(entry["length"], {"sha256": entry["sha256"]}, name)
        targets = Metadata(fresh)
        data = _signed(targets, root, "targets", signers)
        _write(folder, f"{fresh.version}.targets", data)
    snapshot = _latest(folder, "snapshot", Snapshot)
    version = 1 if snapshot is None else snapshot.signed.version + 1
    file = (folder / METADATA / f"{targets.signed.version}.targets.json").read_bytes()
    listed = {"targets.json": _meta(targets.signed.version, file)}
    data = _signed(
        Metadata(Snapshot(version=version, expires=_expiry(now, days["snapshot"]), meta=listed)), root, "snapshot",
        signers,
    )  # fmt: skip
    path = folder / METADATA / "timestamp.json"
    stamp = Metadata[Timestamp].from_bytes(path.read_bytes()).signed.version + 1 if path.exists() else 1
    current = Timestamp(
        version=stamp, expires=_expiry(now, days["timestamp"]), snapshot_meta=_meta(version, data)
    )  # fmt: skip
    last = _signed(Metadata(current), root, "timestamp", signers)
    _write(folder, f"{version}.snapshot", data)
    _write(folder, "timestamp", last)  # it takes effect now
    (folder / STAGED).unlink(missing_ok=True)
    return {"targets": targets.signed.version, "snapshot": version, "timestamp": stamp}


def renew_root(
    folder: Path,
    signers: Sequence[Signer],
    *,
    now: datetime,
    keys: Mapping[str, Keys] | None = None,
    days: Mapping[str, int] = DAYS,
) -> Path:
    """Make the next root: a later expiry, and other keys for the roles in `keys`. It is signed by the old root's keys
    and, if they change, by the new ones, so that devices follow.

    Raises UsageError if the signers do not reach both thresholds.
    """
    old = _latest_root(folder)
    before, root = Metadata[Root].from_bytes(old.to_bytes()).signed, old.signed
    root.version, root.expires = before.version + 1, _expiry(now, days["root"])
    for role, one in (keys or {}).items():
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        _assign(root, role, one)
    new = Metadata(root)
    _signed(new, root, "root", signers)
    data = _signed(new, before, "root", signers, append=True)
    return _write(folder, f"{root.version}.root", data)


def _assign(root: Root, role: str, keys: Keys) -> None:
    if not 0 < keys.threshold <= len({tuf_key(one).keyid for one in keys.signers}):
        raise UsageError(f"{role}: {len(keys.signers)} key(s) cannot reach a threshold of {keys.threshold}")
    for one in keys.signers:
        root.add_key(tuf_key(one), role)
    root.roles[role].threshold = keys.threshold


def _signed(
    metadata: Metadata[Any], root: Root, role: str, signers: Sequence[Signer], *, append: bool = False
) -> bytes:  # fmt: skip
    """Metadata as bytes, signed by those of the signers who may. Raises UsageError if these are too few."""
    if not append:
        metadata.signatures.clear()
    mine = [ChannelSigner(one) for one in signers]
    chosen = [one for one in mine if one.public_key.keyid in root.roles[role].keyids]
    missing = root.roles[role].threshold - len({one.public_key.keyid for one in chosen})
    if missing > 0:
        raise UsageError(f"{role}: {missing} more key(s) must sign", hint="add --key URI for each of them")
    for one in chosen:
        if one.public_key.keyid not in metadata.signatures:
            metadata.sign(one, append=True)
    return metadata.to_bytes()


def _latest_root(folder: Path) -> Metadata[Root]:
    found = _latest(folder, "root", Root)
    if found is None:
        raise SourceError("no channel here", where=str(folder), hint="erofs-edge channel init FOLDER")
    return found


def _latest(folder: Path, role: str, kind: type[Any]) -> Metadata[Any] | None:
    """The metadata of a role with the highest version."""
    versions = [int(name) for path in (folder / METADATA).glob(f"*.{role}.json") if (name := path.name.split(".")[0])]
    if not versions:
        return None
    found = Metadata.from_file(str(folder / METADATA / f"{max(versions)}.{role}.json"))
    if not isinstance(found.signed, kind):
        raise FormatError(f"not metadata of the role {role}", where=str(folder))
    return found


def _staged(folder: Path) -> dict[str, Any]:
    path = folder / STAGED
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (ValueError, TypeError, RecursionError) as error:
        raise SourceError(f"not a list of what was added: {error}", where=str(path), hint="add it again") from error


def _policy(folder: Path) -> Policy | None:
    """The channel's policy: as added, or as published."""
    entry = _staged(folder).get(POLICY_TARGET)
    digest = entry["sha256"] if entry else None
    published = _latest(folder, "targets", Targets)
    if digest is None and published is not None and POLICY_TARGET in published.signed.targets:
        digest = published.signed.targets[POLICY_TARGET].hashes["sha256"]
    return None if digest is None else read_policy(folder / TARGETS / f"{digest}.{POLICY_TARGET}")


def _meta(version: int, data: bytes) -> MetaFile:
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def _expiry(now: datetime, days: int) -> datetime:
    return now.astimezone(UTC).replace(microsecond=0) + timedelta(days=days)


def _write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / METADATA / f"{name}.json"
    _replace(path, data)
    return path


def _replace(path: Path, data: bytes) -> None:
    with beside(path, "the channel") as temporary:
        temporary.write_bytes(data)
