# SPDX-License-Identifier: Apache-2.0
"""Turn YAML nodes into the typed values of model.py; every error has a position and, where possible, a hint.

Walks msgspec's description of a type, so that the vocabulary is written in one place only: model.py.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from msgspec import inspect

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.model import size_bytes
from erofs_edge.manifest.nodes import Mapping, Mark, Node, Scalar, Sequence, shorten
from erofs_edge.manifest.stock import stock_file

HostPath = Callable[[str, Path], str]
"""resolves a path, given its text and the file that contains it"""


def decode(node: Node, struct: type, host_path: HostPath) -> Any:
    """Decode a node as a `struct` of model.py; host paths go through `host_path`. Raises ManifestError."""
    return _Decoder(host_path).value(node, describe(struct), "the file")


@functools.cache
def describe(struct: type) -> inspect.StructType:
    """Return msgspec's description of a struct."""
    found = inspect.type_info(struct)
    assert isinstance(found, inspect.StructType)  # noqa: S101  callers pass structs only
    return found


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return a hint that names the closest known word, if one is close."""
    words = list(known)
    close = difflib.get_close_matches(word, words, n=1) or [k for k in words if len(word) > 2 and k.startswith(word)]
    return f'did you mean "{close[0]}"?' if close else None


class _Decoder:
    def __init__(self, host_path: HostPath) -> None:
        self._host_path = host_path

    def value(self, node: Node, kind: inspect.Type, name: str, extra: dict[str, Any] | None = None) -> Any:
        """Decode a node. `name` is its name in errors, `extra` holds the annotations outside `kind`."""
        if isinstance(kind, inspect.Metadata):
            return self.value(node, kind.type, name, {**(extra or {}), **(kind.extra or {})})
        if isinstance(kind, inspect.UnionType) and any(isinstance(t, inspect.NoneType) for t in kind.types):
            if isinstance(node, Scalar) and node.value is None:
                return None
            others = [t for t in kind.types if not isinstance(t, inspect.NoneType)]
            return self.value(node, others[0], name, extra)
        if isinstance(kind, inspect.ListType):
            return self._list(node, kind, name)
        if isinstance(kind, inspect.StructType):
            return self._struct(node, kind, name)
        return (
            self._dict(node, kind, name)
            if isinstance(kind, inspect.DictType)
            else self._scalar(node, kind, name, extra)
        )

    def _list(self, node: Node, kind: inspect.ListType, name: str) -> list[Any]:
        if not isinstance(node, Sequence):
            _mismatch(node, name, "a list")
        return [self.value(item, kind.item_type, f"an item of {name}") for item in node.items]

    def _struct(self, node: Node, kind: inspect.StructType, name: str) -> Any:
        if not isinstance(node, Mapping):
            _mismatch(node, name, "a map of keys and values")
        fields = {field.encode_name: field for field in kind.fields}
        values = {}
        for key, entry in node.entries.items():
            if key not in fields:
                _unknown(key, entry.mark, list(fields))
            field = fields[key]
            values[field.name] = self.value(entry.node, field.type, f'"{key}"')
        for key, field in fields.items():
            if field.required and field.name not in values:
                raise ManifestError(f'key "{key}" is missing in {name}', where=str(node.mark))
        return kind.cls(**values)

    def _dict(self, node: Node, kind: inspect.DictType, name: str) -> dict[str, Any]:
        if not isinstance(node, Mapping):
            _mismatch(node, name, "a map of keys and values")
        values = {}
        for key, entry in node.entries.items():
            word = Scalar(entry.mark, key, plain=False)
            values[self.value(word, kind.key_type, f"a key of {name}")] = self.value(
                entry.node, kind.value_type, f'"{shorten(key)}"'
            )
        return values

    def _scalar(self, node: Node, kind: inspect.Type, name: str, extra: dict[str, Any] | None) -> Any:
        extra = extra or {}
        if not isinstance(node, Scalar):
            _mismatch(node, name, extra.get("says") or _expected(kind, extra))
        form = extra.get("form")
        if form == "size":
            return _size(node, name, extra.get("words", ()))
        if form == "mode":
            return _mode(node, name)
        if isinstance(kind, inspect.LiteralType):
            return _literal(node, kind.values, name)
        value = node.value
        if isinstance(kind, inspect.BoolType) and not isinstance(value, bool):
            _mismatch(node, name, "true or false")
        if isinstance(kind, inspect.IntType):
            return _integer(node, kind, name)
        if isinstance(kind, inspect.StrType):
            return self._text(node, kind, name, extra)
        return value

    def _text(self, node: Scalar, kind: inspect.StrType, name: str, extra: dict[str, Any]) -> str:
        if not isinstance(node.value, str):
            hint = f'quote it to make it text: "{node.text}"' if node.text else "give it a value, or remove the key"
            _mismatch(node, name, extra.get("says", "text"), hint=hint)
        text = node.text
        if kind.min_length and len(text) < kind.min_length:
            raise ManifestError(f"{name} is empty", where=str(node.mark))
        if kind.pattern and (not re.search(kind.pattern, text) or text.endswith("\n")):
            _mismatch(node, name, extra.get("says", f"text like {kind.pattern}"))
        form = extra.get("form")
        if form in ("path", "key") and "\0" in text:
            _mismatch(node, name, "a path")
        if form == "path" and text not in extra.get("words", ()):
            stock = stock_file(text, extra["stock"]) if "stock" in extra else None
            if stock is not None and not (node.mark.file.parent / text).exists():
                return self._host_path(str(stock), node.mark.file)
            return self._host_path(text, node.mark.file)
        if form == "key" and text.startswith("file:"):
            return "file:" + self._host_path(text.removeprefix("file:"), node.mark.file)
        return text


def _unknown(key: str, mark: Mark, known: list[str]) -> NoReturn:
    hint = nearest(key, known)
    if key.endswith("+") and key[:-1] in known:
        hint = f'"{key}" appends to what a base says: it needs "extends"'
    raise ManifestError(
        f'unknown key "{shorten(key)}"', where=str(mark), hint=hint or f"known here: {', '.join(sorted(known))}"
    )


def _mismatch(node: Node, name: str, expected: str, *, hint: str | None = None) -> NoReturn:
    raise ManifestError(f"{name} must be {expected}, not {_shown(node)}", where=str(node.mark), hint=hint)


def _shown(node: Node) -> str:
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node, Mapping):
        return "a map"
    if node.value is None:
        return "nothing"
    text = shorten(node.text.replace("\n", "\\n"))
    return text if node.plain and not isinstance(node.value, str) else f'"{text}"'


def _expected(kind: inspect.Type, extra: dict[str, Any]) -> str:
    if extra.get("form") == "size":
        return "a size"
    names = {inspect.IntType: "a number", inspect.BoolType: "true or false", inspect.LiteralType: "one word"}
    return names.get(type(kind), "text")


def _size(node: Scalar, name: str, words: Iterable[str]) -> str | int:
    """Check a size, and return it in the form in which it was written."""
    if node.text in words:
        return node.text
    value = node.value
    try:
        size = size_bytes(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
    except ValueError:
        size = None
    if size is None or not 0 < size < 1 << 63:
        known = ", ".join(["4096", "64K", "512M", "2G", *words])
        _mismatch(node, name, f"a size ({known})")
    assert isinstance(value, str | int)  # noqa: S101  follows from size
    return value


def _mode(node: Scalar, name: str) -> str:
    """Decode a mode: octal as in chmod, quoted or not (YAML would read a plain 0755 as 755)."""
    if not re.fullmatch("(0o)?[0-7]{1,4}", node.text):
        _mismatch(node, name, "permission bits in octal (0755)")
    return f"{int(node.text, 8):04o}"


def _literal(node: Scalar, values: tuple[Any, ...], name: str) -> Any:
    value = node.value
    if not isinstance(value, bool) and value in values:
        return value
    words = [str(word) for word in values]
    expected = words[0] if len(words) == 1 else "one of " + ", ".join(words)
    _mismatch(node, name, expected, hint=nearest(node.text, words))


def _integer(node: Scalar, kind: inspect.IntType, name: str) -> int:
    value = node.value
    if not isinstance(value, int) or isinstance(value, bool):
        _mismatch(node, name, "a number")
    low, high = kind.ge if kind.ge is not None else -(1 << 63), kind.le if kind.le is not None else (1 << 63) - 1
    if not low <= value <= high:
        bounds = f"from {low} to {high}" if kind.le is not None else f"of at least {low}"
        _mismatch(node, name, f"a number {bounds}")
    return value
