# SPDX-License-Identifier: Apache-2.0
"""Reading to the last byte, also where the kernel gives less than it was asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from erofs_edge import reading
from erofs_edge.reading import read_exactly


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    whole = os.pread
    monkeypatch.setattr(reading, "pread", lambda fd, length, offset: whole(fd, min(length, 7), offset))
    with (tmp_path / "file").open("rb") as file:
        assert read_exactly(file.fileno(), 50, 10) == bytes(range(10, 60))
        assert read_exactly(file.fileno(), 50, 90) == bytes(range(90, 100))
        assert read_exactly(file.fileno(), 0, 5) == read_exactly(file.fileno(), 5, 100) == b""
