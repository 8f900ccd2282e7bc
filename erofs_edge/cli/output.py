# SPDX-License-Identifier: Apache-2.0
"""How commands print: progress on a terminal, status lines, tables, JSON, errors.

Results go to stdout; progress, status lines and errors go to stderr. Progress appears on a terminal only.
Colour is used on a terminal unless NO_COLOR is set. Library code never prints: it calls ``progress(done,
total)``; a `Progress` can be passed for that.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import click

from erofs_edge.errors import ErofsEdgeError

Command = TypeVar("Command", bound=Callable[..., Any])

_JSON = "erofs_edge.json"
_REDRAW_SECONDS = 0.1
_STATUS_COLUMN = 50


class Progress:
    """One line on a terminal: label, bytes, rate, time left. Call it with (done, total) in bytes; total 0 means
    unknown.

    `unit` is "B" for bytes or a plural noun for other things ("packages").
    """

    def __init__(self, label: str, *, unit: str = "B", stream: IO[str] | None = None) -> None:
        self.label = label
        self.unit = unit
        self._stream = stream if stream is not None else sys.stderr
        self._live = _is_terminal(self._stream)
        self._start = time.monotonic()
        self._drawn_at = 0.0
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        if not self._live:
            return
        now = time.monotonic()
        if now - self._drawn_at < _REDRAW_SECONDS and done != total:
            return
        self._drawn_at = now
        self._drawn = True
        line = f"{self.label}  {progress_text(done, total, now - self._start, self.unit)}"
        self._stream.write("\r" + line[: _columns() - 1] + "\x1b[K")
        self._stream.flush()

    def close(self) -> None:
        """Remove the line."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextmanager
def step(label: str, *, unit: str = "B") -> Iterator[Progress]:
    """Run one stage under a `Progress` and finish with a status line: OKAY or FAILED, and the seconds it took."""
    start = time.monotonic()
    progress = Progress(label, unit=unit)
    try:
        yield progress
    except BaseException:
        progress.close()
        status(label, ok=False, seconds=time.monotonic() - start)
        raise
    progress.close()
    status(label, ok=True, seconds=time.monotonic() - start)


def status(label: str, *, ok: bool, seconds: float) -> None:
    """Print ``label ……  OKAY [  0.123s]`` on stderr."""
    word = _styled("OKAY", "green") if ok else _styled("FAILED", "red")
    click.echo(f"{printable(label):<{_STATUS_COLUMN}} {word} [{seconds:7.3f}s]", err=True)


def note(text: str) -> None:
    """Print a line for the user on stderr."""
    click.echo(printable(text), err=True)


def table(rows: Iterable[Sequence[object]], header: Sequence[str] | None = None) -> None:
    """Print rows in aligned columns on stdout; columns of numbers are right-aligned."""
    click.echo("\n".join(table_lines(rows, header)))


def table_lines(rows: Iterable[Sequence[object]], header: Sequence[str] | None = None) -> list[str]:
    """Return the lines that `table` prints. None is an empty cell."""
    body = list(rows)
    cells = [["" if cell is None else one_line(str(cell)) for cell in row] for row in body]
    if header is not None:
        cells.insert(0, list(header))
    count = max((len(row) for row in cells), default=0)
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(count)]
    right = [bool(body) and all(isinstance(row[i], int | float) for row in body if i < len(row)) for i in range(count)]
    return [
        "  ".join(c.rjust(widths[i]) if right[i] else c.ljust(widths[i]) for i, c in enumerate(row)).rstrip()
        for row in cells
    ]


def json_option(command: Command) -> Command:
    """Add ``--json`` (parameter `as_json`). With it, an error is a JSON record on stdout too."""

    def remember(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
        ctx.meta[_JSON] = value
        return value

    return click.option(
        "--json", "as_json", is_flag=True, is_eager=True, callback=remember, help="Print the result as JSON on stdout."
    )(command)


def emit_json(value: object) -> None:
    """Print a value as JSON on stdout: bytes as hex, paths as text, structs and dataclasses as objects."""
    import json

    ctx = click.get_current_context(silent=True)
    if ctx is not None:
        ctx.meta[_JSON] = False  # one record per run: a later error is reported on stderr only
    # ASCII, so that names that are not UTF-8 stay JSON (as \udcXX)
    click.echo(json.dumps(value, indent=2, default=_plain))


def emit_error(error: ErofsEdgeError) -> None:
    """Print an error on stderr, with its hint; with ``--json`` also as a record on stdout."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None and _wants_json(ctx):
        record = {
            "kind": type(error).__name__,
            "message": error.message,
            "where": error.where,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        emit_json({"error": record})
    click.echo(f"erofs-edge: {_styled('error:', 'red')} {printable(str(error))}", err=True)
    if error.hint:
        click.echo(f"{_styled('hint:', 'cyan')} {printable(error.hint)}", err=True)


def _wants_json(ctx: click.Context) -> bool:
    if (known := ctx.meta.get(_JSON)) is not None:
        return bool(known)
    # a mistake in the options has stopped the parser before it has come to --json
    return "--json" in sys.argv and any(option.name == "as_json" for option in ctx.command.params)


def size_text(size: int) -> str:
    """Format bytes for people, with powers of 1024 as in manifests: ``512 B``, ``64.0 KiB``, ``1.21 GiB``."""
    if abs(size) < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if abs(value) < 999.5 or unit == "TiB":
            break
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def progress_text(done: int, total: int, seconds: float, unit: str = "B") -> str:
    """Format ``12.0 MiB of 64.0 MiB (19 %), 6.00 MiB/s, 0:09 left``."""
    count: Callable[[int], str] = size_text if unit == "B" else str
    name = "" if unit == "B" else f" {unit}"
    text = f"{count(done)} of {count(total)}{name} ({100 * done // total} %)" if total else f"{count(done)}{name}"
    if seconds < 1 or not done:
        return text
    rate = done / seconds
    text += f", {count(int(rate))}/s"
    if total > done:
        left = int((total - done) / rate)
        text += f", {left // 60}:{left % 60:02d} left"
    return text


def printable(text: str) -> str:
    """Escape control characters, so that no file name can control a terminal, and what cannot be printed."""
    return "".join(_escaped(char) if char != "\n" and _is_special(char) else char for char in text)


def one_line(text: str) -> str:
    """Escape control characters and line ends: for names that share a line with other text."""
    return printable(text).replace("\n", "\\n")


def _is_special(char: str) -> bool:
    """Whether this is a control character, or a surrogate that does not stand for a byte of a name."""
    return char < " " or "\x7f" <= char < "\xa0" or "\ud800" <= char < "\udc80" or "\udcff" < char < "\ue000"


def _escaped(char: str) -> str:
    return f"\\x{ord(char):02x}" if char < "\xa0" else f"\\u{ord(char):04x}"


def _styled(text: str, colour: str) -> str:
    return click.style(text, fg=colour) if _is_terminal(sys.stderr) and "NO_COLOR" not in os.environ else text


def _is_terminal(stream: IO[str]) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def _plain(value: object) -> object:
    """Convert what json cannot write by itself."""
    from pathlib import PurePath

    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    import dataclasses  # takes a millisecond to load: not needed for a path

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    names: tuple[str, ...] | None = getattr(value, "__struct_encode_fields__", None)
    if names is None:
        raise TypeError(f"cannot write {type(value).__name__} as JSON")
    return dict(zip(names, (getattr(value, field) for field in value.__struct_fields__), strict=True))  # type: ignore[attr-defined]
