# SPDX-License-Identifier: Apache-2.0
"""Warn about paths given to `fs build` that do not exist: misspelt, or of another version of the tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erofs_edge.cli.output import note
from erofs_edge.names import fsdecode

if TYPE_CHECKING:
    from erofs_edge.erofs.options import WriteOptions
    from erofs_edge.erofs.write import ErofsInfo
    from erofs_edge.tree import FileTree

SHOWN = 3
"""number of a profile's paths to list; the rest is counted"""


def warn_of_unmatched(
    tree: FileTree, options: WriteOptions, excluding: list[str], source: str, info: ErofsInfo
) -> list[str]:
    """Print warnings and return them: exclusions that match nothing, such as '--exclude-path a/b', hints that match no
    file, a profile's paths that do not exist, and bases without which the image would be the same. `source` is the
    origin of the tree."""
    found = [f"{one} matches nothing in {source}" for one in excluding]
    if options.rules:
        from erofs_edge.erofs.rules import idle_rules

        idle = idle_rules(tree, options.rules)
        found += [f"--compress-hints: {options.rules[index].text} matches no file of {source}" for index in idle]
    if options.uses:
        from erofs_edge.erofs.hot import missing_paths

        missing = [fsdecode(path) for path in missing_paths(tree, options.uses)]
        if missing:
            more = ", …" if len(missing) > SHOWN else ""
            paths = f"{', '.join(missing[:SHOWN])}{more}"
            found.append(f"--profile: {len(missing)} of the profile's paths do not exist in {source}: {paths}")
    if options.bases and not {*options.bases, *options.base_devices} & {*info.devices}:
        bases = ", ".join(map(str, options.bases))
        found.append(f"--base: {bases} has no file of {source} in a form that this image can use: it is not a device")
    for text in found:
        note(f"warning: {text}")
    return found
