# SPDX-License-Identifier: Apache-2.0
"""The isolated apt against a small archive made here, signed with a key made here."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from erofs_edge.errors import MirrorError, SourceError
from erofs_edge.sources.debian.apt import open_apt
from erofs_edge.sources.debian.mirror import Mirror

PACKAGES = [
    ("base", "1.0", "", "pool/main/b/base_1.0_arm64.deb"),
    ("app", "1:2.0-1", "base (>= 1.0), lib", "pool/updates/main/a/app_2.0-1_arm64.deb"),
    ("lib", "3", "", "pool/main/l/lib_3_arm64.deb"),
    ("broken", "1", "nowhere", "pool/main/b/broken_1_arm64.deb"),
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Mirror:
    for tool in ("gpg", "apt-get"):
        if not shutil.which(tool):
            pytest.fail(f"{tool} is needed: apt-get install {tool.replace('apt-get', 'apt')}")
    root = tmp_path_factory.mktemp("archive")
    home = tmp_path_factory.mktemp("gnupg")
    home.chmod(0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-gen-key", "test@archive.test", "rsa2048", "sign"], check=True, capture_output=True)
    key = root / "key.gpg"
    key.write_bytes(subprocess.run([*gpg, "--export"], check=True, capture_output=True).stdout)
    for pocket, date, packages in (
        ("trixie", "Sat, 03 Jan 2026 10:00:00 UTC", PACKAGES),
        ("trixie-updates", "Sun, 04 Jan 2026 10:00:00 UTC", []),
    ):
        dist = root / "dists" / pocket
        (dist / "main/binary-arm64").mkdir(parents=True)
        index = "".join(
            f"Package: {name}\nVersion: {version}\nArchitecture: arm64\nMaintainer: t <t@t.test>\n"
            + (f"Depends: {depends}\n" if depends else "")
            + f"Filename: {path}\nSize: 10\nSHA256: {hashlib.sha256(name.encode()).hexdigest()}\nDescription: x\n\n"
            for name, version, depends, path in packages
        ).encode()
        packed = gzip.compress(index, mtime=0)
        (dist / "main/binary-arm64/Packages.gz").write_bytes(packed)
        release = (
            f"Origin: Test\nSuite: {pocket}\nCodename: {pocket}\nDate: {date}\nArchitectures: arm64\nComponents: main\n"
            f"SHA256:\n {hashlib.sha256(packed).hexdigest()} {len(packed)} main/binary-arm64/Packages.gz\n"
            f" {hashlib.sha256(index).hexdigest()} {len(index)} main/binary-arm64/Packages\n"
        )
        (dist / "Release").write_text(release)
        subprocess.run([*gpg, "--clearsign", "-o", str(dist / "InRelease"), str(dist / "Release")], check=True)
    return Mirror({"debian": f"file:{root}"}, key)


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


def test_index_signed_by_another_key_is_refused(archive: Mirror, tmp_path: Path) -> None:
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-gen-key", "evil@archive.test", "rsa2048", "sign"], check=True, capture_output=True)
    key = tmp_path / "evil.gpg"
    key.write_bytes(subprocess.run([*gpg, "--export"], check=True, capture_output=True).stdout)
    with (
        pytest.raises(MirrorError, match="fetched or verified"),
        open_apt(Mirror(archive.archives, key), "trixie", "arm64"),
    ):
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
