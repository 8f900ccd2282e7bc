# SPDX-License-Identifier: Apache-2.0
"""Parse YAML 1.2 into nodes that know their position in the file.

Supports what a configuration needs: mappings with text keys, sequences, scalars, anchors and aliases. Refused, each
with its position: tags, more than one document, duplicate keys, other YAML versions. Time and memory are bounded:
a file has at most `MAX_BYTES`, nesting at most `MAX_DEPTH`, and with aliases expanded at most `MAX_NODES` nodes,
which are counted without expanding them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from erofs_edge.errors import ManifestError

MAX_BYTES = 256 << 10
MAX_DEPTH = 50
MAX_NODES = 20_000

Event = Any  # an event of ruamel.yaml, whose classes do not declare their attributes

# YAML 1.2, 10.3.2: the core schema's plain scalars
_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_DECIMAL = re.compile(r"[-+]?[0-9]{1,999}", re.ASCII)
_OCTAL = re.compile(r"0o[0-7]{1,999}")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]{1,999}")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII
)
_NO_CHARACTER = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # from escape sequences; the rest are bytes of paths
_NOT_TEXT = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Mark:
    """A position in a file: `line` and `column` count from 1."""

    file: Path
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, eq=False)
class Scalar:
    """Text. If it is not quoted (`plain`), it may also mean a number, a boolean or null."""

    mark: Mark
    text: str
    plain: bool
    height = 0
    weight = 1

    @property
    def value(self) -> str | int | float | bool | None:
        """The value by YAML 1.2's core schema."""
        return core_value(self.text) if self.plain else self.text


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """Items in order."""

    mark: Mark
    items: list[Node]
    height: int = 0
    weight: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One `key: value` of a mapping; `mark` is the key's."""

    mark: Mark
    node: Node


@dataclass(frozen=True, slots=True, eq=False)
class Mapping:
    """Entries by key, in the order of the file."""

    mark: Mark
    entries: dict[str, Entry]
    height: int = 0
    weight: int = 1


Node = Scalar | Sequence | Mapping


def read_yaml(path: Path) -> Node:
    """Read the single document of a file. Raises ManifestError, with a position, for anything wrong with it."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"did you mean {path.with_name(near[0])}?" if near else None
        raise ManifestError("no such file", where=str(path), hint=hint) from None
    except IsADirectoryError:
        inside = sorted([*path.glob("*.yaml"), *path.glob("boards/*.yaml")])
        hint = f"did you mean {inside[0]}?" if inside else "erofs-edge new NAME makes a folder with a board file"
        raise ManifestError("this is a folder, not a board file or a manifest", where=str(path), hint=hint) from None
    except OSError as error:
        raise ManifestError(f"cannot read: {error.strerror}", where=str(path)) from None
    except ValueError:  # a path with a NUL character
        raise ManifestError("not a path", where=repr(str(path))) from None
    if len(data) > MAX_BYTES:
        raise ManifestError(f"larger than {MAX_BYTES >> 10} KiB: not a manifest", where=str(path))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise ManifestError(
            f"not UTF-8: byte 0x{data[error.start]:02x}", where=f"{path}:{line}:{column}", hint="save the file as UTF-8"
        ) from None
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> Node:
    """Parse the single document in `text`; positions name `path` as their file. Raises ManifestError."""
    if bad := _NOT_TEXT.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        column = bad.start() - text.rfind("\n", 0, bad.start())
        raise ManifestError(f"control character U+{ord(bad[0]):04X}", where=f"{path}:{line}:{column}")
    return _Composer(path).document(_events(text, path))


def shorten(text: str, length: int = 60) -> str:
    """Return the text, truncated if it is too long for a message."""
    return text if len(text) <= length else text[: length - 1] + "…"


def core_value(text: str) -> str | int | float | bool | None:
    """Return the value of a plain scalar by YAML 1.2's core schema."""
    value: str | int | float | bool | None = text
    if _DECIMAL.fullmatch(text):
        value = int(text)
    elif _OCTAL.fullmatch(text) or _HEXADECIMAL.fullmatch(text):
        value = int(text, 0)
    elif _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        value = text.lower() == "true"
    elif _NULL.fullmatch(text):
        value = None
    elif _FLOAT.fullmatch(text):
        value = float(text.replace(".", "", 1) if text[-1:].isalpha() else text)
    return value


