# SPDX-License-Identifier: Apache-2.0
"""inputs.tar: the board, its manifests, their locks, and everything else that they use from this machine.

Files shipped with erofs-edge are left out: the record names its version.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from erofs_edge.build.inputs import Inputs, host_paths
from erofs_edge.errors import FormatError, SourceError
from erofs_edge.manifest.load import lock_path

ARCHIVE = "inputs.tar"
INDEX = "inputs.json"
SIZE_MAX = 16 << 30
FILES_MAX = 1_000_000
_PACKAGE = Path(__file__).resolve().parent.parent


def input_files(inputs: Inputs) -> list[Path]:
    """Files and folders of this machine that a build reads, absolute, sorted, without those shipped with erofs-edge."""
    systems = [inputs.system.loaded, *(layer.loaded for layer in inputs.layers)]
    named = [*inputs.board.files, lock_path(inputs.board.path)]
    named += [path for one in systems for path in (*one.files, lock_path(one.path), *host_paths(one.value))]
    found = {path.absolute() for path in named}
    return sorted(path for path in found if not path.resolve().is_relative_to(_PACKAGE))


def write_archive(inputs: Inputs, out: Path) -> None:
    """Write them as a tar whose bytes depend only on their names, contents and permissions.

    Raises SourceError if one cannot be read.
    """
    paths = input_files(inputs)
    if not paths:
        raise SourceError("nothing of this product is outside erofs-edge", where=str(inputs.board.path))
    root = Path(os.path.commonpath([path.parent for path in paths]))
    index = {
        "board": _relative(inputs.board.path.absolute(), root),
        "system": _relative(inputs.system.loaded.path.absolute(), root),
        "epoch": inputs.epoch,
    }
    try:
        with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
            data = json.dumps(index, sort_keys=True).encode()
            _add(tar, INDEX, data, 0o644)
            for path in _expanded(paths):
                name = path.relative_to(root).as_posix()
                if path.is_symlink():
                    info = tarfile.TarInfo(name)
                    info.type, info.linkname, info.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
                    tar.addfile(info)
                elif path.is_dir():
                    info = tarfile.TarInfo(name)
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(info)
                else:
                    info = tarfile.TarInfo(name)
                    status = path.stat()
                    # as in a checkout: the umask influences neither an image nor the digest of its inputs
                    info.size, info.mode = status.st_size, 0o755 if status.st_mode & 0o100 else 0o644
                    with path.open("rb") as handle:
                        tar.addfile(info, handle)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(error.filename or out)) from error


def _relative(path: Path, root: Path) -> str:
    """The path below the root, or the name of what is shipped with erofs-edge."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.stem


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def _expanded(paths: Iterable[Path]) -> list[Path]:
    """Folders with everything below them, each path once, sorted."""
    found: set[Path] = set()
    for path in paths:
        found.add(path)
        if path.is_dir() and not path.is_symlink():
            for folder, folders, names in os.walk(path):
                found |= {Path(folder) / name for name in (*folders, *names)}
    return sorted(found)


def _put(tar: tarfile.TarFile, member: tarfile.TarInfo, to: Path) -> None:
    """Unpack one member below `to`: a folder, a file, or a symlink, which may point anywhere since an overlay's are the
    board's. Nothing is written through one that leads outside. Raises ValueError.

    Python's own filters came with 3.11.4 (Debian 12 has 3.11.2), and refuse absolute symlinks.
    """
    place = to / member.name
    if not Path(os.path.realpath(place.parent)).is_relative_to(os.path.realpath(to)):
        raise ValueError(f"{member.name!r} leads out of it")
    place.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        place.mkdir(exist_ok=True)
    elif member.issym():
        place.symlink_to(member.linkname)
    elif member.isreg() and (data := tar.extractfile(member)) is not None:
        with open(place, "xb") as file:
            shutil.copyfileobj(data, file)
        place.chmod(0o600 | member.mode & 0o755)
    else:
        raise ValueError(f"{member.name!r} is of another kind")


def unpack_archive(archive: Path, to: Path) -> tuple[Path, Path]:
    """Unpack into an empty folder; return (board, system) to build from. Raises FormatError for a damaged or hostile
    archive.
    """
    try:
        with tarfile.open(archive) as tar:
            size = count = 0
            for member in tar:
                size, count = size + member.size, count + 1
                if size > SIZE_MAX or count > FILES_MAX:
                    raise FormatError("more than a product can be", where=str(archive))
                _put(tar, member, to)
        index = json.loads((to / INDEX).read_text())
        places = [str(index["board"]), str(index["system"])]
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"not an archive of inputs: {error}", where=str(archive)) from error
    found = []
    for place in places:
        pure = PurePosixPath(place)
        if pure.is_absolute() or ".." in pure.parts:
            raise FormatError(f"{place!r} leads out of the archive", where=str(archive))
        found.append(to / place if (to / place).exists() else Path(place))
    return found[0], found[1]
