# SPDX-License-Identifier: Apache-2.0
"""A cache of its own for each test, and no proxy of the host's."""

from __future__ import annotations

from pathlib import Path

import pytest

from erofs_edge.sources.cache import Cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
