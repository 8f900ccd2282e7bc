# SPDX-License-Identifier: Apache-2.0
"""Which mirror is taken from which host configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from erofs_edge.errors import MirrorError
from erofs_edge.sources.debian.mirror import host_mirror

KEYRING = "usr/share/keyrings/debian-archive-keyring.gpg"


def host(root: Path, files: dict[str, str], *, keyring: bool = True) -> Path:
    (root / "etc/apt/sources.list.d").mkdir(parents=True)
    for name, text in files.items():
        path = root / "etc/apt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if keyring:
        (root / KEYRING).parent.mkdir(parents=True)
        (root / KEYRING).write_bytes(b"key")
    return root


DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.test/debian/
Suites: trixie trixie-updates
Components: main
Signed-By: {key}

Types: deb
URIs: http://mirror.test/debian-security
Suites: trixie-security
Components: main
"""


def test_deb822(tmp_path: Path) -> None:
    key = tmp_path / "own.gpg"
    key.write_bytes(b"key")
    root = host(tmp_path / "root", {"sources.list.d/debian.sources": DEB822.format(key=key)})
    mirror = host_mirror({}, root)
    assert dict(mirror.archives) == {
        "debian": "http://mirror.test/debian",
        "debian-security": "http://mirror.test/debian-security",
    }
    assert mirror.keyring == key
    assert not mirror.pinned
    assert mirror.uri("debian", "pool/x.deb") == "http://mirror.test/debian/pool/x.deb"


def test_one_line_file_with_options_and_a_foreign_repository(tmp_path: Path) -> None:
    text = (
        "deb [arch=amd64] http://other.test/apt bookworm-pgdg main\n"
        "deb [arch=amd64] http://docker.test/linux/debian bookworm stable\n"
        "# deb http://off.test/debian trixie main\n"
        "deb [arch=amd64 signed-by=/none.gpg] http://mirror.test/debian bookworm main contrib # here\n"
        "deb http://sec.test/debian-security bookworm-security main\n"
    )
    root = host(tmp_path, {"sources.list": text})
    mirror = host_mirror({}, root)
    assert dict(mirror.archives) == {
        "debian": "http://mirror.test/debian",
        "debian-security": "http://sec.test/debian-security",
    }
    assert mirror.keyring == root / KEYRING


def test_disabled_and_source_only_entries_are_left_out(tmp_path: Path) -> None:
    text = (
        "Types: deb\nURIs: http://off.test/debian\nSuites: trixie\nComponents: main\nEnabled: no\n\n"
        "Types: deb-src\nURIs: http://src.test/debian\nSuites: trixie\nComponents: main\n\n"
        "Types: deb\nURIs: http://on.test/debian\nSuites: trixie\nComponents: main\n"
    )
    mirror = host_mirror({}, host(tmp_path, {"sources.list.d/a.sources": text}))
    assert dict(mirror.archives) == {"debian": "http://on.test/debian"}
    with pytest.raises(MirrorError, match="debian-security"):
        mirror.uri("debian-security", "x")


def test_list_of_mirrors_as_on_cloud_images(tmp_path: Path) -> None:
    sources = "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: trixie\nComponents: main\n"
    files = {
        "sources.list.d/debian.sources": sources,
        "mirrors/debian.list": "# best\nhttp://first.test/debian/\nhttp://b\n",
    }
    assert host_mirror({}, host(tmp_path, files)).archives["debian"] == "http://first.test/debian"


@pytest.mark.parametrize(
    ("value", "archives"),
    [
        (
            "http://a.test/debian",
            {"debian": "http://a.test/debian", "debian-security": "http://a.test/debian-security"},
        ),
        (
            "http://a.test/archive/debian/20260101T000000Z/",
            {
                "debian": "http://a.test/archive/debian/20260101T000000Z",
                "debian-security": "http://a.test/archive/debian-security/20260101T000000Z",
            },
        ),
        ("http://a.test/x http://b.test/y", {"debian": "http://a.test/x", "debian-security": "http://b.test/y"}),
        ("file:/srv/pool", {"debian": "file:/srv/pool"}),
    ],
)
def test_variable_wins(tmp_path: Path, value: str, archives: dict[str, str]) -> None:
    root = host(tmp_path, {"sources.list": "deb http://mirror.test/debian trixie main\n"})
    mirror = host_mirror({"EROFS_EDGE_MIRROR": value}, root)
    assert dict(mirror.archives) == archives
    assert mirror.pinned


def test_not_debian_like(tmp_path: Path) -> None:
    with pytest.raises(MirrorError) as caught:
        host_mirror({}, tmp_path)
    assert "EROFS_EDGE_MIRROR" in (caught.value.hint or "")


def test_missing_archive_key(tmp_path: Path) -> None:
    root = host(tmp_path, {"sources.list": "deb http://mirror.test/debian trixie main\n"}, keyring=False)
    with pytest.raises(MirrorError) as caught:
        host_mirror({}, root)
    assert caught.value.hint == "install it: apt-get install debian-archive-keyring"


@pytest.mark.parametrize("value", ["nonsense", "/srv/debian", "ftp://host/debian", "http://", "http://host/debian x"])
def test_a_variable_that_is_no_uri_is_named(tmp_path: Path, value: str) -> None:
    with pytest.raises(MirrorError, match="is no URI of a package archive") as caught:
        host_mirror({"EROFS_EDGE_MIRROR": value}, host(tmp_path, {}))
    assert caught.value.where == "EROFS_EDGE_MIRROR"
