# SPDX-License-Identifier: Apache-2.0
"""The manual of all verbs, generated from the commands themselves: a Markdown page and a man page.

The man page uses the man(7) macros of groff and mandoc: TH, SH, SS, TP, PP, nf, fi.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import click

from erofs_edge import __version__
from erofs_edge.cli.main import GROUPS, VERBS, cli

NAME = "erofs-edge"
ENVIRONMENT = (
    ("EROFS_EDGE_MIRROR", "The Debian mirror or archive to use instead of the host's."),
    ("EROFS_EDGE_CACHE", "The folder for downloads and for what is made from them."),
    ("EROFS_EDGE_PREFIX", "The folder where QEMU and the reference tools are installed."),
    ("EROFS_EDGE_QEMU", "The QEMU program to use."),
    ("EROFS_EDGE_KEYS", "The folder for development keys."),
    ("EROFS_EDGE_CHANNELS", "The folder for what is known about update channels."),
    ("EROFS_EDGE_PASSPHRASE", "The passphrase of an encrypted signing key."),
    ("EROFS_EDGE_PASSPHRASE_FD", "The file descriptor from which that passphrase is read."),
    ("EROFS_EDGE_PKCS11_MODULE", "The module (.so) for pkcs11: keys whose URI names none."),
    ("EROFS_EDGE_ALGORITHM", "The key's algorithm, which erofs-edge passes to the program of a command: key."),
    ("EROFS_EDGE_SCRIPT_TIMEOUT", "How many seconds maintainer scripts may take in their QEMU machine."),
    ("EROFS_EDGE_DEBUG", "If set to 1, errors show a traceback."),
    ("SOURCE_DATE_EPOCH", "The latest time, in seconds since 1970, that fs build and fs rafs give to files."),
    ("NO_COLOR", "If set, output has no colours."),
)
EXIT_CODES = (
    ("0", "Done."),
    ("1", "Failed."),
    ("2", "Usage error: the command line is wrong."),
    ("3", "A board, manifest or lock file is wrong."),
    ("4", "A hash or signature does not match."),
    ("5", "The things compared differ."),
    ("6", "A device is missing, or the connection to it was lost."),
    ("7", "A device refused the operation, or was refused as unsafe to write."),
    ("8", "A write was interrupted; run the same command again to resume it."),
    ("9", "A machine did not boot as expected."),
    ("129", "Hung up: the terminal was closed."),
    ("130", "Interrupted."),
    ("143", "Terminated."),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One command: its words, usage and description, and (option, meaning) for each option."""

    words: str
    usage: str
    paragraphs: list[str]
    options: list[tuple[str, str]]


def entries() -> Iterator[Entry]:
    """Return every command and group, in the order of ``--help``."""
    settings = {**cli.context_settings, "max_content_width": 1000}  # a command remembers from here that it has -h
    top = click.Context(cli, info_name=NAME, terminal_width=1000, **settings)
    for verb in VERBS:
        command = cli.get_command(top, verb)
        assert command is not None  # noqa: S101  VERBS names existing commands only
        yield from _entries(command, click.Context(command, info_name=verb, parent=top))


def _entries(command: click.Command, ctx: click.Context) -> Iterator[Entry]:
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    options = [record for one in command.get_params(ctx) if (record := one.get_help_record(ctx)) is not None]
    shown = [
        (" ".join(name.split()), " ".join(text.split())) for name, text in options if "--help" not in name and text
    ]
    yield Entry(ctx.command_path, usage, _paragraphs(command), shown)
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            if below is not None and not below.hidden:
                yield from _entries(below, click.Context(below, info_name=name, parent=ctx))


def _paragraphs(command: click.Command) -> list[str]:
    """Split a help text into paragraphs; one that begins with click's "do not wrap" mark keeps its lines."""
    text = inspect.cleandoc(command.help or "").partition("\f")[0]
    found = [part.strip("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]
    return [part[2:].strip("\n") + "\n" if part.startswith("\b\n") else " ".join(part.split()) for part in found]


def markdown() -> str:
    """Return the whole page docs/cli.md."""
    lines = [
        "# Commands\n",
        "Generated from the commands by `docs/generate.py`. `erofs-edge COMMAND --help` prints the same text,",
        "and so does the man page `man/erofs-edge.1`, which wheels install.",
        "See also the [exit codes](exit-codes.md) and the [environment variables](#environment-variables).",
    ]  # fmt: skip
    for title, verbs in GROUPS.items():
        lines += ["", f"**{title}**", "", "| command | what it does |", "|---|---|"]
        lines += [f"| [{verb}](#{NAME}-{verb}) | {line} |" for verb, (_, line) in verbs.items()]
    for entry in entries():
        depth = "#" * len(entry.words.split())
        lines += ["", f"{depth} {entry.words}", "", "```text", entry.usage, "```", ""]
        for part in entry.paragraphs:
            lines += [f"```text\n{part}```" if part.endswith("\n") else _literal(part), ""]
        if entry.options:
            lines += ["| option | meaning |", "|---|---|"]
            lines += [f"| `{_cell(name)}` | {_cell(_literal(text))} |" for name, text in entry.options]
    lines += ["", "## Environment variables", "", "| variable | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {_literal(text)} |" for name, text in ENVIRONMENT]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _literal(text: str) -> str:
    """Escape help text for Markdown: nothing in it is markup except its backquotes."""
    return re.sub(r"([\\<*_\[\]])", r"\\\1", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def roff() -> str:
    """Return the page erofs-edge(1)."""
    lines = [
        '.\\" Made from the commands by docs/generate.py',
        f'.TH EROFS-EDGE 1 "" "erofs-edge {__version__}" "User Commands"',
        ".SH NAME", "erofs-edge \\- verified, reproducible EROFS systems on ARM boards",
        ".SH SYNOPSIS", ".B erofs-edge", r"\fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]",
        ".SH DESCRIPTION", *_roff_paragraphs(_paragraphs(cli))[1:], ".SH COMMANDS",
    ]  # fmt: skip
    for entry in entries():
        lines += [f".SS {_roff(entry.words)}", ".nf", *(_roff(line) for line in [entry.usage]), ".fi"]
        lines += _roff_paragraphs(entry.paragraphs)
        for name, text in entry.options:
            lines += [".TP", rf"\fB{_roff(name)}\fR", *_wrapped(text)]
    for title, rows in (("EXIT STATUS", EXIT_CODES), ("ENVIRONMENT", ENVIRONMENT)):
        lines.append(f".SH {title}")
        for name, text in rows:
            lines += [".TP", rf"\fB{name}\fR", _roff(text)]
    return "\n".join(lines) + "\n"


def _roff_paragraphs(parts: list[str]) -> list[str]:
    found: list[str] = []
    for part in parts:
        kept = part.endswith("\n")
        found += [".PP", ".nf", *map(_roff, part.splitlines()), ".fi"] if kept else [".PP", *_wrapped(part)]
    return found


def _wrapped(text: str) -> list[str]:
    """Wrap text, to keep the source readable."""
    return [_roff(line) for line in textwrap.wrap(text, 72, break_long_words=False, break_on_hyphens=False)]


def _roff(text: str) -> str:
    """Escape a line of text so that nothing in it is a request or an escape (groff(7), Escapes)."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    text = "".join(char if ord(char) < 128 else f"\\[u{ord(char):04X}]" for char in text)
    return f"\\&{text}" if text[:1] in (".", "'") else text
