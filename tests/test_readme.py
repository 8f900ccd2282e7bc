# SPDX-License-Identifier: Apache-2.0
"""Every command of the README does what it says, in a checkout of one's own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(1200)]
README = Path(__file__).parent.parent / "README.md"
COMMANDS = re.findall(r"^\| `(erofs-edge [^`]+)`", README.read_text(), re.M)


@pytest.fixture(scope="module")
def checkout(
    tmp_path_factory: pytest.TempPathFactory,
    repository: Path,
    stock: Callable[[str], Path],
    oracle: Callable[[str], str],
) -> Path:
    return check_out(tmp_path_factory.mktemp("readme"), repository, stock)


def check_out(top: Path, repository: Path, stock: Callable[[str], Path]) -> Path:
    for name in ("boards", "manifests", "tools"):
        shutil.copytree(repository / name, top / name)
    for board in ("qemu-aarch64", "rpi4"):
        for lock in (stock(board) / "locks").glob("*.lock"):
            shutil.copy(lock, next(top.rglob(lock.name.replace(".board.lock", ".lock"))))
        shutil.copytree(stock(board), top / "out" / board, copy_function=os.link)
    (top / "DIR/sub").mkdir(parents=True)
    (top / "DIR/sub/file").write_text("text\n" * 1000)
    return top


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, checkout: Path, edge: str, request: pytest.FixtureRequest) -> None:
    words = shlex.split(command.replace("/dev/sdX", "card.img"))[1:]
    if words[0] == "boot":  # tests/qemu/test_road.py starts the same machine in earnest
        request.getfixturevalue("replayed")
        words.append("--smoke")
    if words[:2] == ["verity", "format"]:
        image = checkout / "IMG"
        image.write_bytes(os.urandom(3 * 4096))
    if words[0] == "serve":
        _serve([edge, *words, "--port", "0"], checkout)
        return
    done = subprocess.run([edge, *words], cwd=checkout, capture_output=True, text=True, check=False)
    if words[0] == "lock" and done.returncode:  # no mirror in reach: everything else works without one
        assert "the package index cannot be fetched or verified" in done.stderr and "hint:" in done.stderr
        return
    expected = 5 if words[0] == "diff" else 0  # two systems differ
    assert done.returncode == expected, f"{done.stdout}\n{done.stderr}"


def _serve(command: list[str], folder: Path) -> None:
    """It runs until it is told to end, and then says what was read."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert server.stderr.readline().startswith("nbd://127.0.0.1:")
        server.terminate()
        out, _ = server.communicate(timeout=30)
    assert "touched" in out


@pytest.mark.usefixtures("replayed")
def test_make_demo(
    tmp_path: Path, repository: Path, stock: Callable[[str], Path], edge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make demo` is tools/bootstrap, which made the environment that runs this, and tools/demo. In a checkout in which
    nobody has locked anything anew: what boots must be what booted."""
    checkout = check_out(tmp_path / "checkout", repository, stock)
    monkeypatch.setenv("DEMO", "quick")
    environment = str(Path(edge).parent.parent)
    done = subprocess.run(
        ["tools/demo", environment], cwd=checkout, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "slot a is up" in done.stdout
