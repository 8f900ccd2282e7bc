# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path

import msgspec
import pytest

from erofs_edge.errors import CapacityError, SourceError
from erofs_edge.sources.cache import Cache, cache_root


class Note(msgspec.Struct, array_like=True):
    text: str
    number: int = 0


class Other(msgspec.Struct, array_like=True):
    number: int


def put(cache: Cache, data: bytes) -> tuple[str, Path]:
    sha256 = hashlib.sha256(data).hexdigest()
    with cache.writing(cache.blob_path(sha256)) as file:
        file.write(data)
    return sha256, cache.blob_path(sha256)


def test_the_root_follows_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EROFS_EDGE_CACHE", str(tmp_path / "there"))
    assert cache_root() == tmp_path / "there" == Cache().root
    monkeypatch.delenv("EROFS_EDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "erofs-edge" / "sources"


def test_a_blob_is_there_or_not(cache: Cache) -> None:
    assert cache.blob("0" * 64) is None
    sha256, path = put(cache, b"content")
    assert cache.blob(sha256) == path
    assert path.read_bytes() == b"content"
    assert cache.digest(path) == sha256


def test_a_blob_that_has_changed_is_dropped(cache: Cache) -> None:
    sha256, path = put(cache, b"content")
    assert cache.blob(sha256) == path
    path.write_bytes(b"rotten!")
    assert cache.digest(path) == sha256, "proved before: the name is believed within one run"
    assert cache.blob(sha256) is None
    assert not path.exists()
    assert Cache(cache.root).blob(sha256) is None


def test_a_failed_write_leaves_nothing(cache: Cache) -> None:
    final = cache.derived_path("kind", "a" * 64)
    with pytest.raises(ZeroDivisionError), cache.writing(final) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert [path for path in cache.root.rglob("*") if path.is_file()] == []


def test_what_killed_processes_leave_goes(cache: Cache) -> None:
    (cache.root / "tmp").mkdir(parents=True)
    old, young = cache.root / "tmp/old", cache.root / "tmp/young"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 9999, time.time() - 9999))
    put(cache, b"content")
    assert not old.exists()
    assert young.exists()


def test_no_space_is_a_capacity_error(cache: Cache) -> None:
    with pytest.raises(CapacityError, match="no space left") as caught, cache.writing(cache.blob_path("b" * 64)):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "EROFS_EDGE_CACHE" in str(caught.value.hint)


def test_a_cache_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot write"):
        put(Cache(tmp_path / "file"), b"x")


def test_records(cache: Cache) -> None:
    assert cache.load_record("kind", "k" * 64, Note) is None
    cache.store_record("kind", "k" * 64, Note("hello", 3))
    assert cache.load_record("kind", "k" * 64, Note) == Note("hello", 3)
    path = cache.derived_path("kind", "k" * 64)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert cache.load_record("kind", "k" * 64, Note) is None
    assert not path.exists()
    cache.store_record("kind", "k" * 64, Note("hello", 3))
    assert cache.load_record("kind", "k" * 64, Other) is None, "another shape is no record"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert cache.load_record("kind", "k" * 64, Note) is None
