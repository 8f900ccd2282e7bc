# SPDX-License-Identifier: Apache-2.0
"""Build a board from its manifests, in order: inputs, packages, system image, boot image, disk, record.

Everything is made in a working folder inside the output folder and moved out once it is complete, so a build that
dies leaves the last good outputs untouched.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erofs_edge.build import relock
from erofs_edge.build.baseline import check_baseline, layout_notes, layout_record
from erofs_edge.build.compose import make_layers
from erofs_edge.build.contents import write_contents
from erofs_edge.build.exposed import exposed_notes
from erofs_edge.build.inputs import Inputs, digest, gather
from erofs_edge.build.loader import refuse_open_loader
from erofs_edge.build.record import (
    RELEASE,
    describe,
    outputs,
    outputs_meanwhile,
    read_release,
    remember,
    unchanged,
    write_json,
)
from erofs_edge.build.reference import reference_values
from erofs_edge.build.signing import (
    RELEASE_SIGNATURE,
    Collector,
    refuse_development,
    sign_release,
    sign_system,
    signer_record,
)
from erofs_edge.build.stages import (
    Bench,
    Debs,
    Made,
    Step,
    fetch_debs,
    make_boot,
    make_disk,
    make_system,
    parity_meanwhile,
    quiet,
)
from erofs_edge.build.vbmeta import write_vbmeta_images
from erofs_edge.errors import CapacityError, ErofsEdgeError, PackagesGoneError
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.trust.signer import Signer, open_signer, public_key_pem
from erofs_edge.writing import NO_SPACE, refuse_unwritable

Papers = Callable[[Path, Inputs, Signer], None]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options of a build.

    out       output folder
    jobs      number of threads (never changes a byte); None: one more than the number of processors
    cache     folder for packages and compressed data; None: the user's cache
    compression_cache  False: compress everything anew
    force     build even if nothing has changed
    relock    if the mirror no longer has a locked package, lock again into out/locks and continue
    key       URI of the signing key; None: the board's
    release   refuse anything that is only suitable for development
    system    a manifest to use instead of the board's own
    signer    a signer to use instead of `key`
    papers    called to write further files into the working folder, which by then holds all other files and a
              provisional record
    baseline  an image, or the output folder of a build, that the new system image replaces
    profile   a file that lists what is used first when the system starts
    """

    out: Path
    jobs: int | None = None
    cache: Path | None = None
    compression_cache: bool = True
    force: bool = False
    relock: bool = False
    key: str | None = None
    release: bool = False
    system: Path | None = None
    signer: Signer | None = None
    papers: Papers | None = None
    baseline: Path | None = None
    profile: Path | None = None

    def gather(self, board: Path, locks: Path | None) -> Inputs:
        """Call inputs.gather with the replacements in these options, and check that the baseline is of this board."""
        inputs = gather(board, locks, self.system, baseline=self.baseline, profile=self.profile)
        check_baseline(inputs)
        return inputs


@dataclass(frozen=True, slots=True)
class BuildResult:
    """The outcome of a build.

    record  release.json as a value
    fresh   False if everything was up to date
    notes   messages for the user
    """

    out: Path
    record: dict[str, Any]
    fresh: bool
    notes: list[str] = field(default_factory=list)


