# SPDX-License-Identifier: Apache-2.0
"""The provisioning system that is kept for the next start in QEMU: the same as a new one, and never an old one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from erofs_edge.errors import CapacityError
from erofs_edge.manifest.load import load_board
from erofs_edge.manifest.lockfile import load_lock, lock_path
from erofs_edge.manifest.model import Board, Lock
from erofs_edge.provision import kept
from erofs_edge.provision.initramfs import Provisioning
from erofs_edge.sources.cache import Cache

Made = list[Board]


@pytest.fixture
def stock(repository: Path) -> tuple[Board, Lock]:
    loaded = load_board(repository / "boards/qemu-aarch64.yaml")
    return loaded.value, load_lock(lock_path(loaded.path))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """The boards for which one was made, which needs no packages here; each one is different."""
    boards: Made = []

    def make(board: Board, _lock: Lock, _cache: Cache, *, packed: bool) -> Provisioning:
        assert not packed
        boards.append(board)
        return Provisioning("6.12", b"kernel", b"initramfs %d" % len(boards), None, 7)

    monkeypatch.setattr(kept, "build_provisioning", make)
    return boards


def test_it_is_made_once(stock: tuple[Board, Lock], made: Made, tmp_path: Path) -> None:
    for _ in range(3):
        again = kept.kept_provisioning(*stock, Cache(tmp_path))
        assert again == Provisioning("6.12", b"kernel", b"initramfs 1", None, 7)
    assert len(made) == 1


def test_it_is_made_again_from_anything_else(
    stock: tuple[Board, Lock], made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, lock = stock
    folder = tmp_path / "package"
    folder.mkdir()
    for path in kept.FOLDER.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(kept, "FOLDER", folder)
    cache = Cache(tmp_path / "cache")
    kept.kept_provisioning(board, lock, cache)
    others: list[Callable[[], tuple[Board, Lock]]] = [
        lambda: (replace(board, boot=replace(board.boot, modules=["i6300esb", "dummy"])), lock),
        lambda: (replace(board, boot=replace(board.boot, storage="mmc")), lock),
        lambda: (board, replace(lock, date=lock.date + 1)),
        lambda: (board, stock[1]) if (folder / "work.sh").write_text("#!/bin/sh\n") else stock,
        lambda: (board, stock[1]) if (folder / "provisioning.lock").write_text("{}") else stock,
    ]
    for count, other in enumerate(others, 2):
        changed = other()
        for _ in range(2):
            assert kept.kept_provisioning(*changed, cache).initramfs == b"initramfs %d" % count
        assert len(made) == count
    assert len([path for path in (tmp_path / "cache/derived").rglob("*") if path.is_file()]) == 1


def test_one_that_is_damaged_is_made_again(stock: tuple[Board, Lock], made: Made, tmp_path: Path) -> None:
    kept.kept_provisioning(*stock, Cache(tmp_path))
    (path,) = (path for path in (tmp_path / "derived").rglob("*") if path.is_file())
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    assert kept.kept_provisioning(*stock, Cache(tmp_path)).initramfs == b"initramfs 2"
    assert len(made) == 2


def test_a_full_disk_is_no_hindrance(
    stock: tuple[Board, Lock], made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise CapacityError("no space left for the cache")

    monkeypatch.setattr(Cache, "store_record", full)
    for count in (1, 2):
        assert kept.kept_provisioning(*stock, Cache(tmp_path)).initramfs == b"initramfs %d" % count
    assert len(made) == 2


def test_what_is_kept_is_decoded_as_it_was() -> None:
    value = kept._Kept("inputs", "6.12", b"\0\xff", b"", b"tree", 9)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kept._Kept) == value
