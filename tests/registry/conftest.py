# SPDX-License-Identifier: Apache-2.0
"""A real registry (Debian's docker-registry), a cache of its own for each test, and no login of the host's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sources.oci.registries import real_registry

from erofs_edge.sources import transfer
from erofs_edge.sources.cache import VARIABLE, Cache


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, oracle: Callable[[str], str]) -> Iterator[int]:
    """Its port."""
    with real_registry(oracle("docker-registry"), tmp_path_factory.mktemp("registry")) as port:
        yield port


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return Cache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
