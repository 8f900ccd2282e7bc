# SPDX-License-Identifier: Apache-2.0
"""A system as a list of packages and files, each file with its digest and origin."""

from __future__ import annotations

import hashlib
import os
import stat
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erofs_edge.build.contents import CONTENTS, read_contents
from erofs_edge.build.record import read_release
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.told_digests import hash_file
from erofs_edge.errors import ErofsEdgeError, VerificationError
from erofs_edge.uuids import uuid8

SYSTEM = "system.img"
PACKAGE = "package "


@dataclass(frozen=True, slots=True)
class File:
    """One path of the system, with a leading '/'.

    sha1, sha256  of regular files in hex, '' for others
    target        of symlinks
    """

    path: str
    origin: str
    size: int
    sha1: str = ""
    sha256: str = ""
    target: str = ""


@dataclass(frozen=True, slots=True)
class Bill:
    """What `contents.json`, `release.json` and the image say together.

    packages  name → its entry in contents.json
    files     everything that is not a directory, in byte order of paths
    """

    board: str
    system: str
    suite: str
    arch: str
    epoch: int
    root_hash: str
    serial: uuid.UUID
    versions: dict[str, Any]
    packages: dict[str, dict[str, Any]]
    files: list[File] = field(default_factory=list)

    @property
    def others(self) -> list[File]:
        """Files that belong to no package: from overlays and named steps."""
        return [one for one in self.files if not one.origin.startswith(PACKAGE)]


def read_bill(out: Path, *, jobs: int | None = None) -> Bill:
    """The bill of a build's output folder or a release.

    Raises ErofsEdgeError if something is missing, VerificationError if image and record are not from the same build.
    """
    release, contents = read_release(out), read_contents(out)
    try:
        system = release["system"]
        bill = Bill(
            board=release["board"],
            system=system["name"],
            suite=contents["suite"],
            arch=release["arch"],
            epoch=release["epoch"],
            root_hash=system["root_hash"],
            serial=_serial(system["root_hash"]),
            versions=release["erofs_edge"],
            packages=contents["packages"],
        )
        origins = {path: origin for origin, paths in contents["paths"].items() for path in paths}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise VerificationError(f"release.json or {CONTENTS} is damaged: {error}", where=str(out)) from error
    bill.files.extend(_files(out / SYSTEM, origins, jobs))
    return bill


def _serial(root_hash: str) -> uuid.UUID:
    """A version 8 UUID from the root hash: the same system has the same number."""
    return uuid.UUID(bytes=uuid8(hashlib.sha256(b"erofs-edge sbom" + bytes.fromhex(root_hash)).digest()))


def _files(path: Path, origins: dict[str, str], jobs: int | None) -> list[File]:
    if not path.exists():
        raise ErofsEdgeError("no system image here", where=str(path), hint=f"erofs-edge build BOARD -o {path.parent}")
    with Image(path) as image:
        entries = [(os.fsdecode(b"/" + name), inode) for name, inode in image.walk()]
        missing = [name for name, _ in entries if name not in origins]
        if missing or len(origins) != len(entries):
            told = f"{missing[0]} is in the image alone" if missing else "paths of the record are not in the image"
            raise VerificationError(f"{CONTENTS} is of another build: {told}", where=str(path), hint="build again")

        def file(entry: tuple[str, DiskInode]) -> File:
            name, inode = entry
            if not stat.S_ISREG(inode.mode):
                target = os.fsdecode(image.readlink(inode)) if stat.S_ISLNK(inode.mode) else ""
                return File(name, origins[name], 0, target=target)
            one, other = hashlib.sha1(usedforsecurity=False), hashlib.sha256()
            hash_file(image, inode, one, other)
            return File(name, origins[name], inode.size, one.hexdigest(), other.hexdigest())

        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            return list(pool.map(file, (entry for entry in entries if not entry[1].is_dir), chunksize=64))
