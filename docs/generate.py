# SPDX-License-Identifier: Apache-2.0
"""Write what the documentation takes from the code: docs/schema/*.schema.json, the tables of docs/manifests.md, the
pages of the commands (docs/cli.md, docs/man/erofs-edge.1) and docs/python-reference.md.

usage: python docs/generate.py        A test holds that the files are fresh.
"""

from __future__ import annotations

import importlib
import inspect as python_inspect
from pathlib import Path

import msgspec
from msgspec import NODEFAULT, inspect

from erofs_edge.cli.manual import markdown, roff
from erofs_edge.manifest.decode import describe
from erofs_edge.manifest.model import Board, Lock, System
from erofs_edge.manifest.schema import KINDS, schema_text
from erofs_edge.manifest.vocabulary import descriptions, key_descriptions

DOCS = Path(__file__).parent
INTERFACE = (
    ("erofs_edge.erofs.api", "build"), ("erofs_edge.erofs.api", "open"), ("erofs_edge.erofs.options", "WriteOptions"),
    ("erofs_edge.erofs.read", "Image"), ("erofs_edge.erofs.inode", "DiskInode"), ("erofs_edge.tree", "FileTree"),
    ("erofs_edge.tree", "Inode"), ("erofs_edge.verity.tree", "append"), ("erofs_edge.verity.check", "verify"),
    ("erofs_edge.manifest.load", "load_board"), ("erofs_edge.manifest.load", "load_system"),
    ("erofs_edge.build.pipeline", "build_board"), ("erofs_edge.build.pipeline", "BuildOptions"),
    ("erofs_edge.verify.path", "verify_path"), ("erofs_edge.diff.paths", "compare_paths"),
    ("erofs_edge.errors", "ErofsEdgeError"),
)  # fmt: skip
"""(module, name) of what programs may use, in the order of the page"""
BEGIN, END = "<!-- vocabulary: docs/generate.py -->\n", "<!-- end of vocabulary -->\n"


def generated() -> dict[Path, str]:
    """Every generated file with the text that it should have."""
    files = {DOCS / "schema" / f"{kind}.schema.json": schema_text(kind) for kind in KINDS}
    manual = DOCS / "manifests.md"
    text = manual.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    files[manual] = before + BEGIN + "\n" + vocabulary() + END + after
    files[DOCS / "cli.md"] = markdown()
    files[DOCS / "man" / "erofs-edge.1"] = roff()
    files[DOCS / "python-reference.md"] = reference()
    return files


def vocabulary() -> str:
    """One section with a table for each struct, in the order in which they are met."""
    order: list[type] = []
    for root in (Board, System, Lock):
        _collect(root, order)
    return "".join(_section(struct) for struct in order)


def _collect(struct: type, order: list[type]) -> None:
    if struct in order:
        return
    order.append(struct)
    for field in describe(struct).fields:
        for inner in _structs(field.type):
            _collect(inner, order)


def _structs(kind: inspect.Type) -> list[type]:
    if isinstance(kind, inspect.StructType):
        return [kind.cls]
    parts = [getattr(kind, name) for name in ("type", "item_type", "value_type") if hasattr(kind, name)]
    parts += getattr(kind, "types", ())
    return [struct for part in parts for struct in _structs(part)]


def _section(struct: type) -> str:
    titles = {Board: "Board file", System: "Manifest", Lock: "Lock"}
    title = titles.get(struct, struct.__name__)
    texts = key_descriptions(struct)
    rows = [
        f"| `{field.encode_name}` | {_type(field.type)} | {_default(field)} | {_cell(texts[field.encode_name])} |\n"
        for field in describe(struct).fields
    ]
    head = "| key | value | default | meaning |\n|---|---|---|---|\n"
    return f"### {title}\n\n{descriptions()[struct.__name__]['']}\n\n{head}{''.join(rows)}\n"


def _type(kind: inspect.Type, form: str = "") -> str:
    """A type in words that fit a table."""
    if isinstance(kind, inspect.Metadata):
        text = _type(kind.type, (kind.extra or {}).get("form", ""))
    elif isinstance(kind, inspect.UnionType):
        kinds = [part for part in kind.types if not isinstance(part, inspect.NoneType)]
        text = _type(kinds[0], form)
    elif isinstance(kind, inspect.StructType):
        text = f"[{kind.cls.__name__}](#{kind.cls.__name__.lower()})"
    elif isinstance(kind, inspect.ListType):
        text = f"list of {_type(kind.item_type)}"
    elif isinstance(kind, inspect.DictType):
        text = f"map of name to {_type(kind.value_type)}"
    elif isinstance(kind, inspect.LiteralType):
        text = " or ".join(f"`{value}`" for value in kind.values)
    else:
        names: dict[type, str] = {inspect.IntType: "number", inspect.BoolType: "`true` or `false`"}
        text = {"size": "size", "mode": "mode", "path": "path"}.get(form) or names.get(type(kind), "text")
    return text


def _default(field: inspect.Field) -> str:
    if field.required:
        return "**needed**"
    value = field.default_factory() if field.default_factory is not NODEFAULT else field.default
    if value is None or value in ([], {}, "") or isinstance(value, msgspec.Struct):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and value >= 1 << 24:
        return f"`{value:#x}`"
    return f"`{', '.join(value) if isinstance(value, list) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def reference() -> str:
    """The page of what Python programs may use: signatures and what the code says of them."""
    lines = [
        "# Python reference\n",
        "Made from the code by `docs/generate.py`; [python-api.md](python-api.md) shows how it is used.",
    ]
    for module, name in INTERFACE:
        value = getattr(importlib.import_module(module), name)
        lines += ["", f"## {module}.{name}", "", *_described(value, f"{name}{_signature(value)}")]
        for word, method in vars(value).items() if isinstance(value, type) else ():
            if not word.startswith("_") and isinstance(method, property | classmethod | staticmethod | FUNCTION):
                inner = method.fget if isinstance(method, property) else getattr(method, "__func__", method)
                if inner.__doc__:
                    form = word if isinstance(method, property) else f"{word}{_signature(inner)}"
                    lines += [f"### {name}.{word}", "", *_described(inner, form)]
    return "\n".join(lines).rstrip() + "\n"


FUNCTION = type(reference)


def _signature(value: object) -> str:
    """The parameters as they are written in the code, one a line where they are many."""
    if not callable(value):
        return ""
    found = python_inspect.signature(value)
    words, keyword = [], False
    for one in found.parameters.values():
        if one.kind is one.KEYWORD_ONLY and not keyword:
            words.append("*")
            keyword = True
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        written = getattr(one.annotation, "__forward_arg__", one.annotation)
        kind = "" if one.annotation is one.empty else f": {written}"
        shown = getattr(one.default, "__name__", None) or repr(one.default)
        default = "" if one.default is one.empty else f" = {shown}"
        words.append(f"{stars}{one.name}{kind}{default}")
    gives = "" if found.return_annotation in (found.empty, None, "None") else f" -> {found.return_annotation}"
    text = f"({', '.join(words)}){gives}"
    return text if len(text) < 100 else "(\n    " + ",\n    ".join(words) + f",\n){gives}"


def _described(value: object, form: str) -> list[str]:
    return ["```text", form, "", python_inspect.cleandoc(value.__doc__ or ""), "```", ""]


def main() -> None:
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
