# SPDX-License-Identifier: Apache-2.0
"""The documents are run, and what they take from the code is fresh.

In README.md and docs/**/*.md

    <!-- file: boards/x.yaml -->   before a fenced block writes that file
    <!-- run -->                   before a fenced console block runs its ``$`` lines with sh; ``exit N`` may follow
    <!-- long -->                  the same, in the long run only: builds, boots

Blocks of one document run in order in one folder of their own, which holds copies of boards/ and manifests/.
The lines below a command are what it must print (both streams); a line ``...`` stands for any lines.
A command without lines below it may print anything.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

import erofs_edge.errors
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.qemu.scenario import FAULTS
from erofs_edge.qemu.tamper import TAMPERS, UEFI_TAMPERS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]

BLOCK = re.compile(
    r"^<!-- (?P<marker>file: (?P<file>\S+)|(?P<long>long)|run(?:: exit (?P<code>\d+))?) -->\n+"
    r"^```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Command:
    """A `$` line of a console block and the lines below it."""

    line: str
    expected: list[str]


def commands(body: str) -> list[Command]:
    found: list[Command] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:], []))
        else:
            assert found, f"output before the first command: {line}"
            found[-1].expected.append(line)
    return found


def matches(expected: list[str], printed: str) -> bool:
    pattern = "".join("(?:.*\n)*?" if line == "..." else re.escape(line) + "\n" for line in expected)
    return re.fullmatch(pattern, printed) is not None


def workspace(folder: Path) -> dict[str, str]:
    """Fill the folder that a document's commands run in; their environment."""
    for name in ("boards", "manifests"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True)
    own = {"EROFS_EDGE_KEYS": str(folder / ".own/keys"), "EROFS_EDGE_CHANNELS": str(folder / ".own/channels")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, **own, "PATH": path, "COLUMNS": "80"}


def blocks(document: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(document.read_text(encoding="utf-8")))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_examples_do_what_is_printed(document: Path, tmp_path: Path) -> None:
    run_blocks([block for block in blocks(document) if not block["long"]], tmp_path)


@pytest.mark.long
@pytest.mark.qemu
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if any(block["long"] for block in blocks(path))],
    ids=lambda path: path.name,
)
def test_all_examples_do_what_is_printed(document: Path, tmp_path: Path) -> None:
    run_blocks(blocks(document), tmp_path)


def run_blocks(found: list[re.Match[str]], tmp_path: Path) -> None:
    """Write the files and run the commands of a document, in order."""
    environment = workspace(tmp_path)
    for block in found:
        if block["file"]:
            path = tmp_path / block["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block["body"])
            continue
        assert block["language"] == "console", block[0]
        steps = commands(block["body"])
        for step in steps:
            done = subprocess.run(
                ["sh", "-c", f"exec 2>&1\n{step.line}"],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            code = int(block["code"] or 0) if step is steps[-1] else 0
            assert done.returncode == code, f"$ {step.line}\n{done.stdout}"
            if step.expected:
                assert matches(step.expected, done.stdout), f"$ {step.line}\n{done.stdout}"


def test_the_matcher_is_strict() -> None:
    assert matches(["a", "...", "c"], "a\nb\nb\nc\n")
    assert matches(["a", "...", "c"], "a\nc\n")
    assert not matches(["a", "...", "c"], "a\nb\n")
    assert not matches(["a"], "a\nb\n")
    assert not matches(["a."], "ab\n")


def test_generated_documents_are_fresh() -> None:
    generated = runpy.run_path(str(ROOT / "docs/generate.py"))["generated"]()
    stale = [path.name for path, text in generated.items() if not path.exists() or path.read_text("utf-8") != text]
    assert not stale, "run: python docs/generate.py"
    assert {"board.schema.json", "manifest.schema.json", "lock.schema.json", "manifests.md"} <= {
        p.name for p in generated
    }


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in DOCUMENTS:
        text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
        anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)}
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if "://" in target:
                continue
            assert not path or (document.parent / path).exists(), f"{document.name}: {target}"
            assert path or anchor in anchors, f"{document.name}: {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached = {start := ROOT / "README.md"}
    queue = [start]
    while queue:
        document = queue.pop()
        links = re.findall(r"\]\(([^)\s#]+\.md)", document.read_text(encoding="utf-8"))
        new = {(document.parent / link).resolve() for link in links if "://" not in link} - reached
        reached |= new
        queue += new
    assert {path.name for path in set(DOCUMENTS) - reached} == set()


def test_exit_codes_are_documented() -> None:
    rows = re.findall(r"^\| (\d+) \|[^|]*\|([^|]*)\|$", (ROOT / "docs/exit-codes.md").read_text(), re.M)
    documented = {name: int(code) for code, names in rows for name in re.findall(r"`(\w+)`", names)}
    actual = {
        name: error.exit_code
        for name, error in vars(erofs_edge.errors).items()
        if isinstance(error, type) and issubclass(error, ErofsEdgeError)
    }
    assert documented == actual


def test_scenarios_are_documented() -> None:
    """Each of --tamper and --scenario is in the first column of a table, and a table has none that is not there."""
    qemu, slots, uefi = ((ROOT / f"docs/{name}.md").read_text() for name in ("qemu", "slots", "uefi"))
    damage = re.search(r"^\| WHAT \|.*?\n\n", qemu, re.M | re.S)
    faults = re.search(r"^\| WHAT \|.*?\n\n", slots, re.M | re.S)
    assert damage and faults
    firsts = [re.findall(r"^\| (`[^|]+) \|", table[0], re.M) for table in (damage, faults)]
    tampers, scenarios = ({word for first in column for word in re.findall(r"`([^`]+)`", first)} for column in firsts)
    assert tampers | {"fec"} == set(TAMPERS) and "`fec`" in qemu, "fec, which boots, is in the text below"
    assert scenarios == set(FAULTS)
    vbmeta = {name for name, tamper in UEFI_TAMPERS.items() if tamper.content == "vbmeta"}
    said = uefi.partition("## Damage that must not boot")[2].partition("\n\n## ")[0]
    assert set(re.findall(r"`([^`]+)`", said)) >= set(UEFI_TAMPERS) - vbmeta


def test_dependencies_are_justified() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs/dependencies.md").read_text()
    names = [re.split(r"[<>=]", name)[0] for name in project["dependencies"]]
    assert sorted(re.findall(r"^\| `([\w.-]+)` \|", text, re.M)) == sorted(names)
    for name in [*names, *(re.split(r"[<>=\[]", item)[0] for item in project["optional-dependencies"]["dev"])]:
        assert f"`{name}`" in text, name
