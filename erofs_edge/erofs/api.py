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
    """Open an image for reading; use it as a context manager.

    `devices` lists its extra devices in order; a single path may stand for a list of one. `offset` is the byte of the
    file where the image begins, for example that of a partition in a disk image.

    Raises ErofsEdgeError if a file cannot be read, ErofsFormatError if it is not an EROFS image, TypeError for an
    argument of the wrong type.
    """
    return Image(path_of("path", path), devices=list(paths_of("devices", devices)), offset=integer("offset", offset))


def build(source: FileTree | str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> ErofsInfo:
    """Write an image of a tree, or of a directory on the host, to `out`, and return information about it.

    `options` are the fields of `WriteOptions`. Paths and bytes may be given as str, a single path in place of a list of
    one, and `kernel` as a version string. The same source and options give the same bytes on any machine.

    Raises TypeError for an argument of the wrong type, UsageError for unknown or conflicting options, SourceError for
    what cannot be read or stored, CapacityError if there is not enough space.
    """
    chosen, path = options_of(options), path_of("out", out)
    if isinstance(source, FileTree):
        return write_image(source, path, chosen)
    folder = path_of("source", source, f"FileTree, {PATH}")
    with HeadStart(chosen) as ahead:
        return write_image(scan(folder, ahead.offer), path, chosen.replaced(ahead=ahead, scanned=True))
