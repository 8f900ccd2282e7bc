# SPDX-License-Identifier: Apache-2.0
"""Make a release: only from committed inputs, and only with a key that protects something."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from erofs_edge.build.inputs import Inputs, gather
from erofs_edge.build.pipeline import BuildOptions, BuildResult, build_board
from erofs_edge.build.record import read_release, write_json
from erofs_edge.build.stages import Step, quiet
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.release.archive import input_files
from erofs_edge.release.bundles import NOTHING, Wish, check_wish, write_bundles
from erofs_edge.release.forecast import FORECAST, forecast, forecast_record, read_earlier
from erofs_edge.release.papers import write_papers
from erofs_edge.report.facts import collect
from erofs_edge.report.since import SINCE
from erofs_edge.trust.signer import Signer

SHOWN = 5
_SECONDS = 60
_UNSAID = "fix that, or use --allow-dirty to take the inputs as they are"


def make_release(
    board: Path,
    options: BuildOptions,
    step: Step = quiet,
    *,
    allow_dirty: bool = False,
    earlier: Sequence[Path] = (),
    bundles: Wish = NOTHING,
) -> BuildResult:
    """Build a board into options.out with all papers of a release; everything is made anew.

    earlier  folders of releases in the field: the update from each is forecast, and the page says what has changed
             since the newest one
    bundles  what else devices of a fleet install

    Raises ErofsEdgeError for a development key or uncommitted inputs, ManifestError for unlocked ones, and as
    `read_earlier` and `check_wish` do: before anything is built.
    """
    inputs = gather(board, None, options.system)
    if not allow_dirty:
        refuse_dirty(input_files(inputs))
    for old in earlier:
        read_earlier(old, inputs.board.value.board)
    check_wish(bundles, inputs.board.value)

    def papers(work: Path, inputs: Inputs, signer: Signer) -> None:
        if earlier:
            write_json(work / FORECAST, forecast_record([forecast(old, work) for old in earlier]))
            last = newest(earlier)
            write_json(work / SINCE, collect(work).after(collect(last), str(last)).record())
        write_bundles(work, bundles, signer)
        write_papers(work, inputs, signer)

    return build_board(board, replace(options, release=True, force=True, relock=False, papers=papers), step)


def newest(releases: Sequence[Path]) -> Path:
    """The release whose locks are newest; of several, the one named last.

    Raises ErofsEdgeError for a folder that is not a release.
    """
    return max(reversed(releases), key=lambda folder: int(read_release(folder)["epoch"]))


def refuse_dirty(paths: list[Path]) -> None:
    """Raises ErofsEdgeError if a file in a Git work tree differs from what is committed there, is not committed (even
    if Git ignores it: images contain it all the same), or if Git cannot tell.

    Files outside of work trees are not judged.
    """
    changed: list[str] = []
    for path in paths:
        changed += _uncommitted(path)
    if changed:
        names = sorted(set(changed))
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise ErofsEdgeError(
            f"inputs differ from what is committed: {', '.join(names[:SHOWN])}{more}",
            hint="commit or remove them, so that others can get what the release is made of; or use --allow-dirty",
        )


def _uncommitted(path: Path) -> list[str]:
    """Uncommitted files at `path`, as Git names them; empty outside a work tree."""
    folder = path if path.is_dir() else path.parent
    if not any((above / ".git").exists() for above in (folder.absolute(), *folder.absolute().parents)):
        return []
    status = ["status", "--porcelain", "-z", "--untracked-files=all", "--ignored=traditional", "--", str(path)]
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *status], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except OSError as error:
        raise ErofsEdgeError(f"git does not start: {error.strerror}", where=str(path), hint=_UNSAID) from error
    except subprocess.TimeoutExpired as error:
        raise ErofsEdgeError(f"git takes longer than {_SECONDS} s", where=str(path), hint=_UNSAID) from error
    if done.returncode:
        said = done.stderr.strip().partition("\n")[0] or f"exit status {done.returncode}"
        raise ErofsEdgeError(f"git cannot say what is committed: {said}", where=str(path), hint=_UNSAID)
    return [entry[3:] for entry in done.stdout.split("\0") if len(entry) > 3]
