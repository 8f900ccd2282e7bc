# SPDX-License-Identifier: Apache-2.0
"""A board or manifest in resolved form: YAML with all defaults, and the origin of each value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from erofs_edge.manifest.decode import describe
from erofs_edge.manifest.load import Loaded
from erofs_edge.manifest.model import Board, System
from erofs_edge.manifest.nodes import core_value

COMMENT_COLUMN = 48
_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.+@=,-]*(:[A-Za-z0-9_/.+@=,-]+)*|[0-9]+[A-Za-z]+")

Origin = Callable[[str], str]


def origins(loaded: Loaded[Board] | Loaded[System]) -> dict[str, str]:
    """Map each pointer (``disk.partitions.boot.size``) to its origin: ``file:line:column``, or ``default``."""
    return {pointer: _origin(loaded)(pointer) for pointer in _pointers(loaded.value, "")}


def explain_yaml(loaded: Loaded[Board] | Loaded[System]) -> str:
    """Return the resolved form as YAML 1.2, each value followed by a comment with its origin. It loads as the same
    value."""
    head = [f"# {loaded.path}, digest {loaded.digest}"]
    head += [f"# extends {file}" for file in loaded.files[1:]]
    rows = _struct_rows(loaded.value, "", 0, _origin(loaded))
    return "\n".join(head + [_with_comment(text, comment) for text, comment in rows]) + "\n"


def _origin(loaded: Loaded[Board] | Loaded[System]) -> Origin:
    return lambda pointer: loaded.position(pointer) if loaded.is_written(pointer) else "default"


def _with_comment(text: str, comment: str) -> str:
    return f"{text:<{COMMENT_COLUMN}}  # {comment}" if comment else text


def _keys(value: Struct | dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield keys as they are spelled in files, with their values; `extends` has been applied."""
    if isinstance(value, dict):
        yield from value.items()
        return
    for field in describe(type(value)).fields:
        if field.encode_name != "extends":
            yield field.encode_name, getattr(value, field.name)


def _pointers(value: object, pointer: str) -> Iterator[str]:
    """Yield the pointers of all leaves; an empty list or map is a leaf."""
    if isinstance(value, Struct | dict) and (not isinstance(value, dict) or value):
        for key, item in _keys(value):
            yield from _pointers(item, f"{pointer}.{key}" if pointer else key)
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _pointers(item, f"{pointer}.{index}")
    else:
        yield pointer


def _struct_rows(value: Struct | dict[str, Any], pointer: str, indent: int, origin: Origin) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, item in _keys(value):
        here = f"{pointer}.{key}" if pointer else key
        lead = f"{' ' * indent}{_text(key)}:"
        if isinstance(item, int) and key.endswith("_address"):
            rows.append((f"{lead} {item:#x}", origin(here)))
        else:
            rows += _rows(lead, item, here, indent, origin)
    return rows


def _rows(lead: str, value: object, pointer: str, indent: int, origin: Origin) -> list[tuple[str, str]]:
    """Yield lines with `lead` (a key with its colon) and the value, after or below it."""
    if isinstance(value, Struct) or (isinstance(value, dict) and value):
        return [(lead, origin(pointer)), *_struct_rows(value, pointer, indent + 2, origin)]
    if not isinstance(value, list) or not value:
        return [(f"{lead} {_text(value)}", origin(pointer))]
    rows = [(lead, origin(pointer))]
    for index, item in enumerate(value):
        here = f"{pointer}.{index}"
        dash = " " * (indent + 2) + "- "
        if isinstance(item, Struct):
            first, *others = _struct_rows(item, here, indent + 4, origin)
            rows += [(dash + first[0].lstrip(), first[1]), *others]
        else:
            rows.append((dash + _text(item), origin(here)))
    return rows


def _text(value: object) -> str:
    """Return a scalar as text, quoted where YAML would read it as something else. YAML accepts JSON's quoted
    strings."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and isinstance(core_value(value), str):
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in quoted)
