# SPDX-License-Identifier: Apache-2.0
"""`extends:`: a file that builds on another.

A file is merged with its base: maps are merged key by key, everything else is replaced.
``key+: [...]`` appends to the base's list. An explicit ``null`` removes the base's key.
New keys come after the base's, or before the next key of the base that the file names (so that a partition
can be put before ``data: {}``). Each node keeps the position it has in its own file.
"""

from __future__ import annotations

import os
from pathlib import Path

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.nodes import Entry, Mapping, Node, Scalar, Sequence, read_yaml
from erofs_edge.manifest.stock import FOLDERS, is_name, stock_file, stock_names

MAX_CHAIN = 16


def read_extended(path: Path) -> tuple[Mapping, list[Path]]:
    """Read a file and merge it with everything it extends. Return the result and the files read, the base last.

    Raises ManifestError for unreadable files, cycles, and chains of more than `MAX_CHAIN` files.
    """
    chain: list[Mapping] = []
    files: list[Path] = []
    seen: set[str] = set()
    here: Path | None = path
    named_by = None
    while here is not None:
        real = os.path.realpath(here)
        if real in seen:
            raise ManifestError(f"extends itself by way of {here}", where=named_by)
        if len(files) >= MAX_CHAIN:
            raise ManifestError(f"more than {MAX_CHAIN} files extend one another", where=named_by)
        if named_by is not None and not os.path.isfile(here):
            raise ManifestError(f"extends {here}, which is not there", where=named_by, hint=_known(here))
        root = read_yaml(here)
        if not isinstance(root, Mapping):
            raise ManifestError("a map of keys and values is expected", where=str(root.mark))
        seen.add(real)
        files.append(here)
        base = root.entries.get("extends")
        named_by = str(base.node.mark) if base is not None else None
        here = _base_path(base.node, here, root) if base is not None else None
        chain.append(Mapping(root.mark, {k: e for k, e in root.entries.items() if k != "extends"}))
    merged = chain.pop()
    while chain:
        merged = merge(merged, chain.pop())
    return merged, files


def _known(path: Path) -> str | None:
    if not is_name(path.name):
        return None
    return "; ".join(f"stock {kind}: {', '.join(stock_names(kind))}" for kind in FOLDERS)


def _base_path(node: Node, file: Path, root: Mapping) -> Path | None:
    if isinstance(node, Scalar) and node.value is None:
        return None
    if not isinstance(node, Scalar) or not isinstance(node.value, str) or not node.text or "\0" in node.text:
        raise ManifestError('"extends" must be the path of a file', where=str(node.mark))
    path = Path(os.path.normpath(file.parent / node.text))
    kinds = tuple(kind for key, kind in (("board", "boards"), ("system", "manifests")) if key in root.entries)
    return path if path.exists() else stock_file(node.text, kinds or FOLDERS) or path


def merge(base: Mapping, over: Mapping) -> Mapping:
    """Merge `over` into `base`, by the rules at the top of this file."""
    entries = dict(base.entries)
    order = list(base.entries)
    fresh: list[str] = []
    for written, entry in over.entries.items():
        key = written.removesuffix("+") or written
        if key != written and key in over.entries:
            raise ManifestError(f'says both "{key}" and "{written}"', where=str(entry.mark))
        if key not in base.entries:
            fresh.append(key)
        else:
            at = order.index(key)
            order[at:at] = fresh
            fresh = []
        entries[key] = _laid_over(base.entries.get(key), entry, append=key != written)
    order += fresh
    return Mapping(over.mark, {key: entries[key] for key in order if not _removed(base, over, key)})


def _removed(base: Mapping, over: Mapping, key: str) -> bool:
    entry = over.entries.get(key)
    return (
        key in base.entries
        and entry is not None
        and isinstance(entry.node, Scalar)
        and entry.node.value is None
        and entry.node.text != ""
    )


def _laid_over(base: Entry | None, over: Entry, *, append: bool) -> Entry:
    if append:
        if not isinstance(over.node, Sequence):
            raise ManifestError("a key with + appends: its value must be a list", where=str(over.node.mark))
        if base is not None and isinstance(base.node, Sequence):
            return Entry(over.mark, Sequence(over.node.mark, base.node.items + over.node.items))
    elif isinstance(over.node, Mapping):
        below = base.node if base is not None and isinstance(base.node, Mapping) else Mapping(over.node.mark, {})
        return Entry(over.mark, merge(below, over.node))
    return over
