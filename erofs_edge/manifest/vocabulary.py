# SPDX-License-Identifier: Apache-2.0
"""The docstrings of structs and of their keys in model.py and its parts."""

from __future__ import annotations

import ast
import functools
import inspect
from pathlib import Path

from erofs_edge.manifest import encryption, filesystem, model, shaping, supply, verified, vulnerabilities
from erofs_edge.manifest.decode import describe

MODULES = (model, encryption, filesystem, shaping, supply, verified, vulnerabilities)


@functools.cache
def descriptions() -> dict[str, dict[str, str]]:
    """Return docstrings by struct and attribute; the struct's own is under ''. Line breaks become spaces."""
    sources = [Path(inspect.getfile(module)).read_text(encoding="utf-8") for module in MODULES]
    found: dict[str, dict[str, str]] = {}
    for item in [item for source in sources for item in ast.parse(source).body]:
        if not isinstance(item, ast.ClassDef):
            continue
        texts = found[item.name] = {"": " ".join((ast.get_docstring(item) or "").split())}
        for statement, following in zip(item.body, item.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                texts[statement.target.id] = " ".join(str(following.value.value).split())
    return found


def key_descriptions(struct: type) -> dict[str, str]:
    """Return the docstrings of a struct's keys, by their names in files, in the order of model.py."""
    texts = descriptions()[struct.__name__]
    return {field.encode_name: texts.get(field.name, "") for field in describe(struct).fields}


def struct_named(name: str) -> type:
    """Return the struct of that name in one of `MODULES`."""
    (found,) = {getattr(module, name) for module in MODULES if hasattr(module, name)}
    assert isinstance(found, type)  # noqa: S101  callers pass names of structs only
    return found
