# SPDX-License-Identifier: Apache-2.0
"""Where the passphrase of a key or the PIN of a token comes from; it is never an argument, nor in any output.

`env:NAME`, `fd:N` (read to the end, one trailing newline dropped) and `prompt`. By default:
EROFS_EDGE_PASSPHRASE, EROFS_EDGE_PASSPHRASE_FD, and then the terminal if there is one.
"""

from __future__ import annotations

import functools
import os
import sys

from erofs_edge.errors import ErofsEdgeError, UsageError

VARIABLE, VARIABLE_FD = "EROFS_EDGE_PASSPHRASE", "EROFS_EDGE_PASSPHRASE_FD"
LONGEST = 4096  # bytes read from a file descriptor
SOURCES = f"set {VARIABLE}, or {VARIABLE_FD} to a file descriptor that holds it"


def passphrase(source: str | None, what: str, *, confirm: bool = False) -> str:
    """Get the passphrase of `what` ('key.pem', 'token edge') from a source.

    `confirm` asks the user twice. Raises UsageError for an unknown kind of source, ErofsEdgeError if it supplies
    nothing.
    """
    if source is None:
        if VARIABLE in os.environ:
            source = f"env:{VARIABLE}"
        elif VARIABLE_FD in os.environ:
            source = f"fd:{os.environ[VARIABLE_FD]}"
        else:
            source = "prompt"
    kind, _, rest = source.partition(":")
    if kind == "env" and rest:
        if rest not in os.environ:
            raise ErofsEdgeError(f"{what} needs a passphrase, and the variable {rest} is not set")
        return os.environ[rest]
    if kind == "fd" and rest.isascii() and rest.isdigit():
        return _read(int(rest), what)
    if source == "prompt":
        return _ask(what, confirm)
    raise UsageError(f"unknown source of a passphrase: {source!r}", hint="use env:NAME, fd:NUMBER or prompt")


def _read(fd: int, what: str) -> str:
    """Everything that a file descriptor supplies."""
    try:
        return _all_of(fd)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ErofsEdgeError(f"cannot read the passphrase of {what} from file descriptor {fd}: {reason}") from None


@functools.cache
def _all_of(fd: int) -> str:
    """Remember what was read: a pipe can be read only once, but several keys may need it. Raises OSError,
    ValueError.
    """
    with os.fdopen(fd, "rb") as stream:
        return stream.read(LONGEST).decode().removesuffix("\n")


def _ask(what: str, confirm: bool) -> str:
    import getpass

    if not sys.stdin.isatty():
        raise ErofsEdgeError(
            f"{what} needs a passphrase, and there is no terminal to ask for it",
            hint=SOURCES,
        )
    answer = getpass.getpass(f"passphrase of {what}: ")
    if confirm and getpass.getpass("once more: ") != answer:
        raise ErofsEdgeError("the two passphrases differ")
    return answer
