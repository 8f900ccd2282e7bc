# SPDX-License-Identifier: Apache-2.0
"""Load click, pathlib and dataclasses without modules they hardly use, which saves much of their load time.

While they load, stand-ins replace some modules of the standard library. Each has the few functions that are needed
at once; any other attribute is taken from the real module, which is loaded at that point. No other code ever sees a
stand-in: once the three are loaded, `import inspect` gives inspect.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class Later(ModuleType):
    """Stands in for the module of that name, with some functions of its own."""

    def __init__(self, name: str, own: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(name)
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's own queries about modules
            raise AttributeError(name)
        return _real(self.__name__, name)


def _real(module: str, name: str) -> Any:
    """Return an attribute of the real module, even while a stand-in is in its place."""
    if isinstance(sys.modules.get(module), Later):
        del sys.modules[module]
    return getattr(importlib.import_module(module), name)


def _cleandoc(text: str) -> str:
    """inspect.cleandoc (PEP 257), which click calls for the help of every option."""
    first, *others = text.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip(" ")) for line in others if line.strip(" ")), default=0)
    return "\n".join([first.lstrip(" "), *(line[margin:] for line in others)]).strip("\n")


def _gettext(text: str) -> str:
    """gettext.gettext without translations: click has none, so searching for them in locale-dependent folders each time
    is avoided."""
    return text


def _ngettext(one: str, many: str, number: int) -> str:
    """gettext.ngettext, likewise."""
    return one if number == 1 else many


def _system() -> str:
    """platform.system, which uuid calls on systems other than Windows."""
    import os

    return os.uname().sysname


def _quote_from_bytes(*given: Any, **named: Any) -> str:
    """urllib.parse.quote_from_bytes, with which pathlib makes URIs."""
    quoted: str = _real("urllib.parse", "quote_from_bytes")(*given, **named)
    return quoted


def _datetime() -> dict[str, Callable[..., Any]]:
    """datetime.datetime: before Python 3.12 the module first defines it again in Python, only to discard that."""
    if sys.version_info >= (3, 12) or sys.implementation.name != "cpython":
        return {}
    return {"datetime": importlib.import_module("_datetime").datetime}


def _get_annotations(of: type) -> dict[str, Any]:
    """inspect.get_annotations, which dataclasses calls for each class in Python 3.12 and 3.13."""
    return dict(of.__dict__.get("__annotations__", {}))  # noqa: RUF063  this is a replacement for it


OF_CLICK: dict[str, dict[str, Callable[..., Any]]] = {
    "inspect": {"cleandoc": _cleandoc},
    "datetime": _datetime(),
    "gettext": {"gettext": _gettext, "ngettext": _ngettext},
    "platform": {"system": _system} if sys.platform == "linux" else {},
}
OF_PATHLIB = {"urllib.parse": {"quote_from_bytes": _quote_from_bytes}}
OF_DATACLASSES: dict[str, dict[str, Callable[..., Any]]] = {
    "inspect": {"get_annotations": _get_annotations} if sys.version_info < (3, 14) else {}
}
"""module → the functions needed when it is loaded, or for each class"""


@contextmanager
def without(modules: Mapping[str, Mapping[str, Callable[..., Any]]]) -> Iterator[None]:
    """Replace these modules with stand-ins until the block ends, except those already loaded."""
    absent = [name for name in modules if name not in sys.modules]
    sys.modules.update({name: Later(name, modules[name]) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            if isinstance(sys.modules.get(name), Later):
                del sys.modules[name]


def load_click() -> None:
    """Load click, unless it is loaded."""
    with without(OF_CLICK):
        import click  # noqa: F401


def load_pathlib() -> None:
    """Load pathlib, unless it is loaded."""
    with without(OF_PATHLIB):
        import pathlib  # noqa: F401


def load_dataclasses() -> None:
    """Load dataclasses, unless it is loaded."""
    with without(OF_DATACLASSES):
        import dataclasses  # noqa: F401
