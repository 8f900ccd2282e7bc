# SPDX-License-Identifier: Apache-2.0
"""The command line: a registry of verbs, loaded on use, and the one place that turns errors into text and exit codes.

A verb is a click command or group in its own module of the same name. A command sets the exit code by returning an
int; every failure is raised as an `ErofsEdgeError`. Only click is imported here, so that ``--help`` stays fast.
"""

from __future__ import annotations

import atexit
import errno
import functools
import gc
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import click

from erofs_edge import __version__
from erofs_edge.cli.light import load_dataclasses, load_pathlib
from erofs_edge.cli.output import emit_error
from erofs_edge.cli.signals import signal_behind, unwind_on_ctrl_c, unwind_when_terminated
from erofs_edge.errors import ErofsEdgeError, UsageError

# file trees are many long-lived objects: searching them for garbage costs more than it frees
GC_THRESHOLD = (1_000_000, 20, 100)
# how long a thread returning from C waits for one that computes; with Python's 5 ms, codec throughput is a fifth lower
SWITCH_SECONDS = 0.0005

WITHOUT_DATACLASSES = {"flash", "verity"}
"""verbs that mostly do without dataclasses, or load them themselves"""
POSIX_ONLY = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}
"""modules of Python that Windows lacks"""
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Build": {
        "new": ("erofs_edge.cli.new", "Create a product of your own from a stock board."),
        "lock": ("erofs_edge.cli.lock", "Pin every input of a board or manifest in its lock file."),
        "build": ("erofs_edge.cli.build", "Build a board: its images and the disk image that holds them."),
        "explain": ("erofs_edge.cli.explain", "Print a board or manifest with every value and its origin."),
        "schema": ("erofs_edge.cli.schema", "Print the JSON Schema of boards, manifests or locks."),
        "system": ("erofs_edge.cli.system", "Run or compare the maintainer scripts of a manifest's packages."),
    },
    "Boot and flash": {
        "boot": ("erofs_edge.cli.boot", "Boot a built board in QEMU; --smoke tests the whole boot chain."),
        "flash": ("erofs_edge.cli.flash", "Write a built board to a disk, file or device, and verify it."),
        "slots": ("erofs_edge.cli.slots", "Show or change which slot of a disk or device starts next."),
        "fastboot": ("erofs_edge.cli.fastboot", "Talk to a device in fastboot mode."),
        "provision": ("erofs_edge.cli.provision", "Make the system that lets a board be flashed over the network."),
        "installer": ("erofs_edge.cli.installer", "Make a USB stick that installs a build."),
    },
    "Network": {
        "serve": ("erofs_edge.cli.serve", "Serve a build's images over NBD (network block device)."),
        "diskless": ("erofs_edge.cli.diskless", "Make the boot image of a board whose system is on the network."),
        "trace": ("erofs_edge.cli.trace", "Show what was read of an image; turn it into a build profile."),
        "push": ("erofs_edge.cli.push", "Store an image or a build in an OCI registry."),
        "pull": ("erofs_edge.cli.pull", "Fetch an image or a build from an OCI registry."),
    },
    "Release and update": {
        "release": ("erofs_edge.cli.release", "Build a board with all that is needed to verify and rebuild it."),
        "rebuild": ("erofs_edge.cli.rebuild", "Rebuild a release from its pinned inputs and compare every file."),
        "bundle": ("erofs_edge.cli.bundle", "Package a build as an update for RAUC or systemd-sysupdate."),
        "channel": ("erofs_edge.cli.channel", "Publish releases with TUF metadata, for flash --from URL."),
        "forecast": ("erofs_edge.cli.forecast", "Estimate what an update costs devices with an older release."),
    },
    "Inspect": {
        "diff": ("erofs_edge.cli.diff", "Explain how two builds, disks, images or files differ."),
        "report": ("erofs_edge.cli.report", "Write an HTML page about a build: contents, layout, packages."),
        "files": ("erofs_edge.cli.files", "Show what put a file into a system, and why it is there."),
        "sbom": ("erofs_edge.cli.sbom", "Write bills of materials; list known vulnerabilities."),
    },
    "Images and signatures": {
        "fs": ("erofs_edge.cli.fs", "Build, list, read, extract, check and dump EROFS images."),
        "verity": ("erofs_edge.cli.verity", "Make, verify and repair dm-verity hash trees and parity."),
        "verify": ("erofs_edge.cli.verify", "Verify a build, disk or image against a public key."),
        "avb": ("erofs_edge.cli.avb", "Make and show Android Verified Boot 2 vbmeta and footers."),
        "keys": ("erofs_edge.cli.keys", "Make, list, show and rotate signing keys."),
        "sign": ("erofs_edge.cli.sign", "Sign root hashes and release records, online or offline."),
    },
    "This machine": {
        "doctor": ("erofs_edge.cli.doctor", "Check what this machine has and lacks, and how to fix it."),
        "tools": ("erofs_edge.cli.tools", "Install QEMU and the reference tools in a private prefix."),
        "completion": ("erofs_edge.cli.completion", "Print the completion script for bash, zsh or fish."),
    },
}
"""section of ``--help`` → verb → (module, its line in ``--help``), in the order of ``--help``"""
VERBS: dict[str, tuple[str, str]] = {verb: entry for verbs in GROUPS.values() for verb, entry in verbs.items()}
"""verb → (module, its line in ``--help``), in the same order"""


