# SPDX-License-Identifier: Apache-2.0
"""The hash of a sparse file covers all its bytes, including holes; the record of outputs reads nothing twice."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.build.record import outputs, outputs_meanwhile
from erofs_edge.disk.sparse import PIECE, sparse_sha256

PLACES = st.lists(st.tuples(st.integers(0, 3 * PIECE), st.binary(min_size=1, max_size=70_000)), max_size=4)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 4 * PIECE), places=PLACES)
def test_it_is_the_hash_of_all_bytes(
    tmp_path_factory: pytest.TempPathFactory, size: int, places: list[tuple[int, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("sparse") / "file"
    with path.open("wb") as file:
        for at, data in places:
            file.seek(at)
            file.write(data)
        file.truncate(size)
    assert sparse_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_large_hole_before_and_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * 4096)
    assert sparse_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_gets_shorter_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    monkeypatch.setattr("erofs_edge.disk.sparse.data_extents", lambda fd, size: [(0, size + 5)])
    with pytest.raises(OSError, match="shorter"):
        sparse_sha256(path)


def test_what_is_known_of_outputs_is_not_read_again(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_bytes(name.encode() * 5)
    with outputs_meanwhile(tmp_path) as hashed:
        (tmp_path / "c").write_bytes(b"new")
    first = dict(hashed)
    assert sorted(first) == ["a", "b"]
    os.truncate(tmp_path / "a", 0)
    found = outputs(tmp_path, ["c", "b", "a"], first)
    assert list(found) == ["a", "b", "c"] and found["a"] == first["a"]
    assert found["c"] == {"size": 3, "sha256": hashlib.sha256(b"new").hexdigest()}
