# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge flash`: make a disk, a file or a board hold a built system, write only what differs, and prove it."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.built import BoardOrPath, built, said
from erofs_edge.cli.flash_channel import from_channel, older_image
from erofs_edge.cli.flash_qemu import SCHEME, check, reached
from erofs_edge.cli.flash_show import device_text, note_table, show_plan, show_results
from erofs_edge.cli.flash_signed import signatures
from erofs_edge.cli.output import json_option, note, step
from erofs_edge.errors import SourceError, UsageError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from erofs_edge.flash.prepare import Prepared, Wish
    from erofs_edge.flash.target import Identity
    from erofs_edge.flash.targets import Candidate

DISK = "disk.img"
BOARD_FILES = {".yaml", ".yml"}
EXCLUDING = (
    ("plan", "verify_only"), ("plan", "repair"), ("verify_only", "repair"), ("repair", "whole"), ("repair", "full"),
    ("whole", "slot"), ("resume", "whole"), ("resume", "full"), ("verify_only", "whole"), ("verify_only", "full"),
    ("verify_only", "resume"), ("verify_only", "no_verify"), ("from", "whole"), ("from", "full"),
)  # fmt: skip


@click.command()
@click.argument("what", metavar="BOARD|OUTDIR|IMAGE", required=False, type=BoardOrPath(exists=True, path_type=Path))
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="Write this disk image instead of a build's.")  # fmt: skip
@click.option("--to", "to", required=True, metavar="TARGET", help="A block device, a file, or an address (see above).")
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="The folder in which BOARD was built.  [default: out/BOARD]")  # fmt: skip
@click.option("--disk", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="With --to qemu:…, the emulated board's disk.")  # fmt: skip
@click.option("--plan", "plan_only", is_flag=True, help="Show what would be written where; change nothing.")
@click.option("--verify-only", is_flag=True, help="Compare the target with the image; change nothing.")
@click.option("--repair", is_flag=True, help="Rewrite only the wrong blocks of each slot that holds this image.")
@click.option("--slot", metavar="SLOT", help="Write this slot.  [default: the one the device needs least]")
@click.option(
    "--from",
    "old",
    metavar="OLD|URL",
    help="An older IMAGE or OUTDIR that another slot may hold; or the channel to install from.",
)
@click.option("--channel-root", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="The channel's first root, needed on the first visit.")  # fmt: skip
@click.option("--sigstore", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="POLICY",
              help="Require Sigstore bundles that POLICY accepts (`keys sigstore`), also on later visits.")  # fmt: skip
@click.option(
    "--whole", is_flag=True, help="Treat the target as blank: write the partition table and all slots, empty the data."
)
@click.option("--full", is_flag=True, help="Write every block, whatever the target holds.")
@click.option("--key", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="PUB",
              help="Refuse an image that is not signed by this public key or certificate.")  # fmt: skip
@click.option("--allow-unsigned", is_flag=True,
              help="On a development board, write an image that is not signed, or not by its build's key.")  # fmt: skip
@click.option("--serial", metavar="NUMBER", help="Refuse a device with another serial number.")
@click.option("--yes", is_flag=True, help="Do not ask before a device is overwritten.")
@click.option("--resume", is_flag=True, help="On a whole disk too, read first and keep blocks that are already right.")
@click.option("--no-verify", is_flag=True, help="Do not read back and compare what was written.")
@json_option
def flash(
    *,
    what: Path | None,
    image: Path | None,
    to: str,
    out: Path | None,
    disk: Path | None,
    plan_only: bool,
    verify_only: bool,
    repair: bool,
    slot: str | None,
    old: str | None,
    channel_root: Path | None,
    sigstore: Path | None,
    whole: bool,
    full: bool,
    key: Path | None,
    allow_unsigned: bool,
    serial: str | None,
    yes: bool,
    resume: bool,
    no_verify: bool,
    as_json: bool,
) -> None:
    """Write a built board to a target and verify the result.

    A disk that already has the board's partitions keeps them: only blocks that differ are written, to a slot that the
    device does not need, and that slot becomes the next to start once it is verified. Any other disk is written whole.

    TARGET is a block device, a file, or an address: nbd://HOST/EXPORT, provision://HOST, fastboot://HOST,
    fastboot+usb://, serial://…, or qemu:nbd for a board in QEMU (docs/flash.md has them all). Disks that are mounted
    or in use are refused. A new file gets its name only when it is complete.

    \b
    Examples:
      erofs-edge flash qemu-aarch64 --to /dev/sdX --plan
      erofs-edge flash qemu-aarch64 --to /dev/sdX
      erofs-edge flash --from https://updates.example/channel --to provision://HOST
    """
    what, image, old = _to_write(what, image, old, to, channel_root, sigstore)
    given = {"whole": whole, "full": full, "resume": resume, "slot": bool(slot), "from": bool(old)}
    _refuse_pairs(**given, plan=plan_only, verify_only=verify_only, repair=repair, no_verify=no_verify)
    check(to, what, disk)
    image = _no_pipe(image or _image(what or Path(), out))
    looking = plan_only or verify_only
    baseline = _image(older_image(old), None) if old is not None else None
    with _signed(what, image, key, to, looking=looking, allowed=allow_unsigned) as signed, ExitStack() as stack:
        from erofs_edge.flash.guard import refuse_other  # while another process looks at the signatures
        from erofs_edge.flash.prepare import Wish
        from erofs_edge.flash.targets import find_target

        wish = Wish(slot, whole, full, resume, baseline)
        address = stack.enter_context(reached(to, what, out, disk, image, looking=looking))
        candidate = stack.enter_context(find_target(address, image))
        refuse_other(candidate.identity, serial, _products(what, image))
        if looking:
            _look(candidate, image, wish, verify_only=verify_only, as_json=as_json)
            return
        ask = not yes and disk is None
        _write(candidate, image, wish, signed, repair=repair, ask=ask, verify=not no_verify, as_json=as_json)


