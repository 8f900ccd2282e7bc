# SPDX-License-Identifier: Apache-2.0
"""Debian's diffoscope with our comparator, in Debian's own Python: images, images in archives, damaged ones."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from other_python import HERE, debian_environment

from erofs_edge.erofs import build
from erofs_edge.toolbox.prefix import prefix

pytestmark = pytest.mark.oracle


def diffoscope(old: Path, new: Path, folder: Path, edge: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the differences as nested records: 'source1', 'comments', 'unified_diff', 'details'."""
    root = prefix() / "roots/oracles-diffoscope"
    if not root.exists():
        pytest.fail("diffoscope is missing: run 'erofs-edge tools fetch --oracles' (make test does)")
    python = debian_environment(root, folder / "python")
    (packages,) = (folder / "python/lib").glob("python3.*/site-packages")
    (packages / "diffoscope.pth").write_text(f"{root / 'usr/lib/python3/dist-packages'}\n{HERE}\n")
    (archive,) = root.glob("usr/lib/*/libarchive.so.13")
    environment = os.environ | {
        "PATH": f"{Path(edge).parent}:{os.environ['PATH']}", "LIBARCHIVE": str(archive),
        "MAGIC": str(root / "usr/lib/file/magic.mgc"), "TMPDIR": str(folder),
    }  # fmt: skip
    options = ["--no-progress", "--exclude-directory-metadata=yes", "--json", "-"]
    command = [str(python), "-m", "erofs_edge.diff.comparator", *options, str(old), str(new)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout) if done.stdout else {}


def found_in(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what is reported about one image, by the tool that reported it."""
    return {one["source1"]: one for one in report["details"]}


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """Make two folders that differ in one way for each of their files."""
    folders = tmp_path / "old", tmp_path / "new"
    for folder, port in zip(folders, (80, 8080), strict=True):
        folder.mkdir()
        tree = folder.with_suffix(".tree")
        (tree / "etc").mkdir(parents=True)
        (tree / "etc/app.conf").write_text(f"port = {port}\n")
        (tree / "etc/same.conf").write_text("same\n" * 5000)
        (tree / "etc/closed").write_text("closed\n")
        (tree / "etc/closed").chmod(0)
        (tree / "link").symlink_to("etc/app.conf" if port == 80 else "etc/other.conf")
        content = folder.with_suffix(".img")
        build(tree, content, epoch=0, times="fixed")
        (tree / "etc/app.conf").write_text("port = 80\n")
        (tree / "link").unlink()
        build(tree, folder / "stored.img", epoch=0, times="fixed", compression="none" if port == 80 else "lz4")
        damaged = bytearray(content.read_bytes())
        if port == 8080:
            damaged[1024 + 4] ^= 1  # the checksum of the superblock
        (folder / "damaged.img").write_bytes(damaged)
        (folder / "equal.img").write_bytes((folders[0] / "stored.img").read_bytes())
        with tarfile.open(folder / "images.tar", "w") as archive:
            archive.add(content, "inside.img", filter=_plain)
    return folders


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = 0
    return member


def test_diffoscope_tells_what_differs_in_images(images: tuple[Path, Path], tmp_path: Path, edge: str) -> None:
    code, report = diffoscope(*images, tmp_path, edge)
    assert code == 1
    told = {Path(one["source1"]).name: one for one in report["details"]}
    assert set(told) == {"stored.img", "damaged.img", "images.tar"}, "and not equal.img"

    content = found_in(next(one for one in told["images.tar"]["details"] if one["source1"] == "inside.img"))
    assert set(content) == {"erofs-edge diff", "erofs-edge fs dump {}", "erofs-edge fs ls -lR {}", "/etc/app.conf"}
    assert "2 of 6 paths differ" in "\n".join(content["erofs-edge diff"]["comments"])
    assert "-port = 80\n+port = 8080\n" in content["/etc/app.conf"]["unified_diff"]
    lines = content["erofs-edge fs ls -lR {}"]["unified_diff"].splitlines()
    assert [line.split()[-1] for line in lines if line[0] == "+"] == ["/etc/app.conf", "etc/other.conf"]

    stored = found_in(told["stored.img"])
    assert set(stored) == {"erofs-edge diff", "erofs-edge fs dump {}"}, "the same files, stored otherwise"
    assert "encoding" in "\n".join(stored["erofs-edge diff"]["comments"])

    assert "superblock checksum" in "\n".join(told["damaged.img"]["comments"]) and told["damaged.img"]["unified_diff"]
