# SPDX-License-Identifier: Apache-2.0
"""Read what the page says about a build from its folder: release.json, contents.json and the image itself."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erofs_edge.build.contents import CONTENTS, read_contents
from erofs_edge.build.record import read_release
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.regions import Map, map_image
from erofs_edge.errors import ErofsEdgeError, VerificationError
from erofs_edge.report.kinds import KINDS, kind_of
from erofs_edge.report.since import PATHS_MAX, SINCE, Since, since_of

SYSTEM, FORECAST = "system.img", "forecast.json"
PACKAGE = "package "
RECORD_MAX = 16 << 20
"""largest boot record or forecast that is read, in bytes"""


@dataclass(frozen=True, slots=True)
class File:
    """One path with a leading '/'.

    size    bytes of content; for a file with several names, counted at the first
    stored  bytes of the image that belong to it alone: inode, attributes, names, indexes and data
    """

    path: str
    origin: str
    kind: str
    size: int
    stored: int


@dataclass(frozen=True, slots=True)
class Facts:
    """A build as shown on the page.

    release, contents  the records
    files              every path in byte order of paths
    rest               kind of data in the image that belongs to no file → bytes
    map                the layout of the image
    forecast           cost of updates from earlier releases, as in `forecast.json`
    boot               the record of an unattended boot, None without one
    since              changes since the last release, as in since.json; None without one
    """

    release: dict[str, Any]
    contents: dict[str, Any]
    files: list[File]
    rest: dict[str, int]
    map: Map
    forecast: list[dict[str, Any]] = field(default_factory=list)
    boot: dict[str, Any] | None = None
    since: Since | None = None

    def by_kind(self) -> Iterator[tuple[str, int, int, int]]:
        """(kind, files, bytes of content, bytes in the image) of the kinds that occur."""
        sums: dict[str, list[int]] = {}
        for one in self.files:
            total = sums.setdefault(one.kind, [0, 0, 0])
            for place, number in enumerate((1, one.size, one.stored)):
                total[place] += number
        sums["of no file"] = [0, 0, sum(self.rest.values())]
        yield from ((kind, *sums[kind]) for kind in KINDS if kind in sums)  # type: ignore[misc]

    def by_origin(self) -> dict[str, list[File]]:
        """Origin → its files."""
        found: dict[str, list[File]] = {}
        for one in self.files:
            found.setdefault(one.origin, []).append(one)
        return dict(sorted(found.items()))

    def stored(self) -> dict[str, int]:
        """Package or other origin → bytes of its files in the image."""
        sums: dict[str, int] = {}
        for one in self.files:
            name = one.origin.removeprefix(PACKAGE)
            sums[name] = sums.get(name, 0) + one.stored
        return sums

    def versions(self) -> dict[str, str]:
        """Package → version."""
        return {name: str(one.get("version", "")) for name, one in self.contents["packages"].items()}

    def after(self, old: Facts, where: str = "") -> Since:
        """Changes since the build `old`. Raises ErofsEdgeError at `where` if that is for another board."""
        one, other = old.release["board"], self.release["board"]
        if one != other:
            raise ErofsEdgeError(f"this is a build of board '{one}', not of '{other}'", where=where or None)
        before, now = ({file.path for file in facts.files} for facts in (old, self))
        added, removed = sorted(now - before), sorted(before - now)
        sizes = {name: file.get("size") for name, file in old.release["files"].items()}
        return Since(
            root_hash=old.release["system"]["root_hash"],
            files={name: size for name, size in sizes.items() if isinstance(size, int)},
            stored=old.stored(),
            versions=old.versions(),
            added=added[:PATHS_MAX],
            removed=removed[:PATHS_MAX],
            added_count=len(added),
            removed_count=len(removed),
        )

    def below(self, path: str) -> int:
        """Bytes of content at and below a path, as counted for budgets."""
        top = path.rstrip("/")
        return sum(one.size for one in self.files if one.path == top or one.path.startswith(top + "/"))


def collect(out: Path, boot: Path | None = None) -> Facts:
    """Read the folder of a build or a release; `boot` is the output of `boot --smoke --json`.

    Raises ErofsEdgeError if something is missing, VerificationError if image and record are not from the same build or
    a record is damaged.
    """
    release, contents = read_release(out), read_contents(out)
    try:
        origins = {str(path): origin for origin, paths in contents["paths"].items() for path in paths}
        root_hash = release["system"]["root_hash"]
        wanted = [release["partitions"], *contents["packages"].values(), *release["files"].values()]
        if not all(isinstance(value, dict) for value in wanted):
            raise TypeError("a value of the wrong type")
    except (KeyError, TypeError, AttributeError) as error:
        raise VerificationError(f"release.json or {CONTENTS} is damaged: {error}", where=str(out)) from error
    path = out / SYSTEM
    if not path.exists():
        raise ErofsEdgeError("no system image here", where=str(path), hint=f"erofs-edge build BOARD -o {out}")
    with Image(path) as image:
        drawn = map_image(image)
        files = list(_files(image, drawn, origins, path))
    earlier = read_record(out / FORECAST, list) if (out / FORECAST).exists() else []
    record = read_record(boot, dict) if boot is not None else None
    if record is not None and record.get("root_hash") != root_hash:
        raise ErofsEdgeError(
            "this is the boot of another build", where=str(boot), hint="boot this build: erofs-edge boot --smoke --json"
        )
    since = since_of(read_record(out / SINCE, dict), str(out)) if (out / SINCE).exists() else None
    return Facts(release, contents, files, _rest(drawn, files), drawn, earlier, record, since)


def read_record(path: Path, kind: type[Any]) -> Any:
    """A JSON file whose value is of that kind. Raises VerificationError for another kind or a damaged file."""
    try:
        if path.stat().st_size > RECORD_MAX:
            raise ValueError("too large")
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise VerificationError(f"cannot be read: {error}", where=str(path)) from error
    if not isinstance(value, kind):
        raise VerificationError("not the kind of record that belongs here", where=str(path))
    return value


def _files(image: Image, drawn: Map, origins: dict[str, str], path: Path) -> Iterable[File]:
    stored: dict[str, int] = {}
    for region in drawn.regions:
        if region.label:
            stored[region.label] = stored.get(region.label, 0) + region.end - region.start
    seen: set[int] = set()
    for raw, inode in image.walk():
        name = os.fsdecode(b"/" + raw)
        if name not in origins:
            raise VerificationError(
                f"{CONTENTS} is of another build: {name} is in the image alone", where=str(path), hint="build again"
            )
        size = inode.size if stat.S_ISREG(inode.mode) and inode.nid not in seen else 0
        seen.add(inode.nid)
        yield File(name, str(origins[name]), kind_of(name, inode.mode, inode.size), size, stored.get(name, 0))


def _rest(drawn: Map, files: list[File]) -> dict[str, int]:
    """Bytes by kind of region that belong to no path; fragments of many files count as shared."""
    known = {one.path for one in files}
    sums: dict[str, int] = {}
    for region in drawn.regions:
        if region.label not in known:
            sums[region.kind] = sums.get(region.kind, 0) + region.end - region.start
    return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))
