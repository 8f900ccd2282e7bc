# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from sources.samples import entry, rows, tar_bytes

from erofs_edge.errors import ManifestError, VerificationError
from erofs_edge.manifest.model import Source
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.registry import SOURCES, load_source


def test_a_directory_becomes_roots(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top/tool").write_bytes(b"x")
    (tmp_path / "top/tool").chmod(0o700)
    tree = load_source(Source(directory=str(tmp_path / "top")), cache)
    assert rows(tree)[b"/tool"] == (0o100644, 0, 0, 0, (0, 0), b"", {}, b"x")
    assert tree.get("tool").origin == f"directory {os.path.relpath(tmp_path / 'top')}"


def test_a_tar_keeps_its_owners_and_must_have_its_hash(tmp_path: Path, cache: Cache) -> None:
    data = tar_bytes([entry("tool", b"x", mode=0o700, uid=7)])
    (tmp_path / "a.tar").write_bytes(data)
    source = Source(tar=str(tmp_path / "a.tar"), sha256=hashlib.sha256(data).hexdigest())
    assert rows(load_source(source, cache))[b"/tool"][:2] == (0o100700, 7)
    with pytest.raises(VerificationError):
        load_source(Source(tar=source.tar, sha256="1" * 64), cache)


@pytest.mark.parametrize("source", [Source(), Source(directory="a", tar="b")])
def test_exactly_one_kind(source: Source, cache: Cache) -> None:
    with pytest.raises(ManifestError, match="exactly one of directory, tar, oci"):
        load_source(source, cache)


def test_the_registry_has_the_manifests_words() -> None:
    assert set(SOURCES) <= set(Source.__struct_fields__)
