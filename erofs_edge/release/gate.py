# SPDX-License-Identifier: Apache-2.0
"""The gate before a release is published: each promise of a release, kept or not, in one list."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from erofs_edge.build.record import read_release
from erofs_edge.build.stages import Step, quiet
from erofs_edge.errors import BootCheckError, CapacityError, ErofsEdgeError, ReproducibilityError, VerificationError
from erofs_edge.manifest.load import load_board, load_system
from erofs_edge.manifest.model import Board, size_bytes
from erofs_edge.release.archive import ARCHIVE, unpack_archive
from erofs_edge.release.bundles import check_bundles
from erofs_edge.release.forecast import SYSTEM, forecast
from erofs_edge.release.rebuild import rebuild
from erofs_edge.trust.key import VerificationKey
from erofs_edge.verify.path import verify_path
from erofs_edge.writing import scratch_folder

TAMPERS = ("kernel", "unsigned", "wrong-key", "downgrade", "system")
"""one per link of the chain: what the firmware hashes, that it requires a signature, by whom, how old, and the
system behind
"""
FAULT = "panic"
"""the fault of the slot that must be abandoned"""
WIRE = "blocks that are new"
"""the method of `forecast` that a budget applies to"""


class _UnshownError(Exception):
    """A promise that cannot be tested here, and why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One promise. `kept` is None if it was not tested; `seconds`: the duration."""

    name: str
    kept: bool | None
    detail: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Options of a release check.

    earlier  releases in the field; the update from each is checked against `update_max` bytes (None: no budget)
    skip     names of PROMISES that are not tested
    packages  a folder of .deb files for the rebuild
    timeout  seconds for one machine, and for all starts of the fallback; None: what `smoke` and `fall_back` allow
    """

    earlier: tuple[Path, ...] = ()
    update_max: int | None = None
    skip: frozenset[str] = frozenset()
    packages: Path | None = None
    timeout: float | None = None


@dataclass(slots=True)
class _Case:
    folder: Path
    key: VerificationKey
    wanted: Wanted
    work: Path
    step: Step = quiet
    _inputs: tuple[Path, Path] | None = field(default=None)

    @property
    def inputs(self) -> tuple[Path, Path]:
        """(board, system), unpacked once from what the release pins. Raises _UnshownError, FormatError."""
        if self._inputs is None:
            archive = self.folder / ARCHIVE
            if not archive.is_file():
                raise _UnshownError("this is a build, not a release: it does not pin its inputs")
            # a new folder each time, so that after a failure every promise that needs it fails in the same way
            self._inputs = unpack_archive(archive, Path(tempfile.mkdtemp(prefix="inputs-", dir=self.work)))
        return self._inputs

    @property
    def board(self) -> Board:
        """Raises _UnshownError if we cannot emulate the board."""
        board = load_board(self.inputs[0]).value
        if board.qemu is None:
            raise _UnshownError("the board cannot be run in QEMU")
        return board


def _signatures(case: _Case) -> str:
    verdict = verify_path(case.folder, case.key)
    if not verdict.ok:
        failed = [f"{one.what}: {one.error}" for one in verdict.failed] or ["nothing in it is signed"]
        raise VerificationError("; ".join(failed[:3]), where=str(case.folder))
    return f"{len(verdict.checks)} checks against key '{case.key.name}'"


def _bundled(case: _Case) -> str:
    names = check_bundles(case.folder, case.key)
    if not names:
        raise _UnshownError("the release has no bundles")
    return f"of this build: {', '.join(names)}"


def _rebuilt(case: _Case) -> str:
    case.inputs  # noqa: B018  says why a build cannot be made again
    result = rebuild(case.folder, case.work / "again", packages=case.wanted.packages, step=case.step)
    wrong = [one.name for one in result.verdicts if not one.same]
    if not result.same:
        raise ReproducibilityError(result.error or f"{len(wrong)} file(s) differ: {', '.join(wrong[:5])}")
    return f"{len(result.verdicts)} files are the same"


