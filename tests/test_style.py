# SPDX-License-Identifier: Apache-2.0
"""How the sources look, as tests: ruff, mypy, licence lines, sizes, and names that must not be here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 480
MAX_FUNCTION_LINES = 60
HASH_COMMENTS = {".py", ".sh", ".yaml", ".yml", ".toml"}
HOSTS = {
    "192.0.2.1",  # RFC 5737: for documentation
    "slsa.dev",
    "in-toto.io",
    "example.com",
    "www.w3.org",
    "json-schema.org",
    "www.apache.org",
    "127.0.0.1",
    "localhost",
    "[::1]",
}
"""what a URL in this project may name; also *.test and *.example (RFC 2606)"""


def project_files() -> list[Path]:
    """What git knows or would add; outside a checkout, everything that is not hidden."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = done.stdout.split("\0") if not done.returncode else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*")]
    hidden = re.compile(r"(^|/)\.(?!ci/)|(^|/)(__pycache__|out|build)/")
    return [ROOT / name for name in names if name and not hidden.search(name) and (ROOT / name).is_file()]


FILES = project_files()
SOURCES = [path for path in FILES if path.suffix == ".py"]


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    "command", [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)], ids=" ".join
)
def test_linters_are_content(command: tuple[str, ...]) -> None:
    run(*command)


def test_every_source_starts_with_its_licence() -> None:
    for path in FILES:
        first = path.read_bytes()[:400].decode("utf-8", "replace").splitlines()[:2]
        script = bool(first) and first[0].startswith("#!")
        if path.suffix in HASH_COMMENTS - {".toml"} or script or path.name == "Makefile":
            if path.is_relative_to(ROOT / "manifests/files"):
                continue  # content of images
            assert "# SPDX-License-Identifier: Apache-2.0" in first, path


def test_no_file_is_a_monolith() -> None:
    too_long = {
        str(path.relative_to(ROOT)): n for path in SOURCES if (n := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not too_long


def test_no_function_is_longer_than_a_screen() -> None:
    for path in (ROOT / "erofs_edge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= MAX_FUNCTION_LINES, f"{path.relative_to(ROOT)}: {node.name} has {length} lines"


def test_every_public_thing_says_what_it_is() -> None:
    for path in (ROOT / "erofs_edge").rglob("*.py"):
        tree = ast.parse(path.read_text())
        if tree.body and path.name != "__init__.py":
            assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.relative_to(ROOT)}: {node.name}"


def test_no_line_names_a_server() -> None:
    """Mirrors and registries are the host's to name."""
    servers = re.compile("debian" + r"\.org|pypi" + r"\.org|python" + r"hosted\.|kernel" + r"\.org/|docker" + r"\.io")
    url = re.compile(r"\b(?:https?|ftp)://(?:[^/@\s\"']*@)?(\[[^\]]*\]|[A-Za-z0-9.-]+)")
    for path in FILES:
        text = path.read_bytes().decode("utf-8", "replace")
        assert not servers.search(text), f"{path.relative_to(ROOT)}: {servers.search(text)}"
        for host in url.findall(text):
            fine = host in HOSTS or host.endswith((".test", ".example")) or "." not in host
            assert fine, f"{path.relative_to(ROOT)}: {host}"


def test_no_line_names_this_machine() -> None:
    places = {str(ROOT) + "/", str(Path.home() / ".cache")}
    for path in FILES:
        text = path.read_bytes().decode("utf-8", "replace")
        for place in places:
            assert place not in text, f"{path.relative_to(ROOT)}: {place}"


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(TO" + "DO|FIX" + "ME|XX" + r"X)\b")
    for path in SOURCES:
        assert not later.search(path.read_text()), path
