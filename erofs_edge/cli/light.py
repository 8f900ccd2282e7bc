# SPDX-License-Identifier: Apache-2.0
"""click, pathlib and dataclasses without what they hardly use: a third of the time that they take to load.

While they are loaded, stand-ins take the place of some modules of Python's library. Each has the few functions that are
asked for at once; whatever else is asked of it comes from the module itself, which is loaded then. Nobody else ever
sees a stand-in: when the three are loaded, an `import inspect` gives inspect.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class Later(ModuleType):
    """Stands for the module of that name, with these functions of its own."""

    def __init__(self, name: str, own: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(name)
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's own questions about modules
            raise AttributeError(name)
        return _real(self.__name__, name)


def _real(module: str, name: str) -> Any:
    """What a module has under a name, even where a stand-in has its place."""
    if isinstance(sys.modules.get(module), Later):
        del sys.modules[module]
    return getattr(importlib.import_module(module), name)


def _cleandoc(text: str) -> str:
    """inspect.cleandoc (PEP 257), which click calls for the help of every option."""
    first, *others = text.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip(" ")) for line in others if line.strip(" ")), default=0)
    return "\n".join([first.lstrip(" "), *(line[margin:] for line in others)]).strip("\n")


def _gettext(text: str) -> str:
    """gettext.gettext where no translation is installed, and of click there is none: without a look for it each time,
    in folders that follow from the locale."""
    return text


def _ngettext(one: str, many: str, number: int) -> str:
    """gettext.ngettext, likewise."""
    return one if number == 1 else many


def _system() -> str:
    """platform.system, which uuid asks for on systems other than Windows."""
    import os

    return os.uname().sysname


def _quote_from_bytes(*given: Any, **named: Any) -> str:
    """urllib.parse.quote_from_bytes, of which pathlib makes URIs."""
    quoted: str = _real("urllib.parse", "quote_from_bytes")(*given, **named)
    return quoted


def _datetime() -> dict[str, Callable[..., Any]]:
    """datetime.datetime: until Python 3.12 the module first makes it a second time, in Python, to throw that away."""
    if sys.version_info >= (3, 12) or sys.implementation.name != "cpython":
        return {}
    return {"datetime": importlib.import_module("_datetime").datetime}


def _get_annotations(of: type) -> dict[str, Any]:
    """inspect.get_annotations, which dataclasses asks about each of its classes from Python 3.12 to 3.13."""
    return dict(of.__dict__.get("__annotations__", {}))  # noqa: RUF063  that is what this stands for


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
"""module → what it is asked for when it is loaded, or each time"""


@contextmanager
def without(modules: Mapping[str, Mapping[str, Callable[..., Any]]]) -> Iterator[None]:
    """Stand-ins for these modules, as far as they are not loaded, while the block lasts."""
    absent = [name for name in modules if name not in sys.modules]
    sys.modules.update({name: Later(name, modules[name]) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            if isinstance(sys.modules.get(name), Later):
                del sys.modules[name]


def load_click() -> None:
    """Load click, if nobody has."""
    with without(OF_CLICK):
        import click  # noqa: F401


def load_pathlib() -> None:
    """Load pathlib, if nobody has."""
    with without(OF_PATHLIB):
        import pathlib  # noqa: F401


def load_dataclasses() -> None:
    """Load dataclasses, if nobody has."""
    with without(OF_DATACLASSES):
        import dataclasses  # noqa: F401
