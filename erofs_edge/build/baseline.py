# SPDX-License-Identifier: Apache-2.0
"""Builds whose system image follows the layout of an older one or an order of first use: checks and results."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from erofs_edge.build.inputs import Inputs
from erofs_edge.build.record import RELEASE, read_release
from erofs_edge.erofs.info import ErofsInfo
from erofs_edge.erofs.rules import CompressionRule, idle_rules
from erofs_edge.errors import ManifestError
from erofs_edge.sources.base import image_of
from erofs_edge.sources.cache import file_digest
from erofs_edge.tree import FileTree


def check_baseline(inputs: Inputs) -> None:
    """Raises ManifestError if the baseline lies in the output folder of a build for another board."""
    loaded = inputs.system.loaded
    if loaded.value.erofs.baseline is None:
        return
    folder = image_of(Path(loaded.value.erofs.baseline)).parent
    if not (folder / RELEASE).is_file():
        return  # a bare image, which the writer checks
    board = read_release(folder).get("board")
    if board != inputs.board.value.board:
        raise ManifestError(
            f"the baseline {folder} was built for board '{board}', this build is for '{inputs.board.value.board}'",
            where=loaded.position("erofs.baseline"),
            hint="name a build that the devices run now, or build without a baseline",
        )


def layout_record(inputs: Inputs, made: ErofsInfo) -> dict[str, Any]:
    """For release.json: SHA-256 of baseline and profile, if given, and the resulting figures in blocks."""
    asked = inputs.system.loaded.value.erofs
    record: dict[str, Any] = {}
    if asked.baseline is not None:
        sha256 = file_digest(image_of(Path(asked.baseline)))
        counts = {"blocks": made.blocks, "changed": made.changed_blocks, "free": made.free_blocks}
        record["baseline"] = {"sha256": sha256, **counts}
    if asked.profile is not None:
        sha256 = hashlib.sha256(Path(asked.profile).read_bytes()).hexdigest()
        record["profile"] = {"sha256": sha256, "blocks": made.hot_blocks, "unmatched": made.unmatched}
    return record


def layout_notes(inputs: Inputs, made: ErofsInfo, tree: FileTree) -> list[str]:
    """Notes for a user who asked for a layout or for compression rules."""
    notes = []
    if made.changed_blocks is not None:
        notes.append(
            f"{made.changed_blocks} of the {made.blocks} blocks of the file system differ from the baseline,"
            f" {made.free_blocks} are left free for later images"
        )
    if made.unmatched:
        notes.append(f"{made.unmatched} of the profile's paths do not exist in this system")
    loaded = inputs.system.loaded
    rules = loaded.value.erofs.rules
    for index in idle_rules(tree, [CompressionRule(rule.match, rule.compression) for rule in rules]) if rules else ():
        notes.append(f"{loaded.position(f'erofs.rules.{index}')}: {rules[index].match} matches no file of this system")
    return notes