def _events(text: str, path: Path) -> Iterator[Event]:
    """Yield the parser's events; its errors become ManifestErrors."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else str(path)
        problem = shorten(" ".join(str(error.problem or error.context or "syntax error").split()), 200)
        hint = None
        if "'\\t'" in problem or "tab" in problem:
            hint = "YAML indents with spaces, not with tabs"
        elif "mapping values are not allowed" in problem:
            hint = "quote a value that holds ': ', and check the indentation"
        raise ManifestError(f"not YAML: {problem}", where=where, hint=hint) from None
    except (YAMLError, ValueError, AssertionError, IndexError, AttributeError, TypeError, RecursionError) as error:
        # all exceptions that the parser raises for malformed input
        problem = shorten(" ".join(str(error).split()), 200) or type(error).__name__
        raise ManifestError(f"not YAML: {problem}", where=str(path)) from None


@dataclass(slots=True)
class _Open:
    """A mapping or sequence whose end has not been reached."""

    mark: Mark
    anchor: str | None
    items: list[Node] | None
    entries: dict[str, Entry] = field(default_factory=dict)
    key: Scalar | None = None


class _Composer:
    """Builds nodes from events, without recursion."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._anchors: dict[str, Node] = {}
        self._open: list[_Open] = []
        self._count = 0

    def document(self, events: Iterator[Event]) -> Node:
        """Return the root of the only document."""
        root: Node | None = None
        for event in events:
            kind = type(event).__name__
            self._count += 1
            if self._count > 2 * MAX_NODES:
                self._fail(event, f"more than {MAX_NODES} values: not a manifest")
            if kind == "DocumentStartEvent":
                if root is not None:
                    self._fail(event, "a second document; a file holds one")
                if event.version is not None and tuple(event.version) != (1, 2):
                    self._fail(event, "only YAML 1.2 is understood", hint="remove the %YAML line")
            elif kind in ("MappingStartEvent", "SequenceStartEvent"):
                self._refuse_tag(event)
                if len(self._open) >= MAX_DEPTH:
                    self._fail(event, f"nested deeper than {MAX_DEPTH} levels")
                items: list[Node] | None = [] if kind == "SequenceStartEvent" else None
                self._open.append(_Open(self._mark(event), event.anchor, items))
            else:
                node = self._node(kind, event)
                if node is not None and not self._open:
                    root = node
                elif node is not None:
                    self._put(node, event)
        if root is None or (isinstance(root, Scalar) and root.value is None):
            raise ManifestError("the file is empty", where=str(self._path))
        return root

    def _node(self, kind: str, event: Event) -> Node | None:
        """Return the node that an event completes, if any."""
        if kind == "AliasEvent":
            if event.anchor not in self._anchors:
                self._fail(event, f'no anchor "&{shorten(event.anchor)}" before this alias')
            return self._anchors[event.anchor]
        if kind == "ScalarEvent":
            self._refuse_tag(event)
            if bad := _NO_CHARACTER.search(event.value):
                hint = "leave it out" if bad[0] == "\0" else "write the character itself, not an escape sequence"
                self._fail(event, f"U+{ord(bad[0]):04X} cannot be part of a value", hint=hint)
            node: Node = Scalar(self._mark(event), event.value, event.style is None)
            anchor = event.anchor
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            opened = self._open.pop()
            anchor = opened.anchor
            node = self._close(opened)
        else:
            return None
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _close(self, opened: _Open) -> Node:
        children = opened.items if opened.items is not None else [entry.node for entry in opened.entries.values()]
        height = 1 + max((child.height for child in children), default=0)
        weight = 1 + sum(child.weight for child in children)
        if height > MAX_DEPTH:
            raise ManifestError(f"aliases nest deeper than {MAX_DEPTH} levels", where=str(opened.mark))
        if weight > MAX_NODES:
            raise ManifestError(f"aliases expand to more than {MAX_NODES} values", where=str(opened.mark))
        if opened.items is not None:
            return Sequence(opened.mark, opened.items, height, weight)
        return Mapping(opened.mark, opened.entries, height, weight)

    def _put(self, node: Node, event: Event) -> None:
        """Add a finished node to the collection that contains it."""
        parent = self._open[-1]
        if parent.items is not None:
            parent.items.append(node)
        elif parent.key is not None:
            if isinstance(node, Scalar) and node.plain and not node.text:
                node = Scalar(parent.key.mark, "", plain=True)  # an empty value has no useful position: use the key's
            parent.entries[parent.key.text] = Entry(parent.key.mark, node)
            parent.key = None
        elif not isinstance(node, Scalar) or not node.text:
            self._fail(event, "a key must be a word", where=node.mark)
        elif (earlier := parent.entries.get(node.text)) is not None:
            self._fail(event, f'key "{shorten(node.text)}" is already in line {earlier.mark.line}', where=node.mark)
        else:
            parent.key = node

    def _refuse_tag(self, event: Event) -> None:
        if event.ctag is not None:
            self._fail(
                event,
                f'tags such as "{shorten(str(event.ctag))}" are not understood',
                hint="quote the value to make it text",
            )

    def _mark(self, event: Event) -> Mark:
        return Mark(self._path, event.start_mark.line + 1, event.start_mark.column + 1)

    def _fail(self, event: Event, message: str, *, where: Mark | None = None, hint: str | None = None) -> NoReturn:
        raise ManifestError(message, where=str(where or self._mark(event)), hint=hint)