def _to_write(
    what: Path | None, image: Path | None, old: str | None, to: str, root: Path | None, sigstore: Path | None
) -> tuple[Path | None, Path | None, str | None]:
    """Board or build, image, and what --from names if it is no channel. Raises UsageError unless there is one thing to
    write."""
    if old is not None and "://" in old and image is None:
        image, old = from_channel(old, root, sigstore, what, to), None
        what = what if to.startswith(SCHEME) else None
    elif sigstore is not None:
        raise UsageError(
            "--sigstore needs --from URL",
            hint="to check a folder: erofs-edge verify OUT --key PUB --sigstore POLICY",
        )
    elif root is not None:
        raise UsageError("--channel-root needs --from URL", hint="add --from URL, the address of the channel")
    if (what is None) == (image is None) and not (what and to.startswith(SCHEME)):
        raise UsageError(
            "what to write? Give exactly one of BOARD, OUTDIR, IMAGE and --image FILE",
            hint=f"erofs-edge flash BOARD --to {to}",
        )
    return what, image, old


def _refuse_pairs(**chosen: bool) -> None:
    for one, other in EXCLUDING:
        if chosen[one] and chosen[other]:
            names = [f"--{name.replace('_', '-')}" for name in (one, other)]
            raise UsageError(f"{names[0]} and {names[1]} cannot be combined", hint="leave one of them out")


def _refuse_unsigned(image: Path, key: Path) -> None:
    """Raises VerificationError where the key does not vouch for all of the image."""
    from erofs_edge.trust.key import read_public_key
    from erofs_edge.verify.path import verify_path

    with step("Verifying the image's signatures"):
        verdict = verify_path(image, read_public_key(key))
        if not verdict.ok:
            first = verdict.failed[0] if verdict.failed else None
            raise VerificationError(
                f"not flashed: {first.what}: {first.error}" if first else "not flashed: nothing in it is signed",
                where=str(image),
                hint=first.hint if first else None,
            )


@contextmanager
def _signed(
    what: Path | None, image: Path, key: Path | None, to: str, *, looking: bool, allowed: bool
) -> Iterator[Callable[[], None]]:
    """Yield what waits until the image's signatures are found to be right. They are checked before the block if a key
    is given, or the target should not be reached or started in vain. Without a key, nothing is checked if `looking`:
    then nothing is written either."""
    if key is not None:
        _refuse_unsigned(image, key)
    if key is not None or looking:
        yield _nothing
        return
    far = to.startswith(SCHEME) or ("://" in to and not to.startswith("nbd"))  # an export waits without a loss
    with signatures(what, image, allowed=allowed) as signed:
        if far:
            signed()
        yield _nothing if far else signed


def _nothing() -> None:
    """Where no signature is waited for."""


def _look(candidate: Candidate, image: Path, wish: Wish, *, verify_only: bool, as_json: bool) -> None:
    """--plan and --verify-only: nothing is touched."""
    from erofs_edge.flash.estimate import estimate
    from erofs_edge.flash.plan import plan_flash
    from erofs_edge.flash.prepare import Prepared, prepare, prepare_check, refuse_differences

    identity = candidate.identity
    if not identity.size:
        if verify_only:
            raise SourceError("nothing to compare: the target is empty or does not exist", where=identity.path)
        show_plan(Prepared(plan_flash(image, identity), None), identity, None, as_json=as_json)
        return
    target = candidate.open(identity.size)
    try:
        if verify_only:
            prepared = prepare_check(image, target, wish.slot, step)
            note_table(prepared.plan.mend)
            refuse_differences(prepared, target)
            _refuse_cut(identity, image)
            note(f"{identity.path} holds exactly {image}")
        else:
            prepared = prepare(image, target, wish, step)
            note_table(prepared.plan.mend)
        show_plan(prepared, identity, estimate(prepared, target), as_json=as_json)
    finally:
        target.close()


