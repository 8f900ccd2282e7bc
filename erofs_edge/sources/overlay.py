# SPDX-License-Identifier: Apache-2.0
"""Lay a manifest's own files over a tree, with rules for single paths and with templates filled in."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.errors import SourceError
from erofs_edge.manifest.load import Loaded
from erofs_edge.manifest.model import Overlay, System, mode_bits
from erofs_edge.manifest.shaping import OverlayRule
from erofs_edge.names import fsdecode
from erofs_edge.sources.directory import read_directory
from erofs_edge.sources.globs import idle, matcher
from erofs_edge.sources.templates import expand, variables
from erofs_edge.tree import BytesContent, FileTree, Inode


@dataclass(frozen=True, slots=True)
class Owned:
    """Inodes whose owner is set later: names have numbers only once all accounts are known."""

    inodes: list[Inode]
    owner: str
    pointer: str


def lay_overlay(loaded: Loaded[System], index: int, tree: FileTree, overlay: Overlay) -> tuple[list[Owned], list[str]]:
    """Lay an overlay over the tree; return the owners still to be set, and which globs of `executable` and `templates`
    match none of its files, with their positions. Later rules win.

    Raises ManifestError with its position for invalid globs, rules that match nothing and attributes that cannot be
    parsed, and (with the file's position) for templates that name an unknown variable.
    """
    pointer = f"overlay.{index}"
    layer = read_directory(
        Path(overlay.from_),
        file_mode=mode_bits(overlay.file_mode),
        dir_mode=mode_bits(overlay.dir_mode),
        executable=matcher(overlay.executable, lambda i: loaded.position(f"{pointer}.executable.{i}")),
        origin=loaded.position(pointer),
    )
    _fill_in(loaded, pointer, overlay, layer)
    unmatched = [
        f"{loaded.position(f'{pointer}.{key}.{i}')}: {globs[i]}"
        for key, globs in (("executable", overlay.executable), ("templates", overlay.templates))
        for i in idle(layer, globs)
    ]
    laid = _lay(loaded, pointer, tree, layer, overlay.to)
    return apply_rules(loaded, pointer, overlay.rules, laid, overlay.owner), unmatched


def apply_rules(
    loaded: Loaded[System],
    pointer: str,
    rules: list[OverlayRule],
    laid: list[tuple[bytes, Inode]],
    owner: str | None,
) -> list[Owned]:
    """Apply the modes and attributes of rules to what was laid (path in the layer, inode); return the owners still to
    be set.

    `owner` is the default owner; None leaves it unchanged. Raises ManifestError.
    """
    owners = {id(inode): (owner, f"{pointer}.owner") for _, inode in laid}
    for i, rule in enumerate(rules):
        here = f"{pointer}.rules.{i}"
        matches = matcher([rule.match], lambda _, here=here: loaded.position(f"{here}.match"))  # type: ignore[misc]
        chosen = [inode for path, inode in laid if matches(path)]
        if not chosen:
            kind = pointer.partition(".")[0].removesuffix("s")
            raise loaded.error(f"{here}.match", f"no path of the {kind} matches {rule.match!r}")
        for inode in chosen:
            if rule.owner is not None:
                owners[id(inode)] = (rule.owner, f"{here}.owner")
            if rule.mode is not None and not inode.is_symlink:
                inode.mode = stat.S_IFMT(inode.mode) | mode_bits(rule.mode)
            for name, value in rule.xattrs.items():
                inode.xattrs[name.encode()] = xattr_value(loaded, f"{here}.xattrs.{name}", value)
    groups: dict[tuple[str, str], list[Inode]] = {}
    for _, inode in laid:
        said, where = owners[id(inode)]
        if said is not None:
            groups.setdefault((said, where), []).append(inode)
    return [Owned(inodes, *key) for key, inodes in groups.items()]


def xattr_value(loaded: Loaded[System], pointer: str, value: str) -> bytes:
    """Text, or getfattr's notation: 0x… hexadecimal, 0s… base64."""
    try:
        if value.startswith("0x"):
            return bytes.fromhex(value[2:])
        if value.startswith("0s"):
            return base64.b64decode(value[2:], validate=True)
    except (ValueError, binascii.Error) as error:
        raise loaded.error(pointer, f"bad value {value!r}: {error}") from error
    return value.encode()


def _fill_in(loaded: Loaded[System], pointer: str, overlay: Overlay, layer: FileTree) -> None:
    """Expand the layer's templates."""
    if not overlay.templates:
        return
    values = variables(loaded.value)
    template = matcher(overlay.templates, lambda i: loaded.position(f"{pointer}.templates.{i}"))
    for path, inode in layer.walk():
        if inode.is_file and template(path):
            file = os.path.join(os.path.relpath(overlay.from_), fsdecode(path[1:]))
            inode.content = BytesContent(expand(inode.read(), values, file))


def _lay(loaded: Loaded[System], pointer: str, tree: FileTree, layer: FileTree, to: str) -> list[tuple[bytes, Inode]]:
    """As `lay`, with the path in the layer of each."""
    laid = []
    base = to.rstrip("/").encode()
    for path, inode in layer.walk():
        place = base + (path if path != b"/" else b"")
        here = tree.get(place, follow=True) if inode.is_dir else None
        if not place or (here is not None and here.is_dir):
            continue
        if here is not None:
            raise loaded.error(pointer, f"a directory would replace the file {fsdecode(place)} of {here.origin}")
        copy = inode
        if inode.is_dir:
            copy = Inode(inode.mode, inode.uid, inode.gid, inode.mtime_ns, xattrs=dict(inode.xattrs))
        copy.origin = copy.origin or loaded.position(pointer)
        try:
            laid.append((path, tree.add(place, copy)))
        except SourceError as error:
            raise loaded.error(pointer, f"{error.message} ({error.where})") from error
    return laid
