# SPDX-License-Identifier: Apache-2.0
"""Locks of the output folder's own, for when the mirror has moved on; they never overwrite the checked-in ones.

OUT/locks/NAME.lock (of a board NAME.board.lock) replaces the lock beside its manifest as long as that one is still the
file from which it was made (its hash is in OUT/locks/origins.json); a newly checked-in lock takes precedence again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from erofs_edge.build.record import write_json
from erofs_edge.manifest.load import load_board, load_system, save_lock
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.lock import Changes, changes, lock_all
from erofs_edge.sources.debian.mirror import Mirror

FOLDER = "locks"
ORIGINS = "origins.json"


def valid(folder: Path) -> Path | None:
    """The folder, if it contains locks and each still replaces the file that it was made from."""
    try:
        origins = json.loads((folder / ORIGINS).read_text())
        if origins and all(_hash(Path(path)) == digest for path, digest in origins.items()):
            return folder
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        pass
    return None


def lock_again(board_path: Path, folder: Path, mirror: Mirror, cache: Cache, system: Path | None = None) -> list[str]:
    """Lock the board and the manifests of its build into the folder. Return the changes for the user, a line per lock.

    `system` is a manifest to use instead of the board's own.
    """
    notes = []
    origins = {}
    folder.mkdir(parents=True, exist_ok=True)
    instead = load_system(system) if system is not None else None
    for one in lock_all(load_board(board_path), mirror=mirror, cache=cache, folder=folder, system=instead):
        path = one.within(folder)
        save_lock(one.new, path)
        origins[str(one.path.absolute())] = _hash(one.path)
        notes.append(f"locked again into {path}: {_summary(changes(one.old, one.new))}; {one.path} is unchanged")
    write_json(folder / ORIGINS, origins)
    return notes


def _summary(changed: Changes) -> str:
    updated = [f"{name} {old} → {new}" for _, name, old, new in changed.updated]
    updated += [f"+{name} {version}" for _, name, version in changed.added]
    updated += [f"-{name} {version}" for _, name, version in changed.removed]
    return ", ".join(updated) or "no other versions"


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
