# SPDX-License-Identifier: Apache-2.0
"""Archives whose contents are used where they lie: a tree for an image that is nothing but their index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from erofs_edge.errors import SourceError
from erofs_edge.sources.decompress import HEAD, codec_of
from erofs_edge.sources.oci.layers import apply_layer
from erofs_edge.sources.tar import tree_of
from erofs_edge.sources.tarball import read_members
from erofs_edge.tree import FileTree


def index_tars(paths: Sequence[Path]) -> FileTree:
    """The tree of uncompressed archives, with contents that lie in them; several are OCI layers, the lowest first.

    Raises SourceError where one is compressed, damaged or hostile.
    """
    tree = FileTree()
    for path in paths:
        where = str(path)
        try:
            with path.open("rb") as file:
                codec = codec_of(file.read(HEAD))
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror}", where=where) from error
        if codec != "none":
            raise SourceError(f"the archive is compressed ({codec})", where=where, hint="unpack it first")
        members = read_members(path, where)
        if not members:  # an archive begins with its end, and so does much that is none
            raise SourceError("not a tar archive, or an empty one", where=where)
        if len(paths) == 1:
            return tree_of(members, path, where)
        apply_layer(tree, members, path, where)
    return tree
