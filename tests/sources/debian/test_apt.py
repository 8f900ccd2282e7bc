# SPDX-License-Identifier: Apache-2.0
"""The isolated apt against a small signed archive."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import socket
from pathlib import Path

import pytest

from erofs_edge.errors import MirrorError, SourceError
from erofs_edge.sources.debian.apt import _failure, open_apt
from erofs_edge.sources.debian.mirror import Mirror
from erofs_edge.sources.debian.supply import Supply

DATA = Path(__file__).parent / "data"


@pytest.fixture
def archive() -> Mirror:
    """The archive that data/make-archive made and signed."""
    return Mirror({"debian": f"file:{DATA}/archive"}, DATA / "archive.gpg")


def test_closure_is_pinned_and_sorted(archive: Mirror) -> None:
    with open_apt(archive, "trixie", "arm64") as apt:
        found = apt.closure(["app"])
        assert [(p.name, p.version, p.archive) for p in found] == [
            ("app", "1:2.0-1", "debian-security"),
            ("base", "1.0", "debian"),
            ("lib", "3", "debian"),
        ]
        assert found[1].sha256 == hashlib.sha256(b"base").hexdigest()
        assert found[1].path == "pool/main/b/base_1.0_arm64.deb"
        assert found[1].size == 10
        assert [p.name for p in apt.describe(["app"])] == ["app"]
        assert apt.release_date() == 1767520800


def test_unknown_package_and_unmet_dependency_say_which(archive: Mirror) -> None:
    with open_apt(archive, "trixie", "arm64") as apt:
        with pytest.raises(SourceError, match="no such package: nonesuch"):
            apt.closure(["app", "nonesuch"])
        with pytest.raises(SourceError, match="no such package: nonesuch"):
            apt.describe(["nonesuch", "app"])
        with pytest.raises(SourceError, match="nowhere"):
            apt.closure(["broken"])


def test_index_signed_by_another_key_is_refused(archive: Mirror) -> None:
    stranger = Mirror(archive.archives, DATA / "stranger.gpg")
    with pytest.raises(MirrorError, match="fetched or verified"), open_apt(stranger, "trixie", "arm64"):
        pass


def test_changed_index_is_refused(archive: Mirror, tmp_path: Path) -> None:
    copy = tmp_path / "archive"
    shutil.copytree(archive.archives["debian"].removeprefix("file:"), copy)
    index = copy / "dists/trixie/main/binary-arm64/Packages.gz"
    index.write_bytes(gzip.compress(gzip.decompress(index.read_bytes()).replace(b"1.0", b"6.6"), mtime=0))
    with pytest.raises(MirrorError), open_apt(Mirror({"debian": f"file:{copy}"}, archive.keyring), "trixie", "arm64"):
        pass


def test_mirror_that_is_not_there(archive: Mirror, tmp_path: Path) -> None:
    nowhere = Mirror({"debian": f"file:{tmp_path}/none"}, archive.keyring)
    with pytest.raises(MirrorError), open_apt(nowhere, "trixie", "arm64"):
        pass


def test_an_archive_that_cannot_be_reached_is_an_error(archive: Mirror) -> None:
    """apt alone goes on with what it has, and would resolve to older packages: those without security updates."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}/debian"
        half = Mirror(archive.archives | {"debian-security": uri}, archive.keyring)
        with pytest.raises(MirrorError, match="Could not connect"), open_apt(half, "trixie", "arm64"):
            pass


def test_a_full_disk_is_not_told_as_a_missing_signature() -> None:
    said = "W: GPG error: http://m.test trixie InRelease: Splitting up /tmp/InRelease into data and signature failed"
    assert "TMPDIR" in (_failure("update", f"{said}\nE: The repository is not signed.\n").hint or "")
    ended = "E: Some index files failed to download. They have been ignored, or old ones used instead.\n"
    other = _failure("update", f"E: The repository is not signed.\n{ended}")
    assert "network" in (other.hint or "") and other.message.endswith(": The repository is not signed.")


def test_a_component_that_is_not_there_is_named(archive: Mirror) -> None:
    opened = open_apt(archive, "trixie", "arm64", supply=Supply(("main", "contribx")))
    with pytest.raises(SourceError, match="has no component 'contribx'"), opened:
        pass
