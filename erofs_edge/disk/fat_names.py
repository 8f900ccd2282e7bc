# SPDX-License-Identifier: Apache-2.0
"""Names on FAT: what can be stored, the short aliases, the long-name entries.

Source: Microsoft FAT specification (fatgen103), "Long directory entries". Names are compared by their upper case, here
called keys.
"""

from __future__ import annotations

from collections.abc import Iterable

from erofs_edge.errors import FormatError

SHORT = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789$%'-_@~`!(){}^#&")
FORBIDDEN = frozenset('"*/:<>?\\|')
ATTR_LONG = 0x0F
UNITS_EACH = 13  # UTF-16 code units in a long-name entry


def check_name(name: str, path: str) -> None:
    """Raises FormatError if FAT cannot store the name; `path` is for the message."""
    bad = any(character in FORBIDDEN or ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in name)
    if bad or not 0 < len(_utf16(name)) <= 255 * 2 or name[-1] in ". ":
        raise FormatError(f"{name!r} is not a valid name on FAT", where=path)


def check_label(label: str) -> bytes:
    """The 11 bytes of a volume label. Raises FormatError."""
    raw = _ascii(label.upper())
    if not 0 < len(raw) <= 11 or not set(raw) <= SHORT | {ord(" ")}:
        raise FormatError(f"{label!r} is not a valid FAT volume label", hint="1 to 11 of A-Z, 0-9, '-', '_'")
    return raw.ljust(11)


def aliases(keys: Iterable[str]) -> dict[str, bytes]:
    """The 11 bytes of each short name of a directory: the key itself if it fits, else a numbered one."""
    keys = sorted(keys)
    found: dict[str, bytes] = {}
    for key in keys:
        base, extension = _divided(key)
        if 0 < len(base) <= 8 and len(extension) <= 3 and set(_ascii(base + extension)) <= SHORT:
            found[key] = f"{base:8}{extension:3}".encode("ascii")
    taken = set(found.values())
    numbers: dict[bytes, int] = {}
    for key in keys:
        if key in found:
            continue
        base, extension = _divided(key.lstrip("."))
        stem, suffix = _squeeze(base) or b"_", _squeeze(extension)[:3].ljust(3)
        family = stem[:6] + suffix
        while True:
            numbers[family] = numbers.get(family, 0) + 1
            tail = b"~%d" % numbers[family]
            alias = (stem[: 8 - len(tail)] + tail).ljust(8) + suffix
            if alias not in taken:
                break
        taken.add(alias)
        found[key] = alias
    return found


def long_count(name: str, alias: bytes) -> int:
    """Number of long-name entries before the short one: none if the alias is enough."""
    base, extension = alias[:8].rstrip().decode("ascii"), alias[8:].rstrip().decode("ascii")
    if name == (f"{base}.{extension}" if extension else base):
        return 0
    return -(-len(_utf16(name)) // (2 * UNITS_EACH))


def long_entries(name: str, alias: bytes) -> list[bytes]:
    """The long-name entries in disk order: the last part of the name first."""
    checksum = 0
    for byte in alias:
        checksum = ((checksum & 1) << 7 | checksum >> 1) + byte & 0xFF
    raw = _utf16(name)
    count = long_count(name, alias)
    if len(raw) < count * 2 * UNITS_EACH:
        raw = (raw + b"\0\0").ljust(count * 2 * UNITS_EACH, b"\xff")
    entries = []
    for number in range(count, 0, -1):
        piece = raw[(number - 1) * 2 * UNITS_EACH : number * 2 * UNITS_EACH]
        order = number | (0x40 if number == count else 0)
        head = bytes([order]) + piece[:10] + bytes([ATTR_LONG, 0, checksum])
        entries.append(head + piece[10:22] + b"\0\0" + piece[22:])
    return entries


def _divided(key: str) -> tuple[str, str]:
    base, dot, extension = key.rpartition(".")
    return (base, extension) if dot else (key, "")


def _squeeze(text: str) -> bytes:
    """The part of a long name that a short name keeps."""
    return bytes(byte if byte in SHORT else ord("_") for byte in _ascii(text) if byte not in b" .")


def _ascii(text: str) -> bytes:
    return text.encode("ascii", "replace")


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")