def build_board(board_path: Path, options: BuildOptions, step: Step = quiet) -> BuildResult:
    """Build a board's disk image and everything in it into options.out.

    Raises any kind of ErofsEdgeError.
    """
    cache = Cache(options.cache)
    relocked = relock.valid(options.out / relock.FOLDER) if options.relock else None
    inputs = options.gather(board_path, relocked)
    signer = options.signer or open_signer(options.key or inputs.board.value.sign.key)
    if options.release:
        refuse_development(signer)
        refuse_open_loader(inputs.board.value)
    public_key = public_key_pem(signer)
    inputs_digest = digest(inputs, public_key)
    if not options.force and unchanged(options.out, inputs_digest):
        return BuildResult(options.out, read_release(options.out), fresh=False)
    refuse_unwritable(options.out)

    inputs, debs, notes = _fetch(board_path, inputs, options, cache, step)
    inputs_digest = digest(inputs, public_key)
    with workshop(options.out) as work:
        bench = Bench(work, cache, signer, step, options.jobs, options.compression_cache)
        layers, lay, layer_notes = make_layers(inputs, bench)
        system = make_system(inputs, debs, bench, lay)
        exposed = exposed_notes(inputs.board.value, inputs.system.loaded.value)
        notes = [*notes, *layer_notes, *(exposed if options.release else [])]
        signed = Collector()
        certificate = sign_system(signer, system.verity.root_hash, inputs.epoch, work, signed)
        with parity_meanwhile(system, bench), signed.one():
            boot = make_boot(inputs, debs, system, bench)
            write_vbmeta_images(inputs.board.value, inputs.partition, system.verity, signer, work)
        signed.finish()
        assert certificate is not None  # noqa: S101  else a signature is missing
        made = Made(system, boot, make_disk(inputs, system, boot, bench))
        with outputs_meanwhile(work) as hashed, step("contents"):
            write_contents(work, inputs, debs.by_group(inputs), system.tree, cache)
            reference = reference_values(work, system.verity.root_hash)
        names = sorted(path.name for path in work.iterdir())
        record = describe(inputs, inputs_digest, signer, made, outputs(work, names, hashed))
        record["system"] |= layout_record(inputs, system.erofs)
        record["sign"] |= signer_record(signer, certificate)
        if layers:
            record["layers"] = {one.name: {"kind": one.kind, "root_hash": one.root_hash.hex()} for one in layers}
        record |= {"reference": reference} | ({"exposed": exposed} if exposed else {})
        write_json(work / RELEASE, record)
        if options.papers is not None:
            with step("release documents"):
                options.papers(work, inputs, signer)
            names = sorted(path.name for path in work.iterdir() if path.name != RELEASE)
            record["files"] = outputs(work, names, record["files"])
            write_json(work / RELEASE, record)
        sign_release(signer, certificate, work / RELEASE)
        names.append(RELEASE_SIGNATURE)
        hand_over(work, options.out, names)
    remember(options.out, inputs_digest, names)
    notes = [*notes, *system.report.notes, *layout_notes(inputs, system.erofs, system.tree)]
    return BuildResult(options.out, record, fresh=True, notes=notes)


def _fetch(
    board_path: Path, inputs: Inputs, options: BuildOptions, cache: Cache, step: Step
) -> tuple[Inputs, Debs, list[str]]:
    """Fetch the packages; with `relock`, those of a new lock if the mirror has dropped some."""
    try:
        return inputs, fetch_debs(inputs, cache, step), []
    except PackagesGoneError as gone:
        if not options.relock:
            raise
        folder = options.out / relock.FOLDER
        with step("new locks"):
            notes = [str(gone), *relock.lock_again(board_path, folder, host_mirror(), cache, options.system)]
        inputs = options.gather(board_path, folder)
        return inputs, fetch_debs(inputs, cache, step), notes


def hand_over(work: Path, out: Path, names: list[str]) -> None:
    """Move the outputs from the working folder to their places, the record last: without a record, a mixture of old and
    new files does not count as a build, and anyone who reads it is told to build again."""
    (out / RELEASE).unlink(missing_ok=True)
    for name in [*names, RELEASE]:
        (work / name).replace(out / name)


@contextmanager
def workshop(out: Path) -> Iterator[Path]:
    """Provide a working folder inside `out` for one build at a time; folders left by dead builds are removed.

    Raises CapacityError if the disk is full. Errors name files as they will be called in `out`, because the working
    folder is gone by the time anyone reads the message.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for dead in out.glob(".build-*"):
            shutil.rmtree(dead, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=out) as work:
            try:
                yield Path(work)
            except ErofsEdgeError as error:
                if error.where is not None and error.where.startswith(work):
                    error.where = f"{out}{error.where[len(work) :]}"
                raise
            except OSError as error:
                if error.errno not in NO_SPACE or not str(error.filename or work).startswith(work):
                    raise
                raise CapacityError("no space left for the build", where=str(out)) from error
