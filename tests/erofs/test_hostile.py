# SPDX-License-Identifier: Apache-2.0
"""Hostile images: whatever the bytes say, a result or ErofsFormatError, in bounded time and memory."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutate import Field, fields, mutate, seal
from reader_trees import mkfs, noise, text

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.check import check
from erofs_edge.erofs.extract import extract
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsEdgeError, ErofsFormatError

Oracle = Callable[[str], str]
KINDS = [
    "-zlz4 -C16384 -T1",
    "-T1",
    "-zlz4 -Elegacy-compress -C16384",
    "--chunksize=4096 -Eforce-chunk-indexes",
    "-zlz4 -Eztailpacking -T1",
    "-zlz4 -Eall-fragments",
    "-zlz4 -Ededupe,fragments -C8192",
    "-b512 -zlz4 -C4096 -T1",
]
CASES = 60  # for each kind
AGREED = 12  # of which fsck.erofs is asked
SECONDS = 5.0  # for one case, on a busy machine
MEMORY = 400 << 10  # KiB of the whole test process


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("hostile")
    source = root / "source"
    (source / "d").mkdir(parents=True)
    (source / "d/f").write_bytes(text(700))
    (source / "mix").write_bytes(text(300) + noise(9000) + text(900))
    (source / "d/g").hardlink_to(source / "mix")
    (source / "twin").write_bytes(text(500) + b"x")
    (source / "link").symlink_to("d/f")
    os.mkfifo(source / "pipe")
    for name in "abc":
        (source / name).write_bytes(name.encode())
        os.setxattr(source / name, "user.s", b"shared value")
    os.setxattr(source / "d", "user.k", b"v1")
    tool = oracle("mkfs.erofs-1.9")
    return {
        kind: mkfs(tool, root / f"image{number}", source, kind.split()).read_bytes()
        for number, kind in enumerate(KINDS)
    }


def survives(path: Path, folder: Path) -> bool:
    """Check, walk and extract an image; whether the check accepts it. Anything but a result or the format's error
    fails, and so does a file outside the destination."""
    start = time.monotonic()
    report = check(path, jobs=2)
    inside = folder / "in"
    inside.mkdir(exist_ok=True)
    try:
        with Image(path) as image:
            image.tree()
            extract(image, inside / "out", limit=50 << 20, jobs=2)
    except ErofsFormatError as error:
        assert error.where is not None
        assert not report.ok or "limit" in error.message
    except ErofsEdgeError as error:  # the host refuses, say, a file of 2**62 bytes
        assert "cannot write" in error.message
    assert set(os.listdir(folder)) <= {"in", "image"}
    subprocess.run(["rm", "-rf", inside], check=True)
    assert time.monotonic() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MEMORY
    return report.ok


def parts(data: bytes, path: Path) -> tuple[list[Field], list[int]]:
    path.write_bytes(data)
    with Image(path) as image:
        return fields(image), sorted({inode.nid for _, inode in image.walk()})


@pytest.mark.parametrize("kind", KINDS)
def test_fields_that_lie(kind: str, images: dict[str, bytes], tmp_path: Path, oracle: Oracle) -> None:
    path = tmp_path / "image"
    found, nids = parts(images[kind], path)
    assert survives(path, tmp_path)
    accepted = 0
    for seed in range(CASES):
        data, told = mutate(images[kind], found, nids, seed)
        path.write_bytes(data)
        try:
            ok = survives(path, tmp_path)
            if seed < AGREED:
                assert not (ok and fsck_rejects(oracle("fsck.erofs-1.9"), path)), "fsck.erofs rejects it"
        except BaseException as error:
            error.add_note(f"seed {seed}: {told}")
            raise
        accepted += ok
    assert CASES // 20 < accepted < CASES // 2, "mutations must mostly, not always, break the image"


def fsck_rejects(tool: str, path: Path) -> bool:
    """The verdict of fsck.erofs --extract; it runs for ever on some sizes, which is no verdict."""
    try:
        return bool(subprocess.run([tool, "--extract", path], capture_output=True, timeout=2, check=False).returncode)
    except subprocess.TimeoutExpired:
        return False


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_bytes(data: st.DataObject, images: dict[str, bytes], tmp_path: Path) -> None:
    image = bytearray(images[data.draw(st.sampled_from(KINDS))])
    end = data.draw(st.sampled_from([min(len(image), 12288), len(image)]))
    for _ in range(data.draw(st.integers(1, 6))):
        chunk = data.draw(st.binary(min_size=1, max_size=24))
        at = data.draw(st.integers(ondisk.SUPER_OFFSET + 8, end - len(chunk)))
        image[at : at + len(chunk)] = chunk
    (tmp_path / "image").write_bytes(seal(image))
    survives(tmp_path / "image", tmp_path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_images(data: st.DataObject, images: dict[str, bytes], tmp_path: Path) -> None:
    image = images[data.draw(st.sampled_from(KINDS))]
    (tmp_path / "image").write_bytes(image[: data.draw(st.integers(1, len(image) - 1))])
    assert not survives(tmp_path / "image", tmp_path)


def test_every_superblock_bit(images: dict[str, bytes], tmp_path: Path) -> None:
    """Each bit of the superblock flipped alone, the checksum made right."""
    path = tmp_path / "image"
    clean = images["-zlz4 -C16384 -T1"]
    for bit in range(8 * ondisk.SUPER_SIZE):
        data = bytearray(clean)
        data[ondisk.SUPER_OFFSET + bit // 8] ^= 1 << bit % 8
        path.write_bytes(seal(data))
        try:
            with Image(path) as image:
                sum(1 for _ in image.walk())
        except ErofsFormatError as error:
            assert error.where is not None


def test_directories_nested_too_deep_end(tmp_path: Path) -> None:
    """A chain of directories that each hold the next one, 2100 deep."""
    depth, block = 2100, 4096
    data = bytearray(block + depth * 128)
    for number in range(depth):
        nid = number * 4
        at = block + nid * 32
        names = b"...d" if number < depth - 1 else b"..."
        count = 3 if number < depth - 1 else 2
        size = count * ondisk.DIRENT_SIZE + len(names)
        links = 3 if count == 3 else 2
        data[at : at + 32] = ondisk.COMPACT_INODE.pack(4, 0, 0o40755, links, size, 0, 0xFFFFFFFF, number + 1, 0, 0, 0)
        entries = [(nid, 0, 2), (max(0, nid - 4), 1, 2), (nid + 4, 3, 2)][:count]
        packed = b"".join(
            ondisk.DIRENT.pack(target, count * ondisk.DIRENT_SIZE + offset, kind) for target, offset, kind in entries
        )
        data[at + 32 : at + 32 + size] = packed + names
    blocks = -(-len(data) // block)
    data += bytes(blocks * block - len(data))
    raw = ondisk.Superblock(blocks_lo=blocks, meta_blkaddr=1, inos=depth, rootnid_2b=0)
    data[ondisk.SUPER_OFFSET : ondisk.SUPER_OFFSET + ondisk.SUPER_SIZE] = ondisk.SUPERBLOCK.pack(*raw)
    (tmp_path / "image").write_bytes(data)
    report = check(tmp_path / "image")
    assert any("nested deeper" in finding.message for finding in report.errors)
    with Image(tmp_path / "image") as image:
        assert image.lookup("d/d/d/d").nid == 16
        with pytest.raises(ErofsFormatError, match="nested deeper than 2048"):
            image.tree()
        with pytest.raises(ErofsFormatError, match="nested deeper than 2048"):
            extract(image, tmp_path / "out")
    assert not (tmp_path / "out").exists()