def _refuse_cut(identity: Identity, image: Path) -> None:
    """What is behind the end of a file reads as zeros, and so does the end of many an image: not the same yet.

    Raises VerificationError.
    """
    size = image.stat().st_size
    if identity.kind == "file" and identity.size < size:
        raise VerificationError(
            f"the file has {identity.size} bytes, the image {size}: the zeros at its end are missing",
            where=identity.path,
            hint="run the same command without --verify-only to add them",
        )


def _write(
    candidate: Candidate,
    image: Path,
    wish: Wish,
    signed: Callable[[], None],
    *,
    repair: bool,
    ask: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """`signed` is called before anything is written, if only the size of a file."""
    from erofs_edge.flash.execute import flash as execute  # a comparison leaves nothing in the processor's cache
    from erofs_edge.flash.guarded import RESUME_HINT
    from erofs_edge.flash.prepare import prepare, prepare_repair

    identity = candidate.identity
    started, begun = time.monotonic(), False
    if identity.size < image.stat().st_size:
        signed()
        signed = _nothing
    target = candidate.open(max(identity.size, image.stat().st_size))
    try:
        target.claim()
        todo = prepare_repair(image, target, wish.slot, step) if repair else [prepare(image, target, wish, step)]
        signed()
        note_table(todo[-1].plan.mend)
        unfinished = todo[0].state.under_way if todo[0].state is not None else None
        if unfinished is not None:
            note(f"slot {unfinished.slot.lower()} was left half written: blocks that are already right are kept")
        if identity.kind != "file" and ask and not all(prepared.nothing_to_do for prepared in todo):
            _confirm(identity, todo)
        begun = identity.size > 0  # a new file has no name before its end
        results = [
            result
            for each in todo
            for result in execute(each.plan, target, step, verify=verify, found=each.found, known=each.known)
        ]
        on_wire = target.bytes_on_wire
    except (KeyboardInterrupt, SystemExit):  # the latter is a signal, see `_terminated`
        if begun:
            note(f"interrupted: the target is incomplete; {RESUME_HINT}")
        raise
    finally:
        target.close()
    seconds = time.monotonic() - started
    note(f"Finished. Total time: {seconds:.3f}s")
    show_results(todo, identity, results, seconds, on_wire, as_json=as_json)


def _image(what: Path, out: Path | None) -> Path:
    """The disk image that BOARD, OUTDIR or IMAGE means."""
    if out is not None and what.suffix not in BOARD_FILES:
        raise UsageError("-o is the folder in which BOARD was built: there is no board here", hint="leave it out")
    if what.is_dir():
        image, hint = what / DISK, None
    elif what.suffix in BOARD_FILES:
        image = built(what, out)[1] / DISK
        hint = f"erofs-edge build {said(what)}" + (f" -o {out}" if out else "")
    else:
        return what
    if not image.exists():
        raise SourceError("no disk image here", where=str(image), hint=hint or "erofs-edge build BOARD")
    return image


def _no_pipe(image: Path) -> Path:
    if image.is_fifo():
        raise UsageError("a pipe, not an image", where=str(image), hint="save its output to a file first")
    return image


def _products(what: Path | None, image: Path) -> list[str]:
    """What the board of an image answers: from its file, or from the record of the build; [] where nothing says."""
    if what is not None and what.suffix in BOARD_FILES:
        from erofs_edge.manifest.load import load_board

        return load_board(what).value.product
    if image.name != DISK:
        return []
    from erofs_edge.build.record import RELEASE, read_release

    if not (image.parent / RELEASE).is_file():
        return []
    named = read_release(image.parent).get("product", [])
    return [str(name) for name in named] if isinstance(named, list) else []


def _confirm(identity: Identity, todo: list[Prepared]) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"{identity.path} would be overwritten", hint="add --yes to overwrite it without being asked")
    updates = [prepared.plan.update for prepared in todo if prepared.plan.update is not None]
    lost = f"slot {updates[0].slot.lower()} will be overwritten" if updates else "everything on it will be lost"
    if not updates and all(prepared.state is not None for prepared in todo):
        lost = "blocks that are wrong will be overwritten"
    note(f"{device_text(identity)}: {lost}")
    click.confirm("Continue?", abort=True, err=True)
