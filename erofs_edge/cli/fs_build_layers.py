# SPDX-License-Identifier: Apache-2.0
"""The options of `fs build` for images with several devices, and the trees of indexed archives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from erofs_edge.cli.options import FilePath, together
from erofs_edge.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from erofs_edge.erofs.write import ErofsInfo
    from erofs_edge.tree import Content, FileTree

FILE = FilePath(exists=True, dir_okay=False)
TAR_BLOCK = "512"  # bytes: alignment of an archive's members
_OPTIONS = [
    click.option(
        "--blobdev",
        type=FilePath(),
        metavar="FILE",
        help="Write the data to this file instead of into IMG (Linux 5.16).",
    ),
    click.option(
        "--base",
        "bases",
        multiple=True,
        type=FILE,
        metavar="IMG",
        help="Do not store again what this image holds; it becomes an extra device (Linux 5.16). May be repeated.",
    ),
    click.option(
        "--base-device",
        "base_devices",
        multiple=True,
        type=FILE,
        metavar="FILE",
        help="A device of a --base image. May be repeated.",
    ),
    click.option(
        "--tar-index",
        "archives",
        multiple=True,
        type=FILE,
        metavar="TAR",
        help="Instead of SRC, make a metadata image whose data is TAR. Several are OCI layers, the lowest first.",
    ),
    click.option(
        "--oci-layout",
        type=FilePath(exists=True),
        metavar="PATH",
        help="Instead of SRC, do the same for the layers of a container image, which are unpacked into --layer-dir.",
    ),
    click.option(
        "--layer-dir", type=FilePath(), metavar="DIR", help="The folder for unpacked layers, named by sha256."
    ),
    click.option(
        "--arch", metavar="ARCH", default="arm64", show_default=True, help="The architecture to take from --oci-layout."
    ),
]
layer_options = together(*_OPTIONS)


def take_layers(given: dict[str, Any]) -> tuple[Path, ...]:
    """Return the archives of a container image's layers; empty without an image. Removes the image's options from
    `given` and sets its archives to these, each once.

    Raises UsageError if there is no folder for them or other archives are given; SourceError and VerificationError if
    the image cannot be read.
    """
    oci_layout, layer_dir, arch = (given.pop(name) for name in ("oci_layout", "layer_dir", "arch"))
    if (oci_layout is None) != (layer_dir is None):
        raise UsageError(
            "--oci-layout and --layer-dir must be given together", hint="add the missing one, or leave both out"
        )
    if oci_layout is None or layer_dir is None:
        return ()
    from erofs_edge.manifest.supply import Oci
    from erofs_edge.sources.cache import Cache
    from erofs_edge.sources.tar_index import unpack_layers

    if given["archives"]:
        raise UsageError("--tar-index and --oci-layout cannot be combined", hint="use one of them")
    layers = tuple(unpack_layers(Oci(layout=str(oci_layout)), arch, layer_dir, Cache()))
    given["archives"] = tuple(dict.fromkeys(layers))
    return layers


def source_tree(
    source: str | None, archives: tuple[Path, ...], found: Callable[[Content], None] | None, *, layers: bool
) -> FileTree:
    """Return the tree of the directory or of the archives. `found` is called with the content of each file of a
    directory.

    Raises UsageError unless exactly one of them is given, SourceError for what cannot be read.
    """
    if archives and source is None:
        from erofs_edge.sources.tar_index import index_tars

        return index_tars(archives, layers=layers)
    if archives or source is None:
        raise UsageError(
            "what to build from? Give exactly one of SRC, --tar-index and --oci-layout",
            hint="erofs-edge fs build SRC -o IMG",
        )
    from erofs_edge.sources.directory import scan

    return scan(source, found)


def layer_rows(info: ErofsInfo) -> list[tuple[str, str]]:
    """Return the rows about devices for the table of `fs build`."""
    from erofs_edge.cli.output import size_text

    rows = []
    if info.lent:
        rows.append(("shared", f"{info.lent} files, {size_text(info.lent_bytes)}, are already on other devices"))
    if info.devices:
        rows.append(("devices", " ".join(map(str, info.devices))))
        rows.append(("mount", "-o " + ",".join(f"device={path}" for path in info.devices)))
    return rows