def _boots(case: _Case) -> str:
    from erofs_edge.qemu.smoke import TIMEOUT, Observer, smoke

    record = smoke(case.board, case.folder, observer=Observer(case.wanted.timeout or TIMEOUT))
    return f"slot {record.slot} is up after {record.seconds:.0f} s"


def _stopped(case: _Case) -> str:
    from erofs_edge.qemu.smoke import TIMEOUT, Observer, smoke

    for name in TAMPERS:
        with case.step(f"tampering: {name}"):
            smoke(case.board, case.folder, tamper=name, observer=Observer(case.wanted.timeout or TIMEOUT))
    return f"stopped: {', '.join(TAMPERS)}"


def _falls_back(case: _Case) -> str:
    from erofs_edge.qemu.fallback import TIMEOUT, fall_back
    from erofs_edge.qemu.smoke import Observer

    if len(read_release(case.folder)["system"]["slots"]) < 2:
        raise _UnshownError("the board has one slot")
    record = fall_back(case.board, case.folder, scenario=FAULT, observer=Observer(case.wanted.timeout or TIMEOUT))
    return f"slot {record.fell_from} gave way to {record.slot} after {record.starts} start(s)"


def _size(case: _Case) -> str:
    budget = load_system(case.inputs[1]).value.size_budget.get("partition")
    size = (case.folder / SYSTEM).stat().st_size
    if budget is None:
        raise _UnshownError(f"{size} bytes; the manifest has no size_budget for the partition")
    if size > size_bytes(budget):
        raise CapacityError(f"{size} bytes, the budget is {size_bytes(budget)}")
    return f"{size} of {size_bytes(budget)} bytes"


def _updates(case: _Case) -> str:
    if not case.wanted.earlier:
        raise _UnshownError("no earlier release was named (--from)")
    told = []
    for old in case.wanted.earlier:
        size, most = forecast(old, case.folder).methods[WIRE], case.wanted.update_max
        if most is not None and size > most:
            raise CapacityError(f"the update from {old} takes {size} bytes, the budget is {most}")
        told.append(f"{size} bytes from {old.name}")
    return ", ".join(told)


PROMISES: dict[str, Callable[[_Case], str]] = {
    "signatures": _signatures,
    "bundles": _bundled,
    "rebuild": _rebuilt,
    "boot": _boots,
    "tampering": _stopped,
    "fallback": _falls_back,
    "size": _size,
    "updates": _updates,
}
"""name → its test: returns what was seen; raises ErofsEdgeError if the promise is not kept, _UnshownError if it cannot
be tested
"""


def check_release(folder: Path, key: VerificationKey, wanted: Wanted = Wanted(), step: Step = quiet) -> list[Row]:
    """Test each promise of a release; all are tested even if some are not kept.

    Raises ErofsEdgeError only if there is no release.
    """
    read_release(folder)
    with scratch_folder("gate") as work:
        case = _Case(folder, key, wanted, work, step)
        return list(_tried(case))


def _tried(case: _Case) -> Iterator[Row]:
    for name, promise in PROMISES.items():
        if name in case.wanted.skip:
            yield Row(name, None, "skipped")
            continue
        started = time.monotonic()
        try:
            kept, detail = True, promise(case)
        except _UnshownError as why:
            kept, detail = None, str(why)
        except BootCheckError as error:
            kept, detail = False, str(error).splitlines()[0]
        except (ErofsEdgeError, OSError) as error:
            kept, detail = False, str(error)
        yield Row(name, kept, detail, round(time.monotonic() - started, 1))


def refuse_broken(rows: Sequence[Row], where: str) -> None:
    """Raises VerificationError if a promise is not kept, or none was tested."""
    broken = [row.name for row in rows if row.kept is False]
    if broken or not any(row.kept for row in rows):
        raise VerificationError(
            f"not fit for release: {', '.join(broken)}" if broken else "nothing was checked",
            where=where,
            hint="do not publish it" if broken else "use --skip for fewer checks",
        )
