# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: the reference tools, and what needs root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.errors import ToolError
from erofs_edge.toolbox.prefix import find


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
    """For checks with the kernel's own mount: they run as root, and CI is root."""
    if os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip("the kernel's own mount needs root")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's top folder."""
    return Path(__file__).parent.parent
