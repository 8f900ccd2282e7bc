# SPDX-License-Identifier: Apache-2.0
"""Check and convert the arguments of `erofs_edge.erofs.build` and `open`. A TypeError names the wrong argument."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from erofs_edge.erofs.options import WriteOptions
from erofs_edge.errors import UsageError
from erofs_edge.names import fsencode

PATH = "str or os.PathLike"


def path_of(name: str, given: object, wanted: str = PATH) -> Path:
    """Convert a str or path-like argument to a Path. Raises TypeError, which says what is `wanted`, and UsageError for
    text that cannot be a path."""
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(text, str):
        raise _wrong(name, wanted, text)
    if "\0" in text:
        raise UsageError(f"{name} has a NUL, which no path can have", hint="check where the path comes from")
    return Path(text)


def paths_of(name: str, given: object) -> tuple[Path, ...]:
    """Convert several paths; a single path stands for a list of one. Raises TypeError."""
    return _several(
        path_of, f"{PATH}, or several of them", name, (given,) if isinstance(given, str | os.PathLike) else given
    )


def integer(name: str, given: object) -> int:
    """Check for an int that is not a bool. Raises TypeError."""
    if not isinstance(given, int) or isinstance(given, bool):
        raise _wrong(name, "int", given)
    return given


def options_of(given: dict[str, Any]) -> WriteOptions:
    """Convert the keyword options of `build`. Raises TypeError for a value of the wrong type, UsageError for unknown or
    conflicting options."""
    known = WriteOptions.__annotations__
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        raise UsageError(f"unknown options: {', '.join(unknown)}", hint=f"known are {', '.join(sorted(known))}")
    return WriteOptions(**{name: _value(name, str(known[name]), value) for name, value in given.items()})


def _value(name: str, kind: str, given: object) -> Any:
    """Convert one value; `kind` is the field's annotation in WriteOptions."""
    optional = kind.endswith(" | None")
    if optional and given is None:
        return None
    plain = kind.removesuffix(" | None")
    try:
        return (_one_of(plain) if plain.startswith("Literal") else _TYPES[plain])(name, given)
    except TypeError as error:
        raise TypeError(f"{error}{', or None' if optional else ''}") from None


def _plain(kind: type, name: str, given: object) -> object:
    if not isinstance(given, kind):
        raise _wrong(name, kind.__name__, given)
    return given


def _one_of(kind: str) -> Callable[[str, object], object]:
    words = re.findall(r"'(\w+)'|\"(\w+)\"", kind)
    return partial(_word, [one or other for one, other in words])


def _word(words: list[str], name: str, given: object) -> object:
    _plain(str, name, given)
    if given not in words:
        raise UsageError(f"{name} is {given!r}", hint=f"one of {', '.join(words)}")
    return given


def _raw(name: str, given: object) -> bytes:
    """Convert str as the system encodes file names; bytes stay as they are."""
    if not isinstance(given, str | bytes):
        raise _wrong(name, "bytes or str", given)
    return fsencode(given)


def _several(of: Callable[[str, Any], Any], kind: str, name: str, given: object) -> tuple[Any, ...]:
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | bytearray):
        raise _wrong(name, kind, given)
    return tuple(of(f"{name}[{index}]", one) for index, one in enumerate(given))


def _use(name: str, given: object) -> object:
    from erofs_edge.erofs.profile import Use

    if isinstance(given, Use):
        return given
    if not isinstance(given, str | bytes):
        raise _wrong(name, "Use, bytes or str", given)
    return fsencode(given)


def _rule(name: str, given: object) -> object:
    from erofs_edge.erofs.rules import CompressionRule

    return _plain(CompressionRule, name, given)


def _kernel(name: str, given: object) -> object:
    from erofs_edge.erofs.gate import Kernel, parse_kernel

    if isinstance(given, str):
        return parse_kernel(given)
    if not isinstance(given, Kernel):
        raise _wrong(name, "Kernel or str", given)
    return given


def _cache(name: str, given: object) -> object:
    from erofs_edge.erofs.cache import CompressionCache

    return _plain(CompressionCache, name, given)


def _callable(name: str, given: object) -> object:
    if not callable(given):
        raise _wrong(name, "a function of (done, total)", given)
    return given


def _meter(name: str, given: object) -> object:
    from erofs_edge.erofs.meter import Meter

    return _plain(Meter, name, given)


def _as_it_is(name: str, given: object) -> object:
    """For values that only this program itself creates."""
    return given


def _wrong(name: str, kind: str, given: object) -> TypeError:
    return TypeError(f"{name} is {type(given).__name__}; it must be {kind}")


_TYPES: dict[str, Callable[[str, Any], Any]] = {
    "int": integer,
    "bool": partial(_plain, bool),
    "str": partial(_plain, str),
    "bytes": _raw,
    "Path": path_of,
    "tuple[Path, ...]": paths_of,
    "tuple[bytes, ...]": partial(_several, _raw, "several of bytes or str"),
    "tuple[CompressionRule, ...]": partial(_several, _rule, "several of CompressionRule"),
    "tuple[Use | bytes, ...]": partial(_several, _use, "several of Use, bytes or str"),
    "Kernel": _kernel,
    "CompressionCache": _cache,
    "Callable[[int, int], None]": _callable,
    "Ahead": _as_it_is,
    "Meter": _meter,
}
"""annotation of a field in WriteOptions → converter for its value"""
