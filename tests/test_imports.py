# SPDX-License-Identifier: Apache-2.0
"""The layers of ARCHITECTURE.md: who may import whom, and what a format may not know."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "erofs_edge"

BASE = {"errors", "forks", "globs", "homes", "locks", "names", "positions", "reading", "task_processes", "threads",
        "uuids", "writing"}  # fmt: skip
FORMATS = {"erofs", "verity", "trust", "disk", "boot", "sources"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "forks": set(),
    "globs": set(),
    "homes": {"errors"},
    "locks": set(),
    "names": set(),
    "positions": set(),
    "reading": {"positions"},
    "task_processes": {"errors", "forks"},
    "threads": set(),
    "uuids": set(),
    "writing": {"errors", "locks", "names", "positions"},
    "tree": BASE,
    "codec": BASE,
    "manifest": BASE,
    # formats and inputs: siblings only along the way of the data
    "sources": BASE | {"tree", "manifest"},
    "erofs": BASE | {"tree", "codec"},
    "rafs": BASE | {"tree", "codec", "erofs"},
    "verity": BASE,
    "trust": BASE,
    "transport": BASE,
    "disk": BASE | {"manifest"},
    "boot": BASE | {"tree", "manifest", "sources", "verity", "trust", "disk"},
    "toolbox": BASE | {"sources"},
    "product": BASE | {"manifest"},
    "u_boot": BASE | {"manifest", "sources", "toolbox"},
    "vm": BASE | {"tree", "sources", "boot", "toolbox"},
    "provision": BASE | {"tree", "manifest", "sources", "boot", "trust"},
    "diskless": BASE | {"tree", "manifest", "sources", "boot", "trust"},
    "installer": BASE | {"tree", "manifest", "sources", "boot", "trust", "disk", "erofs", "verity"},
    "trace": BASE | {"erofs", "verity"},
    # use cases
    "build": BASE | FORMATS | {"tree", "codec", "manifest", "trace", "u_boot", "vm"},
    "flash": BASE | {"disk", "manifest", "verity", "erofs", "transport"},
    "serve": BASE | {"disk", "transport"},
    "simulator": BASE | {"disk", "flash", "transport", "verity"},
    "release": BASE
    | {"boot", "build", "bundle", "disk", "flash", "manifest", "qemu", "report", "sbom", "sources", "trust", "verify"},
    "sbom": BASE | {"build", "erofs", "sources"},
    "registry": BASE | {"build", "disk", "erofs", "serve", "sources", "transport", "trust"},
    "channel": BASE | {"build", "disk", "sources", "trust"},
    "bundle": BASE | {"build", "disk", "flash", "trust", "verify", "verity"},
    "report": BASE | {"build", "erofs"},
    "diff": BASE | {"boot", "disk", "trust", "verity", "erofs"},
    "verify": BASE | {"build", "boot", "disk", "trust", "verity", "erofs"},
    "qemu": BASE
    | {"provision", "sources", "build", "boot", "disk", "trust", "verity", "erofs", "manifest", "toolbox"}
    | {"diskless", "serve", "trace", "u_boot"},
    "doctor": BASE | {"sources", "trust", "codec", "toolbox", "qemu"},
}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
MAY_IMPORT["__main__"] = {"cli"}

PURE = FORMATS - {"sources", "trust"} | {"errors", "globs", "names", "positions", "reading", "uuids", "tree"}
PURE |= {"codec", "manifest", "rafs", "transport"}
IMPURE = {"time", "datetime", "random", "secrets", "locale", "socket", "subprocess", "getpass", "platform", "click"}
IMPURE_NAMES = {"environ", "getenv", "uuid1", "uuid4", "urandom", "getlogin", "cpu_count"}
EXCEPTIONS = {
    ("transport/claim.py", "socket"): "a name that one program of this machine has",
    ("transport/fastboot/link.py", "socket"): "the thin part that owns the connection",
    ("transport/fastboot/link.py", "time"): "deadlines of a connection",
    ("transport/nbd/link.py", "socket"): "the thin part that owns the connection",
    ("transport/serial/port.py", "socket"): "the thin part that owns the line",
    ("disk/fat.py", "time"): "gmtime, of a time that is given",
    ("boot/uefi_vars.py", "time"): "gmtime, of a time that is given",
    ("erofs/options.py", "cpu_count"): "threads, on which no byte depends",
    ("erofs/check.py", "cpu_count"): "threads, on which no byte depends",
    ("erofs/extract.py", "cpu_count"): "threads, on which no byte depends",
}
"""(file, name) → why it may"""
ALSO = {
    ("erofs/api.py", "sources"): "the interface for users: a directory becomes a tree",
    ("sources/base.py", "erofs"): "an image of ours is a source, too",
}
"""(file, unit) → why it may import it"""

FILES = sorted(PACKAGE.rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of the modules that a file imports anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    parts = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_unit_has_its_place() -> None:
    assert {unit_of(path) for path in FILES} - {"__init__"} == set(MAY_IMPORT)


def test_architecture_tells_of_every_unit() -> None:
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    table = {row.partition("/")[0].removesuffix(".py") for row in re.findall(r"^\| `([^`]+)` \|", text, re.M)}
    assert table == set(MAY_IMPORT)
    (layers,) = re.findall(r"^`(__main__ → .*?)`", text, re.M | re.S)
    assert set(MAY_IMPORT) <= set(re.findall(r"\w+", layers))


@pytest.mark.parametrize("unit", MAY_IMPORT)
def test_layers_point_one_way(unit: str) -> None:
    for path in FILES:
        if unit_of(path) != unit:
            continue
        for name in imported(ast.parse(path.read_text())):
            parts = name.split(".")
            if parts[0] == PACKAGE.name and len(parts) > 1 and parts[1] in MAY_IMPORT:
                allowed = MAY_IMPORT[unit] | {unit}
                here = str(path.relative_to(PACKAGE))
                assert parts[1] in allowed or (here, parts[1]) in ALSO, f"{path}: {name}"


def test_units_form_no_cycle() -> None:
    graph = {unit: allowed - {unit} for unit, allowed in MAY_IMPORT.items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())[-2:] == ["cli", "__main__"]


def test_modules_form_no_cycle() -> None:
    names = {name_of(path) for path in FILES}
    graph = {}
    for path in FILES:
        found = set(imported(ast.parse(path.read_text()))) & names
        # "from package import module" needs the module, not what the package's own file defines
        graph[name_of(path)] = {n for n in found if not any(o.startswith(n + ".") for o in found)} - {name_of(path)}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(FILES)


@pytest.mark.parametrize("folder", ["benchmarks", "docs", "tools"])
def test_what_programs_beside_the_package_import_exists(folder: str) -> None:
    """Nothing else runs all of them after a change of the package."""
    files = [path for path in sorted((PACKAGE.parent / folder).rglob("*")) if path.is_file()]
    programs = [
        path for path in files if path.suffix == ".py" or path.read_bytes().startswith(b"#!/usr/bin/env python")
    ]
    assert programs
    for path in programs:
        for name in imported(ast.parse(path.read_text())):
            if name.startswith(f"{PACKAGE.name}."):
                module, _, last = name.rpartition(".")
                there = hasattr(importlib.import_module(module), last) or importlib.util.find_spec(name)
                assert there, f"{path}: {name}"


def test_formats_know_no_clock_no_chance_and_no_environment() -> None:
    found = set()
    for path in FILES:
        if unit_of(path) not in PURE:
            continue
        tree = ast.parse(path.read_text())
        here = str(path.relative_to(PACKAGE))
        found |= {(here, name.split(".")[0]) for name in imported(tree)} & {(here, name) for name in IMPURE}
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used |= {name.rsplit(".", 1)[-1] for name in imported(tree)}
        found |= {(here, name) for name in used & IMPURE_NAMES}
    assert found <= set(EXCEPTIONS)


def test_only_the_command_line_knows_click_and_prints() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        if unit_of(path) in ("cli", "__main__"):
            continue
        assert "click" not in set(imported(tree)), path
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"print", "exit", "input"}, path
        exits = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in ("exit", "_exit")]
        assert not exits, path
