# SPDX-License-Identifier: Apache-2.0
"""What a release is made of is committed: what Git ignores is not, and a Git that cannot say so is no yes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from erofs_edge.errors import ErofsEdgeError
from erofs_edge.release.make import refuse_dirty


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work tree with a board and an overlay, all of it committed."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    top = tmp_path / "product"
    (top / "overlay/etc").mkdir(parents=True)
    (top / "board.yaml").write_text("board: x\n")
    (top / "overlay/etc/motd").write_text("hello\n")
    (top / ".gitignore").write_text("*.o\n/made/\n")
    git = ["git", "-C", str(top), "-c", "user.name=x", "-c", "user.email=x@y"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], check=True)
    return top


def inputs(top: Path) -> list[Path]:
    return [top / "board.yaml", top / "overlay"]


def test_what_git_ignores_is_not_committed(checkout: Path) -> None:
    (checkout / "made").mkdir()
    (checkout / "made/program").write_text("x")
    refuse_dirty(inputs(checkout))
    (checkout / "overlay/left.o").write_text("x")
    with pytest.raises(ErofsEdgeError, match=r"differ from what is committed: overlay/left\.o$"):
        refuse_dirty(inputs(checkout))
    with pytest.raises(ErofsEdgeError, match=r"differ from what is committed: made/program$"):
        refuse_dirty([checkout / "made"])


def test_a_git_that_cannot_say_is_no_yes(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose checkout belongs to another user: Git refuses to look at it."""
    (checkout / "board.yaml").write_text("board: changed\n")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(ErofsEdgeError, match=r"git cannot say what is committed: .*ownership") as caught:
        refuse_dirty(inputs(checkout))
    assert "--allow-dirty" in (caught.value.hint or "")


def test_without_git(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout cannot be judged; what is in none need not be."""
    (tmp_path / "alone.yaml").write_text("board: x\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    refuse_dirty([tmp_path / "alone.yaml"])
    with pytest.raises(ErofsEdgeError, match="git does not start"):
        refuse_dirty(inputs(checkout))
