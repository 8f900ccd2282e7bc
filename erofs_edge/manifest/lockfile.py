# SPDX-License-Identifier: Apache-2.0
"""NAME.lock: sorted JSON with one package per line, so that a diff shows what changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.decode import decode
from erofs_edge.manifest.model import Lock
from erofs_edge.manifest.nodes import Mapping, Node, Scalar, parse_yaml
from erofs_edge.writing import new_file, write_exactly

MAX_BYTES = 16 << 20
MAX_EXPLAINED = 1 << 20
"""size limit in bytes for locks whose errors get positions, as finding these is slow"""

FORMAT = 1


def lock_path(manifest: Path | str) -> Path:
    """Return the lock of a board file or manifest: NAME.lock beside NAME.yaml."""
    return Path(manifest).with_suffix(".lock")


def lock_in(folder: Path, path: Path, *, board: bool) -> Path:
    """Return the lock's path in a folder with the locks of a board and of its manifests, which may have equal file
    names."""
    return folder / f"{path.stem}{'.board' if board else ''}.lock"


def load_lock(path: Path | str) -> Lock:
    """Read a lock file. Raises ManifestError, with line and column where possible."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ManifestError("no such lock file", where=str(path), hint=_relock(path)) from None
    except OSError as error:
        raise ManifestError(f"cannot read: {error.strerror}", where=str(path)) from None
    if len(data) > MAX_BYTES:
        raise ManifestError(f"larger than {MAX_BYTES >> 20} MiB: not a lock", where=str(path))
    try:
        return msgspec.json.decode(data, type=Lock)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _explained(data, path, error) from None


def save_lock(lock: Lock, path: Path | str) -> None:
    """Write a lock. Equal values give equal bytes. The old file stays until the new one is complete."""
    path = Path(path)
    try:
        with new_file(path, "the lock") as new:
            write_exactly(new.fd, lock_bytes(lock), 0)
            os.fsync(new.fd)
    except OSError as error:
        raise ManifestError(f"cannot write: {error.strerror}", where=str(path)) from error


def lock_bytes(lock: Lock) -> bytes:
    """Return the text of a lock file: keys in a fixed order; groups, packages and ids sorted."""
    ids = {kind: dict(sorted(getattr(lock, kind).items())) for kind in ("users", "groups")}
    requested = {group: sorted(names) for group, names in sorted(lock.requested.items())}
    lines = ["{"]
    for key in ("format", "name", "suite", "arch", "date"):
        lines.append(f'  "{key}": {_json(getattr(lock, key))},')
    lines += [f'  "requested": {_block(requested)},', '  "packages": {']
    groups = []
    for group, packages in sorted(lock.packages.items()):
        rows = [
            f"      {_json(msgspec.to_builtins(package))}"
            for package in sorted(packages, key=lambda p: (p.name, p.arch, p.version))
        ]
        body = "\n" + ",\n".join(rows) + "\n    " if rows else ""
        groups.append(f"    {_json(group)}: [{body}]")
    lines.append(",\n".join(groups))
    lines.append("  },")
    if lock.sources:
        rows = [f"    {_json(msgspec.to_builtins(source))}" for source in lock.sources]
        lines += ['  "sources": [', ",\n".join(rows), "  ],"]
    lines += [f'  "users": {_block(ids["users"])},', f'  "groups": {_block(ids["groups"])}', "}", ""]
    return "\n".join(line for line in lines if line or line is lines[-1]).encode()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _block(values: dict[str, object] | dict[str, list[str]]) -> str:
    """Format an object inside the lock, one key per line."""
    if not values:
        return "{}"
    return "{\n" + ",\n".join(f"    {_json(k)}: {_json(v)}" for k, v in values.items()) + "\n  }"


def _explained(data: bytes, path: Path, error: Exception) -> ManifestError:
    """Explain, with a position, why a lock did not decode: JSON is YAML, and the YAML reader knows positions."""
    unexplained = ManifestError(f"not a lock: {error}", where=str(path), hint=_relock(path))
    if len(data) > MAX_EXPLAINED:
        return unexplained
    try:
        root = parse_yaml(data.decode("utf-8-sig"), path)
        format_ = _format(root)
        if format_ is not None and format_.value != FORMAT:
            return ManifestError(
                f"lock format {format_.text} is not known, only {FORMAT} is",
                where=str(format_.mark),
                hint=_relock(path) + ", or use the erofs-edge that wrote it",
            )
        decode(root, Lock, lambda text, _file: text)
    except ManifestError as found:
        message = found.message.replace("not YAML", "not JSON")
        return ManifestError(message, where=found.where, hint=found.hint or _relock(path))
    except UnicodeDecodeError:
        pass
    return unexplained


def _format(root: Node) -> Scalar | None:
    entry = root.entries.get("format") if isinstance(root, Mapping) else None
    return entry.node if entry is not None and isinstance(entry.node, Scalar) else None


def _relock(path: Path) -> str:
    return f"erofs-edge lock {path.with_suffix('.yaml')}"
