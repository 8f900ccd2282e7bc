# SPDX-License-Identifier: Apache-2.0
"""Collect what is pushed: a build's folder, an EROFS image with its data devices, or any file, as an artifact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from erofs_edge.build.record import RELEASE, read_release
from erofs_edge.build.signing import RELEASE_SIGNATURE
from erofs_edge.erofs import ondisk
from erofs_edge.erofs.read import Image
from erofs_edge.errors import SourceError, UsageError
from erofs_edge.registry.artifact import BUILD, LAYER, RAW, Artifact, check_name, image_config
from erofs_edge.registry.pieces import PIECE, Cut, Progress, cut_file
from erofs_edge.sources.oci.documents import PLATFORMS

IMAGE = "application/vnd.erofs-edge.image.v1"
"""artifactType of files that are not a container image: an image with devices or in pieces, a disk image"""


def gather(
    what: Path,
    *,
    devices: Sequence[Path] = (),
    arch: str = "arm64",
    piece: int | None = None,
    layer: str = LAYER,
    progress: Progress = lambda _done, _total: None,
) -> tuple[Artifact, list[Cut]]:
    """The artifact, and its files cut and hashed.

    what    the folder of a build, whose files are cut into pieces; or a file
    piece   bytes; files are cut into such pieces. None: an image stays whole, a folder gets PIECE
    arch    Debian's name for the architecture of a container image
    layer   media type of EROFS images that stay whole

    A whole EROFS image without devices becomes a container image of one layer. Raises SourceError if something cannot
    be read or has an unusable name, UsageError for devices that are not the image's, ErofsFormatError for a damaged
    image.
    """  # fmt: skip
    if what.is_dir():
        if devices:
            raise UsageError("a build has no extra devices: --device is for a single image")
        return _folder(what, piece, progress)
    erofs = is_erofs(what)
    if devices or erofs:
        _check_devices(what, devices)
    names = [one.name for one in (what, *devices)]
    if len(set(names)) != len(names):
        raise UsageError(f"two files are called {max(names, key=names.count)}")
    files = [
        cut_file(
            path, check_name(path.name, str(path)), piece=piece, device=bool(number), progress=progress,
            media_type=layer if is_erofs(path) else RAW,
        )
        for number, path in enumerate((what, *devices))
    ]  # fmt: skip
    stored = tuple(cut.stored for cut in files)
    if erofs and not devices and stored[0].is_whole:
        if arch not in PLATFORMS:
            raise UsageError(f"no architecture {arch!r}", hint=f"one of {', '.join(PLATFORMS)}")
        return Artifact(stored, image_config(stored, arch)), files
    return Artifact(stored, kind=IMAGE), files


def is_erofs(path: Path) -> bool:
    """Whether a file begins like an EROFS image. Raises SourceError if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(ondisk.SUPER_OFFSET)
            return file.read(4) == ondisk.SUPER_MAGIC.to_bytes(4, "little")
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error


def _check_devices(image: Path, devices: Sequence[Path]) -> None:
    with Image(image) as opened:
        wanted = len(opened.superblock.devices)
    if wanted != len(devices):
        raise UsageError(
            f"the image has data on {wanted or 'no'} extra devices, {len(devices)} are given",
            where=str(image), hint="--device FILE for each, in the order of `fs dump`" if wanted else None,
        )  # fmt: skip
    with Image(image, devices=devices):
        pass


def _folder(folder: Path, piece: int | None, progress: Progress) -> tuple[Artifact, list[Cut]]:
    names = [*read_release(folder)["files"], RELEASE]
    if (folder / RELEASE_SIGNATURE).is_file():
        names.append(RELEASE_SIGNATURE)
    sizes = {name: _size(folder / name) for name in sorted(set(names))}
    total, before, cuts = sum(sizes.values()), 0, []
    for name, size in sizes.items():

        def told(done: int, _total: int, before: int = before, size: int = size) -> None:
            progress(before + min(done, size), total)

        cuts.append(cut_file(folder / name, check_name(name, str(folder)), piece=piece or PIECE, progress=told))
        before += size
    return Artifact(tuple(cut.stored for cut in cuts), kind=BUILD), cuts


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path), hint="build again") from error
