# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: the reference tools, and what needs root."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from first_boot import FirstBoot, boot, replay
from hypothesis import settings
from mounts import own_mounts

from erofs_edge.errors import ToolError
from erofs_edge.toolbox.prefix import find

# an example's duration depends on other load, not on the code; the examples are the same in every run, in CI or not:
# random ones are for the campaigns (make fuzz)
settings.register_profile("any-machine", deadline=None, derandomize=True, database=None)
settings.load_profile("any-machine")
# a process of ours that dies by a signal prints the line, also one that a test starts
os.environ.setdefault("PYTHONFAULTHANDLER", "1")
# this signal is ignored if the tests run in the background, and the programs that tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
# a killed test leaves no mount behind, nor a loop device; without permission to mount, none of this is needed
if os.geteuid() == 0:
    own_mounts()


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], str]:
    """`oracle("mkfs.erofs-1.9")`: the path of a reference tool in the private prefix; missing fails the test."""

    def path_of(name: str) -> str:
        try:
            return str(find(name, host=False))
        except ToolError:
            pytest.fail(f"reference tool {name} is missing: run 'erofs-edge tools fetch --oracles' (make test does)")

    return path_of


@pytest.fixture
def needs_root() -> None:
    """For checks with the kernel's own mount: they run as root, which CI is."""
    if os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip("the kernel's own mount needs root")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's top folder."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def edge() -> str:
    """The installed console script."""
    return str(Path(sys.executable).with_name("erofs-edge"))


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory, repository: Path, edge: str) -> Callable[[str], Path]:
    """`stock("qemu-aarch64")`: the output folder of a stock board, built once for all workers; read only.

    If the mirror has moved on, the build locks again in its own folder and continues.
    """
    shared = tmp_path_factory.getbasetemp().parent / "stock"
    shared.mkdir(exist_ok=True)

    def built(board: str) -> Path:
        out = shared / board
        with (shared / f"{board}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            command = [edge, "build", f"boards/{board}.yaml", "-o", str(out), "--relock-if-gone"]
            done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return out

    return built


@pytest.fixture(scope="session")
def first_boot(
    tmp_path_factory: pytest.TempPathFactory, stock: Callable[[str], Path], repository: Path, edge: str
) -> FirstBoot:
    """The stock board's first start in real QEMU, once for all tests of the group "qemu"."""
    return boot(edge, repository, stock("qemu-aarch64"), tmp_path_factory.mktemp("first-boot") / "console.log")


@pytest.fixture
def replayed(first_boot: FirstBoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine that is started prints what the first one printed."""
    program = tmp_path / "qemu-system-aarch64"
    replay(first_boot, program)
    monkeypatch.setenv("EROFS_EDGE_QEMU", str(program))