class Verbs(click.Group):
    """The root command: knows the verbs without importing them, and reports every failure as one clear message."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        load_pathlib()  # nearly all verbs take paths and use dataclasses
        if cmd_name not in WITHOUT_DATACLASSES:
            load_dataclasses()
        command = getattr(importlib.import_module(VERBS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101  each module in VERBS defines a command
        unwind_on_ctrl_c()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, VERBS))
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(verb.ljust(width), line) for verb, (_, line) in verbs.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            raise click.UsageError(f"No such command '{args[0]}'{_suggest(args[0])}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            raise click.Abort from None
        except Exception as error:
            if (cause := signal_behind(error)) is not None:
                raise (click.Abort if isinstance(cause, KeyboardInterrupt) else cause) from None
            if isinstance(error, OSError) and (error.errno == errno.EPIPE or _is_printing(error)):
                raise
            if os.environ.get("EROFS_EDGE_DEBUG") == "1":
                raise
            known = error if isinstance(error, ErofsEdgeError) else _unexpected(error)
            known.hint = known.hint or _next_step(known, error)
            emit_error(known)
            raise click.exceptions.Exit(known.exit_code) from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        run: Callable[[], Any] = functools.partial(
            super().main, args, prog_name, complete_var, standalone_mode=False, **extra
        )
        if not standalone_mode:
            return run()
        try:
            result = run()
        except click.Abort:
            click.echo("erofs-edge: interrupted", err=True)
            sys.exit(130)
        except click.ClickException as error:
            result = _usage(error)
        except OSError as error:  # verbs have handled their own errors: this is output that could not be written
            if os.environ.get("EROFS_EDGE_DEBUG") == "1":
                raise
            result = _unwritten(error)
        _close_stdout()
        sys.exit(result if isinstance(result, int) else 0)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="erofs-edge")
def cli() -> None:
    """Build verified, signed, reproducible EROFS systems for ARM boards, then boot, flash and update them.

    A board file names every input of a build, and the same inputs always give the same bytes.

    \b
    First steps:
      erofs-edge doctor                       check this machine
      erofs-edge build qemu-aarch64           build a stock board into out/qemu-aarch64
      erofs-edge boot qemu-aarch64 --smoke    boot it in QEMU and test the whole chain
    """


def main() -> None:
    """Entry point of the console script; ends the process."""
    _open_streams()
    unwind_when_terminated()
    gc.set_threshold(*GC_THRESHOLD)
    sys.setswitchinterval(SWITCH_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="surrogateescape")  # file names are bytes: print them unchanged
    try:
        cli.main(prog_name="erofs-edge")
    except SystemExit as end:
        _leave(end.code)
        raise
    finally:
        gc.freeze()  # the process is about to end: skip searching hundreds of thousands of objects for garbage


def _open_streams() -> None:
    """Open the null device in place of standard streams that the caller closed, so that no file of ours gets their
    numbers. Output to a closed stdout is then an error, as with the usual tools; what goes to a closed stderr is
    lost."""
    for name, flags, mode in (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, flags)  # gets the lowest free number
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _leave(code: object) -> None:
    """End the process without destroying hundreds of thousands of objects one by one, if that has no visible effect: no
    other thread is running, and there is no message to print."""
    if not isinstance(code, int) or threading.active_count() > 1:
        return
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):  # the reader has gone, or the stream was closed
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF)


def _suggest(word: str, known: Iterable[str] = VERBS) -> str:
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f', did you mean "{close[0]}"?' if close else ""


def _usage(error: click.ClickException) -> int:
    """Report incorrect usage like other errors, and point to the relevant help."""
    hint, close = None, ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"{error.ctx.command_path} --help"
        group = error.ctx.command
        known = getattr(error, "possibilities", None)  # click does not know commands that are loaded on use
        if isinstance(group, click.Group) and error.message.startswith("No such command '") and not known:
            close = _suggest(error.message.split("'")[1], group.list_commands(error.ctx))
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    message = " ".join(error.format_message().split())  # click lists choices one per line
    kind = UsageError if error.exit_code == UsageError.exit_code else ErofsEdgeError
    known = kind(message.replace(" ,", ",").rstrip(".") + close, hint=hint)
    context = error.ctx if isinstance(error, click.UsageError) else None
    with nullcontext() if context is None else context.scope(cleanup=False):  # the context knows about --json
        emit_error(known)
    return error.exit_code


def _next_step(known: ErofsEdgeError, error: BaseException) -> str | None:
    """Return the hint for an error of the operating system."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(cause, OSError):
        return None
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space, then run the command again"
    if cause.errno == errno.ENOENT and _is_nowhere():
        return (
            "cd to a folder that exists"
            if known.where is None
            else "the current folder no longer exists: cd to another"
        )
    folder = os.path.dirname(known.where or "")
    if cause.errno == errno.ENOENT and "cannot write" in known.message and folder and not os.path.isdir(folder):
        return f"the folder does not exist: mkdir -p {folder}"
    return None


