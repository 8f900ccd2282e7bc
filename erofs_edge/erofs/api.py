# SPDX-License-Identifier: Apache-2.0
"""The documented Python interface: two functions, `erofs_edge.erofs.open` and `erofs_edge.erofs.build`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from erofs_edge.erofs.ahead import HeadStart
from erofs_edge.erofs.arguments import PATH, integer, options_of, path_of, paths_of
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.write import ErofsInfo, write_image
from erofs_edge.sources.directory import scan
from erofs_edge.tree import FileTree


def open(  # noqa: A001  the name that users know
    path: str | os.PathLike[str],
    *,
    devices: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] = (),
    offset: int = 0,
) -> Image:
    """An image to read from; use it as a context manager. `devices` are its further devices, in order, one may stand
    for a list of one; it begins at byte `offset` of the file, as a partition does in the image of a disk.

    Raises ErofsEdgeError where a file cannot be read, ErofsFormatError where it is no EROFS image, TypeError for an
    argument of the wrong type.
    """
    return Image(path_of("path", path), devices=list(paths_of("devices", devices)), offset=integer("offset", offset))


def build(source: FileTree | str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> ErofsInfo:
    """Write an image of a tree, or of a directory on the host, to `out`; what was made.

    `options` are the fields of `WriteOptions`; paths may be text, and one may stand for a list of one; names that are
    bytes may be text, too, and a kernel its version. The same source and options give the same bytes, on any machine.
    Raises TypeError for an argument of the wrong type, UsageError for options that do not exist or do not fit together,
    SourceError for what cannot be read or stored, CapacityError where there is no space.
    """
    chosen, path = options_of(options), path_of("out", out)
    if isinstance(source, FileTree):
        return write_image(source, path, chosen)
    folder = path_of("source", source, f"FileTree, {PATH}")
    with HeadStart(chosen) as ahead:
        return write_image(scan(folder, ahead.offer), path, chosen.replaced(ahead=ahead, scanned=True))
