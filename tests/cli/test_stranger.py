# SPDX-License-Identifier: Apache-2.0
"""Mistakes of a new user: each is named, with the step that fixes it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli
from erofs_edge.cli.system import _board
from erofs_edge.erofs.api import open as open_image
from erofs_edge.errors import ErofsEdgeError, SourceError
from erofs_edge.manifest import stock
from erofs_edge.product import make_product
from erofs_edge.sources.cache import Cache
from erofs_edge.trust.files import development_key, list_keys


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], prog_name="erofs-edge")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a file, an empty one, a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("slots show empty", 2, "empty: the file is empty"),
        ("slots show none", 2, "none: no such file or device"),
        ("release --check folder", 1, "nothing has been built here"),
        ("sign folder --key dev:dev", 2, "its record: folder/release.json"),
        ("build folder", 3, "folder: this is a folder, not a board file"),
        ("new file/below/product --board rpi4", 2, "file: this is a file, not a folder"),
        ("serve file --bind 127.0.0.1:99", 2, "hint: --port 99"),
        ("flash file --to serial:///none --allow-unsigned", 6, "hint: plug the adapter in"),
    ],
)
def test_a_mistake_and_what_mends_it(words: str, code: int, said: str, folder: Path) -> None:
    done = run(*words.split())
    assert (done.exit_code, said in done.stderr) == (code, True), done.stderr
    assert "[Errno" not in done.stderr
    assert sorted(os.listdir(folder)) == ["empty", "file", "folder"]


def test_the_board_file_in_a_folder_is_named(folder: Path) -> None:
    (folder / "folder/boards").mkdir()
    (folder / "folder/boards/mine.yaml").write_text("board: mine\n")
    assert "hint: did you mean folder/boards/mine.yaml?" in run("explain", "folder").stderr


def test_a_stock_board_is_named_as_it_is_called(
    repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even with an installed package, whose files have long paths."""
    for kind in stock.FOLDERS:
        shutil.copytree(repository / kind, folder / "installed" / kind)
    monkeypatch.setattr(stock, "SHIPPED", folder / "installed")
    for words in (("flash", "rpi4", "--to", "card.img"), ("serve", "rpi4"), ("flash", "rpi4", "--to", "c", "-o", "o")):
        assert "hint: erofs-edge build rpi4" in run(*words).stderr
    assert _board(folder / "mine.yaml", None) == folder / "installed/boards/qemu-aarch64.yaml"


def test_a_full_disk_while_a_product_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ErofsEdgeError, match="cannot write: No space left on device") as caught:
        make_product(folder / "mine", board="rpi4")
    assert caught.value.where == str(folder / "mine")
    assert sorted(os.listdir(folder)) == ["empty", "file", "folder"]


def test_keys_in_a_home_of_somebody_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *_: object, **__: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setenv("EROFS_EDGE_KEYS", str(folder / "keys"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", denied)
        for call in (lambda: development_key("dev"), lambda: list_keys(folder / "keys")):
            with pytest.raises(ErofsEdgeError, match="cannot read: Permission denied") as caught:
                call()
            assert "EROFS_EDGE_KEYS" in (caught.value.hint or "")


def test_a_folder_in_place_of_an_image(folder: Path) -> None:
    with pytest.raises(ErofsEdgeError, match="this is a folder, not an image") as caught:
        open_image(folder / "folder")
    assert caught.value.where == str(folder / "folder")


def test_a_cache_that_is_no_folder(folder: Path) -> None:
    with pytest.raises(SourceError, match="cannot read: Not a directory") as caught:
        Cache(folder / "file").blob("ab" * 32)
    assert "EROFS_EDGE_CACHE" in (caught.value.hint or "")
