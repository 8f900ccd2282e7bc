# SPDX-License-Identifier: Apache-2.0
"""No network except where SECURITY.md names it.

A verb from whose module no module that can speak is imported, however far, cannot speak. The others that must not are
run in a namespace without a network.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.cli.main import VERBS

SPEAK = {"socket", "ssl", "http.client", "urllib.request", "asyncio", "socketserver", "tuf.ngclient"}
SPEAKERS = {
    "sources.http", "sources.oci.registry", "registry.remote", "registry.export", "channel.fetch", "channel.follow",
    "serve.export", "serve.server", "serve.writers", "cli.serve", "transport.fastboot.link", "transport.nbd.connect",
    "transport.serial.port", "transport.nbd.link", "qemu.attach", "qemu.web", "simulator.nbd", "simulator.fastboot",
    "simulator.shaped", "transport.claim",
}  # fmt: skip
"""modules of ours that import one of SPEAK"""
CERTIFICATES = {"cli.diskless"}
"""modules that use `ssl` only to load certificates from files"""
PAIRS = {"task_processes"}
"""modules that use `socket` only for pairs that connect a process with those which it has forked"""
SILENT = {"new", "trace", "explain", "schema", "fs", "diff", "avb", "keys", "sign", "completion"}
"""verbs that reach none of them"""
NAMED = {"lock", "release", "rebuild", "system", "provision", "tools", "push", "pull", "channel", "fastboot", "serve",
         "boot"}  # fmt: skip
"""verbs that SECURITY.md names"""
WITHOUT = {
    "verity": "verity format a.img",
    "build": "build $BOARD -o $OUT --relock-if-gone",
    "flash": "flash a.img --to card.img",
    "slots": "slots show $OUT/disk.img",
    "files": "files which -o $OUT /usr/bin/bash",
    "report": "report $OUT && test -s report.html",
    "verify": "verify $OUT/release.json --key $OUT/sign.pub.pem",
    "doctor": "doctor --json; test $? -le 1",
}
"""verb → a shell line; $E is the program, $OUT a build of $BOARD, whose inputs are cached"""
ELSEWHERE = {"bundle", "forecast", "diskless", "installer", "sbom"}
"""They read builds, as those do, and take too long to be run once more."""


def imports(repository: Path) -> dict[str, set[str]]:
    """Module of ours → all that it imports anywhere, ours by their names without 'erofs_edge.'."""
    top = repository / "erofs_edge"
    found: dict[str, set[str]] = {}
    for path in top.rglob("*.py"):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        name = ".".join(path.relative_to(top).with_suffix("").parts).removesuffix(".__init__")
        found[name] = {one.removeprefix("erofs_edge.") for one in names}
    return found


def test_every_verb_is_named_or_without(repository: Path) -> None:
    groups = [SILENT, NAMED, set(WITHOUT), ELSEWHERE]
    assert set().union(*groups) == set(VERBS), "a new verb belongs into this file, and into SECURITY.md if it speaks"
    assert sum(map(len, groups)) == len(VERBS)
    text = (repository / "SECURITY.md").read_text().partition("The commands that use a network")[2]
    rows = "\n".join(row.split("|")[1] for row in text.splitlines() if row.startswith("| `"))
    named = {words.split()[0] for words in re.findall(r"`([a-z-][a-z -]+)`", rows)}
    assert named >= NAMED
    assert named - NAMED == {"build", "flash", "slots", "verify", "verity"}, "of these SECURITY.md says when they speak"


def test_only_these_modules_can_speak(repository: Path) -> None:
    found = {name for name, imported in imports(repository).items() if imported & SPEAK}
    assert found == SPEAKERS | CERTIFICATES | PAIRS, "SECURITY.md and this list say who uses a network"


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_a_pair_of_sockets_is_all_that_is_made(name: str, repository: Path) -> None:
    tree = ast.parse((repository / f"erofs_edge/{name.replace('.', '/')}.py").read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "socket"
    }
    assert used == {"socket", "socketpair", "AF_UNIX", "SOCK_SEQPACKET"}  # the first one in annotations
    assert not any(isinstance(node, ast.Attribute) and node.attr in ("connect", "bind") for node in ast.walk(tree))


def test_silent_verbs_reach_no_module_that_speaks(repository: Path) -> None:
    graph = imports(repository)
    for verb in SILENT:
        seen: set[str] = set()
        ahead = [VERBS[verb][0].removeprefix("erofs_edge.")]
        while ahead:
            name = ahead.pop()
            if name in graph and name not in seen:
                seen.add(name)
                ahead += graph[name]
        assert not seen & SPEAKERS, verb


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("isolated")
    (folder / "a.img").write_bytes(b"a block " * 4096)
    namespace = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]

    def run(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*namespace, "sh", "-c", line], cwd=folder, env=os.environ | environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    return run


def test_there_is_no_network_here(isolated: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = isolated("tail -n +3 /proc/net/dev | cut -d: -f1")
    assert done.stdout.split() == ["lo"], done.stderr


@pytest.mark.parametrize("verb", WITHOUT)
def test_works_without(
    verb: str,
    isolated: Callable[..., subprocess.CompletedProcess[str]],
    stock: Callable[[str], Path],
    edge: str,
    repository: Path,
) -> None:
    board = str(repository / "boards/qemu-aarch64.yaml")
    done = isolated(f"$E {WITHOUT[verb]}", E=edge, OUT=str(stock("qemu-aarch64")), BOARD=board)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
