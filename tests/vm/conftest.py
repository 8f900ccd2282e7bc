# SPDX-License-Identifier: Apache-2.0
"""A cache of its own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from erofs_edge.sources.cache import Cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")
