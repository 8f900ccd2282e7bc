# SPDX-License-Identifier: Apache-2.0
"""A small build with slots, whose record has the entries that updates mention."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from made_build import Made, make_build

from erofs_edge.build.record import write_json
from erofs_edge.trust.key import KeySigner


@pytest.fixture(scope="session")
def owner() -> KeySigner:
    """The signer of builds and bundles in these tests."""
    return KeySigner("owner", rsa.generate_private_key(65537, 2048))


@pytest.fixture
def built(tmp_path: Path, owner: KeySigner) -> Made:
    """A separate build for each test."""
    return build_into(tmp_path / "build", owner)


@pytest.fixture
def another(tmp_path: Path, owner: KeySigner) -> Made:
    """A build with the same name and locks, and another system."""
    return build_into(tmp_path / "another", owner, b"of another system")


def build_into(folder: Path, owner: KeySigner, more: bytes = b"1") -> Made:
    """Make a small build, signed again with these entries in its record."""
    made = make_build(folder, owner, more)
    record = json.loads((made.out / "release.json").read_text())
    record["board"], record["arch"] = "made", "arm64"
    record["system"]["name"], record["sign"]["rollback_index"] = "made-system", 7
    write_json(made.out / "release.json", record)
    made.seal()
    return made
