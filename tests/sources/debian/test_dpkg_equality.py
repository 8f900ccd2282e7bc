# SPDX-License-Identifier: Apache-2.0
"""The whole stock package set, unpacked by us and by `dpkg-deb -x` as root."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.manifest.load import load_lock
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import read_debs
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.sources.debian.unpack import unpack
from erofs_edge.tree import FileTree

pytestmark = pytest.mark.root


@pytest.fixture
def dpkg_deb(needs_root: None) -> str:
    found = shutil.which("dpkg-deb")
    if found is None and "CI" not in os.environ:
        pytest.skip("dpkg-deb is not here: this is no Debian")
    assert found is not None
    return found


def facts(path: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that a file system keeps of what is below a folder, times of directories left out."""
    found: dict[bytes, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(os.fsencode(path)):
        for name in [*folders, *files]:
            full = os.path.join(folder, name)
            info = os.lstat(full)
            directory, link = stat.S_ISDIR(info.st_mode), stat.S_ISLNK(info.st_mode)
            data = b""
            if stat.S_ISREG(info.st_mode):
                with open(full, "rb") as file:
                    data = file.read()
            found[b"/" + os.path.relpath(full, os.fsencode(path))] = (
                info.st_mode, info.st_uid, info.st_gid, 0 if directory else info.st_mtime_ns // 10**9, info.st_rdev,
                1 if directory else info.st_nlink, os.readlink(full) if link else b"", data, directory,
            )  # fmt: skip
    return found


def ours(tree: FileTree) -> dict[bytes, tuple[object, ...]]:
    names: dict[int, int] = {}
    for _, inode in tree.walk():
        names[id(inode)] = names.get(id(inode), 0) + 1
    return {
        path: (
            inode.mode, inode.uid, inode.gid, 0 if inode.is_dir else inode.mtime_ns // 10**9, os.makedev(*inode.rdev),
            1 if inode.is_dir else names[id(inode)], inode.target, inode.read() if inode.is_file else b"",
            inode.is_dir,
        )
        for path, inode in tree.walk()
        if path != b"/"
    }  # fmt: skip


@pytest.fixture
def debs(stock: Callable[[str], Path], repository: Path) -> dict[str, Path]:
    made = stock("qemu-aarch64") / "locks/edge-base.lock"
    lock = load_lock(made if made.exists() else repository / "manifests/edge-base.lock")
    return fetch(lock.packages["system"], host_mirror, Cache())


def test_every_stock_package_is_unpacked_as_dpkg_does(dpkg_deb: str, debs: dict[str, Path], tmp_path: Path) -> None:
    packages = read_debs(debs, Cache())
    assert len(packages) > 100
    for package in packages:
        folder = tmp_path / package.name
        subprocess.run([dpkg_deb, "-x", str(debs[package.name]), str(folder)], check=True)
        assert ours(package.data) == facts(folder), package.name
        shutil.rmtree(folder)


def test_all_of_them_over_each_other(dpkg_deb: str, debs: dict[str, Path], tmp_path: Path) -> None:
    for name in sorted(debs, key=lambda name: (name != "base-files", name)):
        subprocess.run([dpkg_deb, "-x", str(debs[name]), str(tmp_path / "root")], check=True)
    mine, theirs = ours(unpack(read_debs(debs, Cache()))), facts(tmp_path / "root")
    assert set(mine) == set(theirs)
    # of a directory that several packages have, dpkg-deb leaves the last one's metadata, dpkg the first one's
    assert {p: f for p, f in mine.items() if not f[8]} == {p: f for p, f in theirs.items() if not f[8]}
