# SPDX-License-Identifier: Apache-2.0
"""Turn the machine's result into a tree: the archive's files with all their metadata, minus what varies."""

from __future__ import annotations

import bisect
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.configure.accounts import Ids
from erofs_edge.sources.debian.deb import Package
from erofs_edge.sources.debian.scripted.renumber import renumber
from erofs_edge.sources.debian.scripted.scrub import scrub
from erofs_edge.sources.debian.unpack import unpack
from erofs_edge.sources.tar import tree_of
from erofs_edge.sources.tarball import Member
from erofs_edge.tree import FileTree

SCRIPTS = "maintainer scripts"
"""the origin of files that cannot be attributed to a single package"""


@dataclass(frozen=True, slots=True)
class Scripted:
    """A configured system: its files, and the accounts made by scripts and pinned by no lock ('user x')."""

    tree: FileTree
    unpinned: list[str]


def configured_tree(
    members: Sequence[Member],
    archive: Path,
    makers: dict[str, str],
    packages: Sequence[Package],
    pinned: Ids,
) -> Scripted:
    """The tree of a captured archive: scrubbed, its accounts with the lock's numbers, and the package of each inode as
    its origin. `makers`: see `attribute`. Raises SourceError if the archive is damaged."""
    tree = tree_of(members, archive, str(archive), origin=SCRIPTS)
    shipped = unpack(packages)
    scrub(tree, shipped)
    unpinned = renumber(tree, pinned)
    for path, inode in tree.walk():
        old = shipped.get(path)
        inode.origin = old.origin if old is not None else makers.get(os.fsdecode(path), SCRIPTS)
    return Scripted(tree, unpinned)


def attribute(archive: Path, moments: Sequence[tuple[float, str]]) -> dict[str, str]:
    """Absolute path → the package during whose configuration the file last changed, by the ctime in the archive.

    `moments`: (seconds since 1970 on the machine's clock, package), in order: that package's scripts ran from then on.
    Raises SourceError if it is not an archive.
    """
    starts = [at for at, _ in moments]
    found = {}
    try:
        with tarfile.open(archive, errors="surrogateescape") as tar:
            for member in tar:
                index = bisect.bisect_right(starts, float(member.pax_headers.get("ctime", "0"))) - 1
                if index >= 0:
                    found["/" + re.sub(r"^\./?", "", member.name)] = moments[index][1]
    except (tarfile.TarError, ValueError) as error:
        raise SourceError(f"not the archive of a configured system: {error}", where=str(archive)) from error
    return found
