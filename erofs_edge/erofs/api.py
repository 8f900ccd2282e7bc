# SPDX-License-Identifier: Apache-2.0
"""The documented Python interface: two functions, `erofs_edge.erofs.open` and `erofs_edge.erofs.build`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erofs_edge.erofs.ahead import HeadStart
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.write import ErofsInfo, write_image
from erofs_edge.errors import UsageError
from erofs_edge.sources.directory import scan
from erofs_edge.tree import FileTree

PATHS = ("blob", "baseline")
PATH_LISTS = ("bases", "base_devices", "archives")


def open(  # noqa: A001  the name that users know
    path: str | os.PathLike[str], *, devices: Sequence[str | os.PathLike[str]] = (), offset: int = 0
) -> Image:
    """An image to read from; use it as a context manager. `devices` are its further devices, in order; it begins at
    byte `offset` of the file, as a partition does in the image of a disk.

    Raises ErofsEdgeError where a file cannot be read, ErofsFormatError where it is no EROFS image.
    """
    return Image(Path(path), devices=[Path(device) for device in devices], offset=offset)


def build(source: FileTree | str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> ErofsInfo:
    """Write an image of a tree, or of a directory on the host, to `out`; what was made.

    `options` are the fields of `WriteOptions`; paths may be text, and one may stand for a list of one. The same source
    and options give the same bytes, on any machine. Raises UsageError for options that do not exist or do not fit
    together, SourceError for what cannot be read or stored, CapacityError where there is no space.
    """
    known = WriteOptions.__annotations__.keys()
    unknown = sorted(options.keys() - known)
    if unknown:
        raise UsageError(f"unknown options: {', '.join(unknown)}", hint=f"known are {', '.join(sorted(known))}")
    chosen = WriteOptions(**options | _paths(options))
    if isinstance(source, FileTree):
        return write_image(source, Path(out), chosen)
    with HeadStart(chosen) as ahead:
        return write_image(scan(Path(source), ahead.offer), Path(out), chosen.replaced(ahead=ahead))


def _paths(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that are paths, as such."""
    found: dict[str, Any] = {name: Path(options[name]) for name in PATHS if options.get(name) is not None}
    for name in options.keys() & set(PATH_LISTS):
        given = options[name]
        found[name] = tuple(map(Path, [given] if isinstance(given, str | os.PathLike) else given))
    return found