def _is_printing(error: BaseException) -> bool:
    """Whether writing the verb's printed output failed, rather than writing a file."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_code is click.echo.__code__


def _unexpected(error: Exception) -> ErofsEdgeError:
    """Report an unforeseen error in one line, and say how to see the rest."""
    if isinstance(error, OSError):
        named = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
        where, said = _meant(named), error.strerror or str(error)
        if where is None and error.errno == errno.ENOENT and _is_nowhere():
            said = "the current folder no longer exists"
        return ErofsEdgeError(said if where == named else f"cannot write: {said}", where=where)
    if isinstance(error, ModuleNotFoundError) and error.name in POSIX_ONLY:
        return ErofsEdgeError(
            "this needs a POSIX system, such as Linux", hint="on Windows, use the Windows Subsystem for Linux"
        )
    text = " ".join(str(error).split())
    return ErofsEdgeError(
        f"internal error: {type(error).__name__}{': ' if text else ''}{text}",
        hint="this is a bug: please report it with the output of the same command under EROFS_EDGE_DEBUG=1",
    )


def _is_nowhere() -> bool:
    """Whether the working directory has been deleted, so that relative paths lead nowhere."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _meant(path: str | None) -> str | None:
    """Return the final name of a file that is written under a temporary one."""
    from erofs_edge.writing import HIDDEN

    folder, name = os.path.split(path or "")
    found, temporary, _ = name.rpartition(HIDDEN)
    if not temporary:
        found, temporary, _ = name.rpartition(f".{os.getpid()}")
    return os.path.join(folder, found[1:]) if temporary and found.startswith(".") else path


def _close_stdout() -> None:
    """Flush now, so that a reader who left early (``| head``) causes no traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        sys.exit(_unwritten(error))


def _unwritten(error: OSError) -> int:
    """Return the exit code for standard output that cannot be written. A reader that has gone is not reported."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        return 1
    problem = ErofsEdgeError(f"cannot write the output: {error.strerror}")
    emit_error(problem)
    return problem.exit_code


if __name__ == "__main__":
    main()
