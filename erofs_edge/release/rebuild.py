# SPDX-License-Identifier: Apache-2.0
"""Build a release again from its pinned inputs, and compare file by file."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erofs_edge.build.inputs import Inputs
from erofs_edge.build.pipeline import BuildOptions, build_board
from erofs_edge.build.record import RELEASE, read_release
from erofs_edge.build.signing import PUBLIC_KEY, RELEASE_SIGNATURE
from erofs_edge.build.stages import Step, quiet
from erofs_edge.disk.sparse import sparse_sha256
from erofs_edge.errors import ErofsEdgeError, SourceError, VerificationError
from erofs_edge.release.archive import ARCHIVE, unpack_archive
from erofs_edge.release.bundles import wish_of, write_bundles
from erofs_edge.release.forecast import FORECAST
from erofs_edge.release.papers import write_papers
from erofs_edge.release.replay import replay_signer
from erofs_edge.report.since import SINCE
from erofs_edge.sources.cache import Cache, file_digest
from erofs_edge.trust.key import read_public_key
from erofs_edge.trust.signer import Signer


@dataclass(frozen=True, slots=True)
class Verdict:
    """One file: SHA-256 in the release and in the new build, '' where it is missing."""

    name: str
    released: str
    rebuilt: str

    @property
    def same(self) -> bool:
        return bool(self.released) and self.released == self.rebuilt


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A comparison. `out` contains what was built; `error` says why nothing, or not everything, could be built."""

    out: Path
    verdicts: list[Verdict] = field(default_factory=list)
    error: str = ""

    @property
    def same(self) -> bool:
        return bool(self.verdicts) and not self.error and all(one.same for one in self.verdicts)


def rebuild(
    release: Path, out: Path, *, packages: Path | None = None, options: BuildOptions | None = None, step: Step = quiet
) -> Rebuilt:
    """Build a release again into `out`, an empty or new folder.

    packages  a folder of .deb files that need not be downloaded then

    Differences in content are in the verdicts, with blank signatures in `out`/made over it. Raises ErofsEdgeError if
    the release or an input is missing.
    """
    record = read_release(release)
    key = read_public_key(release / PUBLIC_KEY, "release").public_key
    if not (release / ARCHIVE).is_file():
        raise ErofsEdgeError(
            f"no {ARCHIVE} here: this is a build, not a release",
            where=str(release),
            hint="make one: erofs-edge release",
        )
    if not (release / RELEASE_SIGNATURE).is_file():
        raise VerificationError("the release record is not signed", where=str(release / RELEASE_SIGNATURE))
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ErofsEdgeError("the folder is not empty", where=str(out), hint="name a new folder")
    given = options or BuildOptions(out=out)
    if packages is not None:
        add_packages(packages, Cache(given.cache))
    board, system = unpack_archive(release / ARCHIVE, out / "inputs")
    signer = replay_signer(release, record, key)
    made, wish = out / "made", wish_of(release)

    def papers(work: Path, inputs: Inputs, signer: Signer) -> None:
        for name in (FORECAST, SINCE):
            if name in record["files"]:
                shutil.copyfile(release / name, work / name)  # they are about earlier releases, which a rebuild lacks
        write_bundles(work, wish, signer)
        write_papers(work, inputs, signer)

    build_board(
        board,
        BuildOptions(
            out=made, jobs=given.jobs, cache=given.cache, compression_cache=given.compression_cache, force=True,
            system=system, signer=signer, papers=papers,
        ),
        step,
    )  # fmt: skip
    verdicts = compare(release, record, made)
    same = all(one.same for one in verdicts)
    return Rebuilt(out, verdicts, "the release lacks a signature of what it holds" if same and signer.missing else "")


def add_packages(folder: Path, cache: Cache) -> None:
    """Put the .deb files of a folder into the cache, where locks find them by hash. Raises SourceError."""
    files = sorted(folder.glob("*.deb"))
    if not files:
        raise SourceError("no .deb files in the folder", where=str(folder))
    for path in files:
        target = cache.blob_path(file_digest(path))
        if not target.exists():
            with cache.writing(target) as out, path.open("rb") as file:
                shutil.copyfileobj(file, out)


def compare(release: Path, record: dict[str, Any], made: Path) -> list[Verdict]:
    """Every file of the release, its record, and what only the new build has."""
    names = {*record["files"], RELEASE, RELEASE_SIGNATURE}
    names |= {path.name for path in made.glob("*") if path.is_file() and not path.name.startswith(".")}
    return [Verdict(name, _digest(release / name), _digest(made / name)) for name in sorted(names)]


def _digest(path: Path) -> str:
    return sparse_sha256(path) if path.exists() else ""
