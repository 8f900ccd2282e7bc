# SPDX-License-Identifier: Apache-2.0
"""contents.json: every path of the system with its origin, and every package with its metadata.

Bills of materials are made from it, and it answers "why is this file here". It depends on the inputs only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from erofs_edge.build.inputs import Inputs
from erofs_edge.build.licenses import declared_licenses
from erofs_edge.build.record import write_json
from erofs_edge.errors import ErofsEdgeError, VerificationError
from erofs_edge.manifest.model import LockedPackage, size_bytes
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import Package, read_deb
from erofs_edge.tree import FileTree

CONTENTS = "contents.json"
FORMAT = 1
SIZE_MAX = 256 << 20
_MANIFEST = re.compile(r"(?P<path>.+\.ya?ml):(?P<line>\d+):\d+")
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")


def write_contents(
    work: Path, inputs: Inputs, debs: Mapping[str, Mapping[str, Path]], tree: FileTree, cache: Cache
) -> None:
    """Write it into a folder. `debs`: the .deb files of each group ('system', 'kernel', …) by package name.

    Raises SourceError for a damaged .deb.
    """
    locked = {("system", p.name): p for p in inputs.system.lock.packages["system"]}
    locked |= {(group, p.name): p for group, packages in inputs.lock.packages.items() for p in packages}
    requested = {("system", name) for name in inputs.system.lock.requested.get("system", ())}
    requested |= {(group, name) for group, names in inputs.lock.requested.items() for name in names}
    packages: dict[str, dict[str, Any]] = {}
    read = {(group, name): read_deb(path, cache) for group, files in debs.items() for name, path in files.items()}
    by_name = {package.name: package for package in read.values()}
    for (group, name), package in sorted(read.items()):
        entry = packages.setdefault(name, {**describe_package(package, by_name, locked.get((group, name))), "in": []})
        entry["in"].append(group)
        entry["requested"] = entry.get("requested", False) or (group, name) in requested
    write_json(
        work / CONTENTS,
        {
            "format": FORMAT,
            "system": inputs.system.loaded.value.system,
            "suite": inputs.system.loaded.value.suite,
            "epoch": inputs.epoch,
            "packages": packages,
            "vulnerabilities": {name: one.text for name, one in inputs.system.loaded.value.vulnerabilities.items()},
            "size_budget": {path: size_bytes(size) for path, size in inputs.system.loaded.value.size_budget.items()},
            "paths": paths_by_origin(tree, packages),
        },
    )


def describe_package(package: Package, others: Mapping[str, Package], locked: LockedPackage | None) -> dict[str, Any]:
    """A package's own metadata, and what the lock pins of it."""
    control = package.control
    source, _, version = control.get("Source", package.name).partition(" ")
    return {
        "version": package.version,
        "arch": package.arch,
        "source": source,
        "source_version": version.strip("()") or package.version,
        "maintainer": control.get("Maintainer", ""),
        "homepage": control.get("Homepage", ""),
        "summary": control.get("Description", "").split("\n")[0],
        "licenses": declared_licenses(package, others),
        "depends": _depends(control),
        "archive": locked.archive if locked else "",
        "sha256": locked.sha256 if locked else "",
        "size": locked.size if locked else 0,
    }


def _depends(control: Mapping[str, str]) -> list[str]:
    """Names in Pre-Depends and Depends, including alternatives, without versions."""
    text = ", ".join(control.get(name, "") for name in ("Pre-Depends", "Depends"))
    names = (_NAME.match(part.strip()) for part in re.split(r"[,|]", text))
    return sorted({found[0] for found in names if found})


def paths_by_origin(tree: FileTree, packages: Iterable[str]) -> dict[str, list[str]]:
    """Origin → paths, in byte order, the root as '/'. Origins are 'package NAME', 'manifest FILE:LINE', 'step WORDS'
    and 'unexplained'."""
    known = set(packages)
    found: dict[str, list[str]] = {}
    for path, inode in tree.walk():
        found.setdefault(_origin(inode.origin, known), []).append(os.fsdecode(path))
    return dict(sorted(found.items()))


def _origin(origin: str, packages: set[str]) -> str:
    if origin in packages:
        return f"package {origin}"
    manifest = _MANIFEST.fullmatch(origin)
    if manifest:
        # folders of the build machine stay private
        return f"manifest {PurePosixPath(manifest['path']).name}:{manifest['line']}"
    return f"step {origin}" if origin else "unexplained"


def read_contents(out: Path) -> dict[str, Any]:
    """Read the record of an output folder or a release. Raises ErofsEdgeError if it is missing or damaged."""
    path = out / CONTENTS
    try:
        if path.stat().st_size > SIZE_MAX:
            raise ValueError("too large")
        record: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ErofsEdgeError(
            f"no {CONTENTS} here", where=str(out), hint="build the board with this version of erofs-edge"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise VerificationError(f"damaged: {error}", where=str(path), hint="build again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ErofsEdgeError("written by another version of erofs-edge", where=str(path), hint="build again")
    for key in ("packages", "paths"):
        if not isinstance(record.get(key), dict):
            raise VerificationError(f"damaged: it has no {key}", where=str(path), hint="build again")
    return record
