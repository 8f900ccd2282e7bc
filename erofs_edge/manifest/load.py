# SPDX-License-Identifier: Apache-2.0
"""Load board files and manifests as checked values that remember where each of them was written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import msgspec

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.check import check_board, check_system
from erofs_edge.manifest.decode import decode
from erofs_edge.manifest.extend import read_extended
from erofs_edge.manifest.lockfile import load_lock, lock_path, save_lock
from erofs_edge.manifest.model import Board, System
from erofs_edge.manifest.nodes import Mapping, Mark, Node, Sequence
from erofs_edge.manifest.stock import find, portable

__all__ = ["Loaded", "load_any", "load_board", "load_lock", "load_system", "lock_path", "save_lock"]

T = TypeVar("T", Board, System)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """A resolved board or system.

    value   with `extends` applied and set to None; host paths are absolute
    path    the file that was requested
    files   every file that was read: `path` first, the innermost base last
    digest  SHA-256 (hex) of the resolved form with paths relative to `path`: the same in every checkout
    """

    value: T
    path: Path
    files: tuple[Path, ...]
    digest: str
    root: Mapping

    def position(self, pointer: str) -> str:
        """Return ``file:line:column`` of a pointer such as ``disk.partitions.boot`` or ``packages.0``.

        For a default value, return the position of the nearest enclosing thing that is written.
        """
        mark, _ = _find(self.root, pointer.split(".") if pointer else [])
        return str(mark)

    def is_written(self, pointer: str) -> bool:
        """Whether the value is written in one of the files (otherwise it is a default)."""
        _, left = _find(self.root, pointer.split(".") if pointer else [])
        return not left

    def error(self, pointer: str, message: str, *, hint: str | None = None) -> ManifestError:
        """Return an error at a pointer, to be raised."""
        return ManifestError(message, where=self.position(pointer), hint=hint)


def load_board(path: Path | str) -> Loaded[Board]:
    """Load a board file, or a stock board by name. Raises ManifestError with the position of what is wrong."""
    return _load(find(Path(path), ("boards",)), Board, check_board)


def load_system(path: Path | str) -> Loaded[System]:
    """Load a manifest, or a stock one by name. Raises ManifestError with the position of what is wrong."""
    return _load(find(Path(path), ("manifests",)), System, check_system)


def load_any(path: Path | str) -> Loaded[Board] | Loaded[System]:
    """Load a board file or a manifest, whichever it is. Raises ManifestError."""
    path = find(Path(path))
    root, files = read_extended(path)
    if "board" not in root.entries and "system" not in root.entries:
        raise ManifestError(
            "neither a board nor a manifest",
            where=str(root.mark),
            hint='it starts with "board: NAME" or "system: NAME"',
        )
    if "board" in root.entries:
        return _resolve(path, root, files, Board, check_board)
    return _resolve(path, root, files, System, check_system)


Check = Callable[[T, Callable[..., NoReturn]], None]


def _load(path: Path, struct: type[T], check: Check[T]) -> Loaded[T]:
    root, files = read_extended(path)
    if struct is Board and "system" in root.entries and "board" not in root.entries:
        raise ManifestError("this is a manifest, but a board file is expected", where=str(root.entries["system"].mark))
    if struct is System and "board" in root.entries and "system" not in root.entries:
        raise ManifestError("this is a board file, but a manifest is expected", where=str(root.entries["board"].mark))
    return _resolve(path, root, files, struct, check)


def _resolve(path: Path, root: Mapping, files: list[Path], struct: type[T], check: Check[T]) -> Loaded[T]:
    top = os.path.abspath(path.parent)
    portable = decode(root, struct, lambda text, file: _portable(text, file, top))
    digest = hashlib.sha256(msgspec.json.encode(portable)).hexdigest()
    value: T = decode(root, struct, _absolute)
    loaded = Loaded(value, path, tuple(files), digest, root)

    def fail(pointer: str, message: str, hint: str | None = None) -> NoReturn:
        raise loaded.error(pointer, message, hint=hint)

    check(value, fail)
    return loaded


def _absolute(text: str, file: Path) -> str:
    return os.path.abspath(file.parent / text)


def _portable(text: str, file: Path, top: str) -> str:
    """Return the path relative to the folder of the requested file, so that the name of the checkout does not
    matter."""
    path = _absolute(text, file)
    return portable(path, top) or Path(os.path.relpath(path, top)).as_posix()


def _find(root: Node, parts: list[str]) -> tuple[Mark, list[str]]:
    """Return the mark of the deepest node that `parts` lead to, and the remaining parts."""
    node, mark = root, root.mark
    while parts:
        if isinstance(node, Sequence) and parts[0].isdecimal() and int(parts[0]) < len(node.items):
            node = node.items[int(parts[0])]
            mark, parts = node.mark, parts[1:]
            continue
        entries: dict[str, Any] = node.entries if isinstance(node, Mapping) else {}
        # a key may itself contain dots: the longest match wins
        length = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in entries), 0)
        if not length:
            break
        entry = entries[".".join(parts[:length])]
        node, mark, parts = entry.node, entry.mark, parts[length:]
    return mark, parts
