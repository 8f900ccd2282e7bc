# SPDX-License-Identifier: Apache-2.0
"""What `fs build` was told of paths that are not there: a name that was mistyped, or of another version of the tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erofs_edge.cli.output import note
from erofs_edge.names import fsdecode

if TYPE_CHECKING:
    from erofs_edge.erofs.options import WriteOptions
    from erofs_edge.tree import FileTree

SHOWN = 3
"""paths of a profile that are named; others are counted"""


def warn_of_unmatched(tree: FileTree, options: WriteOptions, excluding: list[str], source: str) -> list[str]:
    """Warnings, after they were printed: of options that leave out what is not there, as in '--exclude-path a/b', of
    hints that are about no file, of paths of a profile. `source` is what the tree is of."""
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
    for text in found:
        note(f"warning: {text}")
    return found
