# SPDX-License-Identifier: Apache-2.0
"""Directories of drop-in files: which files count, and how a line is split into fields.

Rules of sysusers.d(5) and tmpfiles.d(5): files are read in the order of their names, whatever directory they are in. Of
two files with the same name the one in /etc wins; if that is empty or a link to /dev/null, it removes the packaged one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from erofs_edge.errors import SourceError
from erofs_edge.tree import FileTree

PLACES = ("usr/lib", "usr/local/lib", "etc")
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "s": " "}


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is neither blank nor a comment; `where` is path:line inside the tree."""

    text: str
    where: str


def drop_in_files(tree: FileTree, directory: str, suffix: str) -> Iterator[tuple[str, str]]:
    """(path, text) of each file of `directory` (``tmpfiles.d``) that counts, in order."""
    found: dict[str, str] = {}
    for place in PLACES:
        folder = tree.get(f"{place}/{directory}", follow=True)
        for name in folder.children if folder is not None and folder.is_dir else ():
            text = os.fsdecode(name)
            if text.endswith(suffix):
                found[text] = f"{place}/{directory}/{text}"
    for _, path in sorted(found.items()):
        node = tree.get(path, follow=True)
        if node is not None and node.is_file:
            yield path, node.read().decode("utf-8", "surrogateescape")


def drop_in_lines(tree: FileTree, directory: str, suffix: str = ".conf") -> Iterator[Line]:
    """The lines of all files of a drop-in directory, in order."""
    for path, text in drop_in_files(tree, directory, suffix):
        for number, line in enumerate(text.splitlines(), 1):
            stripped = line.strip()
            if stripped and not stripped.startswith(("#", ";")):
                yield Line(stripped, f"/{path}:{number}")


def fields(line: Line, count: int) -> list[str]:
    """Split into `count` fields, with missing ones and "-" as "": quotes and C escapes are resolved.

    The last field takes the rest of the line unsplit, with its escapes resolved.
    Raises SourceError on an unclosed quote.
    """
    rest = line.text
    found: list[str] = []
    while len(found) < count - 1 and rest:
        word, rest = _word(rest, line)
        found.append(word)
    if rest:
        found.append(_unescape(rest) if not rest.startswith(('"', "'")) else _word(rest, line)[0])
    found += [""] * (count - len(found))
    return ["" if field == "-" else field for field in found]


def _word(text: str, line: Line) -> tuple[str, str]:
    """The first word of `text`, unquoted, and what follows it."""
    out, quote, at = [], "", 0
    while at < len(text):
        char = text[at]
        if char == "\\" and quote != "'" and at + 1 < len(text):
            piece, at = _escape(text, at)
            out.append(piece)
            continue
        if quote:
            quote, char = ("", "") if char == quote else (quote, char)
            out.append(char)
        elif char in "\"'":
            quote = char
        elif char.isspace():
            break
        else:
            out.append(char)
        at += 1
    if quote:
        raise SourceError("unclosed quote", where=line.where)
    return "".join(out), text[at:].lstrip()


def _escape(text: str, at: int) -> tuple[str, int]:
    """The text that the escape at `at` stands for, and where the escape ends."""
    char = text[at + 1]
    if char == "x" and len(text) >= at + 4:
        try:
            return chr(int(text[at + 2 : at + 4], 16)), at + 4
        except ValueError:
            pass
    return ESCAPES.get(char, char), at + 2


def _unescape(text: str) -> str:
    out, at = [], 0
    while at < len(text):
        if text[at] == "\\" and at + 1 < len(text):
            piece, at = _escape(text, at)
        else:
            piece, at = text[at], at + 1
        out.append(piece)
    return "".join(out)
