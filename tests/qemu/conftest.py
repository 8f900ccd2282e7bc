# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a build's output folder, a program that pretends to be QEMU, recorded boots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from fake_machine import BOARD, FakeQemu, make_build

from erofs_edge.manifest.model import Board


@pytest.fixture
def board() -> Board:
    return BOARD


@pytest.fixture(scope="session")
def rsa_key() -> RSAPrivateKey:
    return generate_private_key(65537, 2048)


@pytest.fixture
def fake_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQemu:
    folder = tmp_path / "fake"
    folder.mkdir()
    fake = FakeQemu(folder)
    monkeypatch.setenv("EROFS_EDGE_QEMU", str(fake.program))
    return fake


@pytest.fixture
def built(tmp_path: Path, rsa_key: RSAPrivateKey) -> Path:
    """An output folder with everything that a boot needs; FIT and system are small stand-ins."""
    return make_build(tmp_path / "out", rsa_key)


@pytest.fixture
def recorded() -> Callable[[str], str]:
    """recorded("good"): the console of a recorded boot."""
    return lambda name: (Path(__file__).parent / "data" / f"{name}.txt").read_bytes().decode()
