# SPDX-License-Identifier: Apache-2.0
"""SELinux labels from a file_contexts file, by the rules of selabel_file(5).

A line is `REGEX [TYPE] CONTEXT`. libselinux puts the expression between ^ and $, so an alternative outside of a group
is anchored on one side only. Of the lines that match, one without wildcards wins, else the last. TYPE (-b -c -d -p -l
-s, `--` for regular files) restricts a line to a kind of file; the context `<<none>>` means no label.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import NamedTuple

from erofs_edge.errors import SourceError
from erofs_edge.sources.regex import compile_regex
from erofs_edge.sources.rewrite import first_names
from erofs_edge.tree import FileTree

SELINUX = b"security.selinux"
NONE = "<<none>>"
KINDS = {
    "-b": stat.S_IFBLK,
    "-c": stat.S_IFCHR,
    "-d": stat.S_IFDIR,
    "-p": stat.S_IFIFO,
    "-l": stat.S_IFLNK,
    "-s": stat.S_IFSOCK,
    "--": stat.S_IFREG,
}
_QUOTED = re.compile(r"\\.|\[\^?\]?[^\]]*\]", re.S)
_META = ".^$?*+|[({"
_COUNTS = "?*{"  # after these the preceding character is optional


class _Rule(NamedTuple):
    """`rank` orders matching rules: the highest wins. kind 0: any."""

    rank: tuple[bool, int]
    kind: int
    pattern: re.Pattern[bytes] | None
    label: bytes | None


class FileContexts:
    """The rules of one file."""

    def __init__(self, text: str, where: str) -> None:
        """`where` names the file in errors. Raises SourceError with file:line for an invalid line."""
        self._rules: dict[bytes, list[_Rule]] = {}
        for number, line in enumerate(text.split("\n"), 1):
            words = line.split()
            if words and not words[0].startswith("#"):
                self._add(words, number, f"{where}:{number}")
        self._lengths = sorted({len(prefix) for prefix in self._rules})

    def label(self, path: bytes, mode: int) -> bytes | None:
        """The label of an absolute path and kind of file, without a trailing NUL; None for none."""
        best: _Rule | None = None
        kind = stat.S_IFMT(mode)
        for length in self._lengths:
            if length > len(path):
                break
            for rule in self._rules.get(path[:length], ()):
                if (
                    rule.kind in (0, kind)
                    and (best is None or rule.rank > best.rank)
                    and (rule.pattern.search(path) if rule.pattern else length == len(path))
                ):
                    best = rule
        return best.label if best else None

    def _add(self, words: list[str], number: int, where: str) -> None:
        if not 2 <= len(words) <= 3:
            raise SourceError(f"{len(words)} fields, a line has two or three", where=where, hint="REGEX [TYPE] CONTEXT")
        regex, context = words[0], words[-1]
        kind = 0
        if len(words) == 3:
            if words[1] not in KINDS:
                raise SourceError(f"unknown type of file {words[1]!r}", where=where, hint=f"one of {' '.join(KINDS)}")
            kind = KINDS[words[1]]
        try:
            prefix, literal = _literal_prefix(regex)
            pattern = None if literal else compile_regex(f"^{regex}$")
        except ValueError as error:
            raise SourceError(f"bad regular expression {regex!r}: {error}", where=where) from error
        label = None if context == NONE else context.encode("utf-8", "surrogateescape")
        rule = _Rule((literal, number), kind, pattern, label)
        self._rules.setdefault(prefix.encode("utf-8", "surrogateescape"), []).append(rule)


def _literal_prefix(regex: str) -> tuple[str, bool]:
    """(literal text that every match starts with, whether that is the whole expression)."""
    found: list[str] = []
    at = 0
    while at < len(regex):
        char = regex[at]
        if char in _META:
            if char in _COUNTS and found:
                found.pop()
            break
        if char == "\\":
            at += 1
            if at == len(regex):
                raise ValueError("a backslash with nothing behind it")
            if regex[at].isalnum():
                break
            char = regex[at]
        found.append(char)
        at += 1
    literal = at == len(regex)
    return ("" if not literal and _has_alternatives(regex) else "".join(found)), literal


def _has_alternatives(regex: str) -> bool:
    """Whether a '|' is outside of every group, so that a match need not begin like the expression."""
    depth = 0
    for char in _QUOTED.sub("", regex):
        depth += (char == "(") - (char == ")")
        if char == "|" and depth <= 0:
            return True
    return False


def read_file_contexts(path: Path) -> FileContexts:
    """Read a file. Raises SourceError if it cannot be read, or with file:line."""
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
    return FileContexts(text, str(path))


def apply_file_contexts(tree: FileTree, contexts: FileContexts, mount_point: str = "/") -> int:
    """Label every inode, replacing any labels that it had; hard links use their first name. Returns how many have
    one.
    """
    prefix = mount_point.strip("/").encode("utf-8", "surrogateescape")
    labelled = 0
    for path, inode in first_names(tree):
        full = (b"/" + prefix if prefix else b"") + path.rstrip(b"/") or b"/"
        inode.xattrs = {name: value for name, value in inode.xattrs.items() if name != SELINUX}
        label = contexts.label(full, inode.mode)
        if label is not None:
            inode.xattrs[SELINUX] = label
            labelled += 1
    return labelled
