# SPDX-License-Identifier: Apache-2.0
"""This machine's kernel mounts our images from files, without a loop device (Linux 6.12): mount(2) itself, because
mount(8) makes a loop device of a file before it asks."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.write import write_image
from erofs_edge.sources.directory import scan

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("needs_root")]
LIBC = ctypes.CDLL(None, use_errno=True)
READ_ONLY = 1
FIRST = (6, 12)


@contextmanager
def mounted(image: Path, where: Path, options: str = "") -> Iterator[int]:
    """The error of mount(2), 0 where it is mounted."""
    where.mkdir(exist_ok=True)
    failed = LIBC.mount(os.fsencode(image), os.fsencode(where), b"erofs", READ_ONLY, options.encode())
    try:
        yield ctypes.get_errno() if failed else 0
    finally:
        if not failed:
            LIBC.umount(os.fsencode(where))


def contents(folder: Path) -> dict[str, tuple[bytes, list[str]]]:
    return {path.name: (path.read_bytes(), os.listxattr(path)) for path in folder.iterdir()}


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "large").write_bytes(random.Random(1).randbytes(300_000))
        (folder / "small").write_text("text\n")
    (two / "new").write_bytes(b"new" * 5000)
    return one, two


def kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])


@pytest.mark.parametrize("kind", ["plain", "lz4", "fingerprints", "on a base"])
def test_a_file_is_mounted(kind: str, trees: tuple[Path, Path], tmp_path: Path) -> None:
    """Also with a further file as its device; fingerprints (Linux 7.0) stay out of sight."""
    one, two = trees
    base, image = tmp_path / "base.img", tmp_path / "image.img"
    write_image(scan(one), base, WriteOptions(compression="none"))
    source, options = two, ""
    how = {
        "plain": WriteOptions(compression="none"),
        "lz4": WriteOptions(compression="lz4"),
        "fingerprints": WriteOptions(compression="none", fingerprints=True),
        "on a base": WriteOptions(compression="none", bases=(base,)),
    }[kind]
    write_image(scan(source), image, how)
    if kind == "on a base":
        options = f"device={base}"
    with mounted(image, tmp_path / "mnt", options) as error:
        if kernel() < FIRST:
            assert error == errno.ENOTBLK
            return
        assert not error, os.strerror(error)
        assert contents(tmp_path / "mnt") == contents(source)
        (line,) = [line for line in Path("/proc/mounts").read_text().splitlines() if f" {tmp_path}/mnt " in line]
        assert line.split()[0] == str(image), "no loop device is between"


def test_a_file_on_tmpfs_is_not(trees: tuple[Path, Path], tmp_path: Path) -> None:
    """ENOTBLK is what tells a program to go on with a loop device."""
    memory = tmp_path / "memory"
    memory.mkdir()
    assert not LIBC.mount(b"none", os.fsencode(memory), b"tmpfs", 0, b"")
    try:
        write_image(scan(trees[0]), memory / "image", WriteOptions(compression="none"))
        with mounted(memory / "image", tmp_path / "mnt") as error:
            assert error == errno.ENOTBLK
    finally:
        LIBC.umount(os.fsencode(memory))
