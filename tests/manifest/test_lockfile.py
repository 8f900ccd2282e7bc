# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501  one case a line, one package a line
"""Locks: stable bytes, atomic writes, and errors that name the line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.errors import CapacityError, ErofsEdgeError, ManifestError
from erofs_edge.manifest.load import load_lock, lock_path, save_lock
from erofs_edge.manifest.lockfile import lock_bytes
from erofs_edge.manifest.model import Lock, LockedPackage

GOLDEN = """\
{
  "format": 1,
  "name": "demo",
  "suite": "trixie",
  "arch": "arm64",
  "date": 1700000000,
  "requested": {
    "system": ["bb", "zlib"]
  },
  "packages": {
    "empty": [],
    "system": [
      {"name": "bb", "version": "1:2.0-1", "arch": "all", "archive": "debian", "path": "pool/main/bb.deb", "size": 7, "sha256": "%s"},
      {"name": "zlib", "version": "1~é", "arch": "arm64", "archive": "debian-security", "path": "pool/z.deb", "size": 8, "sha256": "%s"}
    ]
  },
  "users": {
    "a": 7,
    "sshd": 100
  },
  "groups": {}
}
""" % ("a" * 64, "b" * 64)  # fmt: skip  # noqa: UP031


def package(name: str, **changes: object) -> LockedPackage:
    values = {
        "name": name, "version": "1", "arch": "arm64", "archive": "debian", "path": f"pool/main/{name}.deb",
        "size": 1, "sha256": "0" * 64,
    }  # fmt: skip
    return LockedPackage(**{**values, **changes})  # type: ignore[arg-type]


def sample() -> Lock:
    return Lock(
        name="demo",
        suite="trixie",
        arch="arm64",
        date=1700000000,
        requested={"system": ["zlib", "bb"]},
        packages={
            "system": [
                package("zlib", version="1~é", archive="debian-security", path="pool/z.deb", size=8, sha256="b" * 64),
                package("bb", version="1:2.0-1", arch="all", path="pool/main/bb.deb", size=7, sha256="a" * 64),
            ],
            "empty": [],
        },
        users={"sshd": 100, "a": 7},
    )


def test_the_bytes_of_a_lock_are_sorted_with_one_package_a_line(tmp_path: Path) -> None:
    path = tmp_path / "demo.lock"
    save_lock(sample(), path)
    assert path.read_text() == GOLDEN
    assert os.listdir(tmp_path) == ["demo.lock"]


def test_a_lock_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "demo.lock"
    save_lock(sample(), path)
    loaded = load_lock(path)
    assert {p.name: p for p in loaded.packages["system"]} == {p.name: p for p in sample().packages["system"]}
    assert lock_bytes(loaded) == path.read_bytes()


def test_a_lock_stands_beside_its_manifest() -> None:
    assert lock_path("boards/rpi4.yaml") == Path("boards/rpi4.lock")
    assert lock_path(Path("/x/edge-1.2.yaml")) == Path("/x/edge-1.2.lock")


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('"format": 1', '"format": 2', "demo.lock:2:13: lock format 2 is not known, only 1 is", "or use the erofs-edge"),
        ('"name": "demo"', '"name": "demo", "x": 1', 'demo.lock:3:19: unknown key "x"', "known here"),
        ('"size": 7', '"size": "7"', 'demo.lock:13:', "erofs-edge lock"),
        ('"size": 7', '"size": -7', 'demo.lock:13:', "erofs-edge lock"),
        ("a" * 64, "a" * 63, "demo.lock:13:", "erofs-edge lock"),
        ("a" * 64, "A" * 64, "demo.lock:13:", "erofs-edge lock"),
        ("pool/main/bb.deb", "../../etc/passwd", "demo.lock:13:", "erofs-edge lock"),
        ("pool/main/bb.deb", "/etc/passwd", "demo.lock:13:", "erofs-edge lock"),
        ("pool/main/bb.deb", "pool/../../../x", "demo.lock:13:", "erofs-edge lock"),
        ('"archive": "debian-security"', '"archive": "a/b"', "demo.lock:14:", "erofs-edge lock"),
        ('"date": 1700000000,', "", 'demo.lock:1:1: key "date" is missing', "erofs-edge lock"),
        ('"sshd": 100', '"sshd": -1', "demo.lock:19:13: ", "erofs-edge lock"),
        ('"groups": {}\n}', '"groups": {}', "demo.lock:22:1: not JSON", "erofs-edge lock"),
        ('  "packages": {', '  "packages": [{', "demo.lock:", "erofs-edge lock"),
    ],
)  # fmt: skip
def test_a_broken_lock_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert GOLDEN.count(old) == 1
    Path("demo.lock").write_text(GOLDEN.replace(old, new))
    with pytest.raises(ManifestError) as caught:
        load_lock("demo.lock")
    assert str(caught.value).startswith(message)
    assert hint in (caught.value.hint or "")


def test_a_missing_lock_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"x.lock: no such lock file") as caught:
        load_lock(tmp_path / "x.lock")
    assert caught.value.hint == f"erofs-edge lock {tmp_path}/x.yaml"


def test_a_write_that_fails_leaves_the_old_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "demo.lock"
    save_lock(sample(), path)

    errors: list[tuple[int, type[ErofsEdgeError], str]] = [
        (errno.ENOSPC, CapacityError, "no space left for the lock"),
        (errno.EIO, ManifestError, "cannot write: Input/output error"),
    ]
    for number, kind, said in errors:

        def fails(fd: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fails)
        with pytest.raises(kind, match=f"demo.lock: {said}"):
            save_lock(Lock(name="x", suite="s", arch="arm64", date=0, requested={}, packages={}), path)
        assert path.read_text() == GOLDEN
        assert os.listdir(tmp_path) == ["demo.lock"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80) | st.text('{}[]":,1ae\\ntfu-. ', max_size=60).map(str.encode))
def test_any_bytes_are_a_lock_or_one_manifest_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.lock"
    path.write_bytes(data)
    with pytest.raises(ManifestError) as caught:
        load_lock(path)
    assert str(caught.value).startswith(str(path))


NAMES = st.text("abcxyz0189+.-", min_size=2, max_size=8).filter(lambda name: name[0] not in "+.-")


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(NAMES, st.lists(st.builds(package, NAMES, size=st.integers(0, 2**40)), max_size=4), max_size=3),
    st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 65534), max_size=4),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, packages: dict[str, list[LockedPackage]], users: dict[str, int]
) -> None:
    lock = Lock(name="x", suite="sid", arch="arm64", date=1, requested={}, packages=packages, users=users)
    path = tmp_path_factory.getbasetemp() / "round.lock"
    save_lock(lock, path)
    loaded = load_lock(path)
    assert loaded.users == users
    assert lock_bytes(loaded) == lock_bytes(lock)
    for group, members in packages.items():
        assert sorted(map(str, loaded.packages[group])) == sorted(map(str, members))
