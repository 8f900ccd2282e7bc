# SPDX-License-Identifier: Apache-2.0
"""Archives whose contents are used in place: a tree for an image that only indexes them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from erofs_edge.errors import SourceError
from erofs_edge.manifest.supply import Oci
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.decompress import codec_of_file
from erofs_edge.sources.oci.image import load_layers, pin_image
from erofs_edge.sources.oci.layers import apply_layer
from erofs_edge.sources.tar import tree_of
from erofs_edge.sources.tarball import read_members
from erofs_edge.tree import FileTree
from erofs_edge.writing import beside


def index_tars(paths: Sequence[Path], *, layers: bool = False) -> FileTree:
    """The tree of uncompressed archives, with contents that stay in them; several are OCI layers, the lowest first.

    With `layers` a single one is a layer, too: it may be empty, and whiteout names are not files.

    Raises SourceError if one is compressed, damaged or hostile.
    """
    tree = FileTree()
    for path in paths:
        where = str(path)
        codec = codec_of_file(path, where)
        if codec != "none":
            raise SourceError(f"the archive is compressed ({codec})", where=where, hint="unpack it first")
        members = read_members(path, where)
        if not members and not layers:  # an empty archive is only an end marker, as much else begins
            raise SourceError("not a tar archive, or an empty one", where=where)
        if len(paths) == 1 and not layers:
            return tree_of(members, path, where)
        apply_layer(tree, members, path, where)
    return tree


def unpack_layers(oci: Oci, arch: str, folder: Path, cache: Cache) -> list[Path]:
    """Unpack the layers of a container image in an OCI layout, for a Debian architecture, to uncompressed archives.

    Each becomes a file of `folder` named by its sha256, which image configurations call its diff ID; existing ones are
    kept. A layer may occur twice. Raises SourceError and VerificationError for an invalid or damaged image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for layer in load_layers(oci, pin_image(oci, arch, cache).sha256, arch, cache):
        path = folder / layer.diff_id
        if not path.exists() or cache.digest(path) != layer.diff_id:
            try:
                with beside(path, "a layer") as new:
                    shutil.copyfile(layer.archive, new)
            except OSError as error:
                raise SourceError(f"cannot write: {error.strerror}", where=str(path)) from error
        found.append(path)
    return found
