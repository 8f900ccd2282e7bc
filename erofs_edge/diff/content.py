# SPDX-License-Identifier: Apache-2.0
"""Explain why two contents differ, in terms of their type: text, ELF, JSON, gzip, or bytes."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import json
import zlib

from erofs_edge.boot.elf import is_elf, sections
from erofs_edge.errors import FormatError

EXPLAINED_MAX = 64 << 20
"""bytes of a content that is examined; larger ones are only compared"""
TEXT_MAX = 512 << 10
LINES_MAX = 5000
DETAIL_MAX = 60
UNPACKED_MAX = 16 << 20
_GZIP = b"\x1f\x8b\x08"


def explain(old: bytes, new: bytes) -> tuple[str, list[str]]:
    """(reason in a phrase, lines of detail) for two contents that differ. Accepts any bytes, in bounded time and
    memory.
    """
    if max(len(old), len(new)) <= EXPLAINED_MAX:
        if is_elf(old) and is_elf(new):
            try:
                return _elf(old, new)
            except FormatError:
                pass  # explained as bytes, below
        if old.startswith(_GZIP) and new.startswith(_GZIP):
            return _gzip(old, new)
        texts = _text(old), _text(new)
        if texts[0] is not None and texts[1] is not None:
            return _lines(texts[0], texts[1])
    return _bytes(old, new)


def _elf(old: bytes, new: bytes) -> tuple[str, list[str]]:
    """ELF files by section; sections of the same name count as one."""
    sides = []
    for data in (old, new):
        found: dict[str, tuple[int, bytes]] = {}
        for name, body in sections(data):
            size, digest = found.get(name, (0, b""))
            found[name] = size + len(body), hashlib.sha256(digest + body).digest()
        sides.append(found)
    lines = []
    for name in sorted(sides[0].keys() | sides[1].keys()):
        one, other = sides[0].get(name), sides[1].get(name)
        if one != other:
            sizes = [f"{side[0]} bytes" if side else "absent" for side in (one, other)]
            lines.append(f"{name}: {sizes[0]}" + (f" → {sizes[1]}" if sizes[0] != sizes[1] else ", other bytes"))
    if not lines:
        return "ELF: sections equal, bytes around them differ", []
    names = [line.split(":")[0] for line in lines]
    if set(names) <= {".note.gnu.build-id", ".gnu_debuglink"}:
        return "ELF: only the build id", lines
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"ELF sections {', '.join(names[:4])}{more}", _cut(lines)


def _gzip(old: bytes, new: bytes) -> tuple[str, list[str]]:
    sides = [_gunzip(old), _gunzip(new)]
    if sides[0] is None or sides[1] is None:
        return _bytes(old, new)
    if sides[0] == sides[1]:
        if old[4:8] != new[4:8]:
            return "gzip: same content, other timestamp", [
                f"timestamp {int.from_bytes(old[4:8], 'little')} → {int.from_bytes(new[4:8], 'little')}"
            ]
        return "gzip: same content, compressed otherwise", []
    texts = _text(sides[0]), _text(sides[1])
    if texts[0] is None or texts[1] is None:
        return "gzip: other content", []
    why, lines = _lines(texts[0], texts[1])
    return f"gzip, {why}", lines


def _gunzip(data: bytes) -> bytes | None:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            content = stream.read(UNPACKED_MAX + 1)
    except (OSError, EOFError, zlib.error):
        return None
    return content if len(content) <= UNPACKED_MAX else None


def _text(data: bytes) -> str | None:
    if len(data) > TEXT_MAX or b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _lines(old: str, new: str) -> tuple[str, list[str]]:
    one, other = old.splitlines(), new.splitlines()
    if one == other:
        return "text: only line ends", []
    if max(len(one), len(other)) > LINES_MAX:
        return f"text: {len(one)} lines → {len(other)} lines", []
    reordered = "text: the same lines in another order" if sorted(one) == sorted(other) else ""
    why = reordered or _json(old, new) or ""
    found = [line for line in difflib.unified_diff(one, other, lineterm="", n=1) if line[:3] not in ("---", "+++")]
    if not why:
        gone, come = (sum(line.startswith(mark) for line in found) for mark in "-+")
        why = f"text: {gone} line(s) gone, {come} new"
    return why, _cut(found)


def _json(old: str, new: str) -> str | None:
    try:
        one, other = json.loads(old), json.loads(new)
    except (ValueError, RecursionError):
        return None
    if one == other:
        return "JSON: the same values, written otherwise"
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))
        return f"JSON: {', '.join(keys[:6])}" + (" …" if len(keys) > 6 else "")
    return None


def _bytes(old: bytes, new: bytes) -> tuple[str, list[str]]:
    if len(old) != len(new):
        return f"{len(old)} bytes → {len(new)} bytes", [f"the first that differs is byte {first_difference(old, new)}"]
    at = first_difference(old, new)
    return f"bytes differ from {at:#x} on", [
        f"old at {at:#x}: {old[at : at + 16].hex(' ')}",
        f"new at {at:#x}: {new[at : at + 16].hex(' ')}",
    ]


def first_difference(old: bytes, new: bytes) -> int:
    """Index of the first byte that differs; the shorter length if one starts with the other."""
    low, high = 0, min(len(old), len(new))
    if old[:high] == new[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _cut(lines: list[str]) -> list[str]:
    if len(lines) <= DETAIL_MAX:
        return lines
    return [*lines[:DETAIL_MAX], f"… {len(lines) - DETAIL_MAX} lines more"]
