# SPDX-License-Identifier: Apache-2.0
"""Parity: the same bytes as veritysetup, wherever tree and parity stand, and no failure leaves half of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from erofs_edge.errors import CapacityError, FormatError, UsageError
from erofs_edge.verity import fec
from erofs_edge.verity.superblock import Superblock, VerityInfo
from erofs_edge.verity.tree import append, format_tree

UUID = bytes.fromhex("123456789abc4def8123456789abcdef")
SALT = bytes.fromhex("00112233445566778899aabbccddeeff")
Oracle = Callable[[str], str]


def noise(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(seed.to_bytes(4, "little")).digest(size)


def formatted(image: Path, count: int, block_size: int = 4096) -> VerityInfo:
    image.write_bytes(noise(count * block_size))
    return append(image, uuid=UUID, salt=SALT, block_size=block_size)


def veritysetup(oracle: Oracle, *arguments: str | Path) -> str:
    command = [oracle("veritysetup"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


GOLDEN = [
    (2, 16384, "4cbb07b75c0f0cca9e357ff2fc23038b65bbdb6f6bbf8c58551e2f357cea5a06"),
    (8, 65536, "dde3a129b516103154acfd8b7afe47a22e8e4ff0d9650088d9941c9a40f1bdd6"),
    (24, 196608, "30520530f93df98e21700ef3341500b61d25220b3aa8fa83666fe180b2d9ca90"),
]


def test_golden(tmp_path: Path) -> None:
    """From veritysetup 2.7.5, of 300 blocks, their tree on a device of its own, and of both in one file."""
    image, tree = tmp_path / "image", tmp_path / "tree"
    image.write_bytes(b"".join(bytes([i % 251]) * 4096 for i in range(300)))
    info = format_tree(image, tree, uuid=UUID, salt=SALT)
    for roots, size, digest in GOLDEN:
        places = fec.Places(image, tmp_path / "parity", hash_device=tree, roots=roots)
        layout = fec.write_parity(places, info.superblock)
        parity = (tmp_path / "parity").read_bytes()
        assert (layout.blocks, layout.parity_size, len(parity)) == (304, size, size)
        assert hashlib.sha256(parity).hexdigest() == digest


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("count", "block_size", "roots"),
    [(1, 4096, 2), (3, 4096, 24), (247, 4096, 2), (254, 4096, 2), (600, 4096, 7), (2600, 512, 17), (9, 65536, 8)],
)
def test_same_bytes_as_veritysetup(count: int, block_size: int, roots: int, oracle: Oracle, tmp_path: Path) -> None:
    image, tree, theirs, ours = (tmp_path / name for name in ("image", "tree", "theirs", "ours"))
    image.write_bytes(noise(count * block_size))
    sizes = [f"--data-block-size={block_size}", f"--hash-block-size={block_size}", f"--salt={SALT.hex()}"]
    veritysetup(oracle, "format", *sizes, f"--fec-device={theirs}", f"--fec-roots={roots}", image, tree)
    sb = Superblock(UUID, SALT, count, "sha256", block_size, block_size)
    fec.write_parity(fec.Places(image, ours, hash_device=tree, roots=roots), sb)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.oracle
@pytest.mark.parametrize("inside", [False, True])
def test_same_bytes_with_the_tree_appended(inside: bool, oracle: Oracle, tmp_path: Path) -> None:
    ours, theirs, other = tmp_path / "ours", tmp_path / "theirs", tmp_path / "theirs.fec"
    info = formatted(ours, 500)
    theirs.write_bytes(noise(500 * 4096))
    options = [f"--salt={SALT.hex()}", "--data-blocks=500", f"--hash-offset={500 * 4096}"]
    options += [f"--uuid={'12345678-9abc-4def-8123-456789abcdef'}", "--fec-roots=5"]
    if inside:
        os.truncate(theirs, info.size)
        options += [f"--fec-offset={info.size}"]
    fec_device = theirs if inside else other
    veritysetup(oracle, "format", *options, f"--fec-device={fec_device}", theirs, theirs)
    target = ours if inside else tmp_path / "ours.fec"
    layout = fec.write_parity(fec.Places(ours, target, roots=5), info.superblock)
    assert layout.offset == (info.size if inside else 0)
    assert ours.read_bytes() == theirs.read_bytes()
    assert inside or target.read_bytes() == other.read_bytes()


def test_pieces_and_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image"
    info = formatted(image, 700)
    fec.write_parity(fec.Places(image, tmp_path / "a"), info.superblock, jobs=1)
    monkeypatch.setattr(fec, "COLUMNS", 1000)
    seen: list[tuple[int, int]] = []
    fec.write_parity(
        fec.Places(image, tmp_path / "b"), info.superblock, jobs=5, progress=lambda a, b: seen.append((a, b))
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert seen[-1][0] >= seen[-1][1] == (info.size - 4096)


def test_numpy_is_loaded_only_to_compute() -> None:
    modules = "erofs_edge.cli.verity, erofs_edge.verity.fec, erofs_edge.verity.repair, sys"
    subprocess.run([sys.executable, "-c", f"import {modules}; assert 'numpy' not in sys.modules"], check=True)


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the image, a task reads COLUMNS bytes of each strip."""
    image = tmp_path / "image"
    info = formatted(image, 20_000, 512)
    asked: list[int] = []
    columns = fec.Covered.columns

    def spied(self: fec.Covered, start: int, width: int) -> object:
        asked.append(width)
        return columns(self, start, width)

    monkeypatch.setattr(fec, "COLUMNS", 4096)
    monkeypatch.setattr(fec.Covered, "columns", spied)
    fec.write_parity(fec.Places(image, tmp_path / "parity"), info.superblock)
    assert max(asked) == 4096
    assert len(asked) > 8


@pytest.mark.parametrize("in_place", [False, True])
def test_failure_leaves_what_was_there(in_place: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, parity = tmp_path / "image", tmp_path / "parity"
    info = formatted(image, 300)
    parity.write_bytes(b"\xff" * 4096)

    def fail(fd: int, data: bytes, offset: int) -> None:
        os.pwrite(fd, data[:100], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fec, "write_exactly", fail)
    with pytest.raises(CapacityError, match="no space left for the parity"):
        fec.write_parity(fec.Places(image, parity, fec_offset=4096 if in_place else 0), info.superblock)
    assert parity.read_bytes() == b"\xff" * 4096
    assert sorted(os.listdir(tmp_path)) == ["image", "parity"]


def test_parity_behind_something_else(tmp_path: Path) -> None:
    image, parity = tmp_path / "image", tmp_path / "parity"
    info = formatted(image, 300)
    parity.write_bytes(b"\xff" * 9000)
    layout = fec.write_parity(fec.Places(image, parity, fec_offset=1024), info.superblock)
    fec.write_parity(fec.Places(image, tmp_path / "alone"), info.superblock)
    raw = parity.read_bytes()
    assert raw[:1024] == b"\xff" * 1024
    assert raw[1024 : 1024 + layout.parity_size] == (tmp_path / "alone").read_bytes()


def test_nonsense_is_refused(tmp_path: Path) -> None:
    image, parity = tmp_path / "image", tmp_path / "parity"
    info = formatted(image, 300)
    before = image.read_bytes()
    for roots in (0, 1, 25, -3):
        with pytest.raises(UsageError, match="roots"):
            fec.write_parity(fec.Places(image, parity, roots=roots), info.superblock)
    with pytest.raises(UsageError, match="512"):
        fec.write_parity(fec.Places(image, parity, fec_offset=100), info.superblock)
    for offset in (0, info.hash_offset, info.size - 512):
        with pytest.raises(UsageError, match="inside what it protects"):
            fec.write_parity(fec.Places(image, image, fec_offset=offset), info.superblock)
    odd = Superblock(UUID, SALT, 300, "sha256", 4096, 1024)
    with pytest.raises(UsageError, match="the same size"):
        fec.write_parity(fec.Places(image, parity), odd)
    assert not parity.exists()
    assert image.read_bytes() == before


def test_the_layout_follows_from_the_sizes(tmp_path: Path) -> None:
    image, parity = tmp_path / "image", tmp_path / "parity"
    info = formatted(image, 2000)
    for roots in (2, 9, 24):
        made = fec.write_parity(fec.Places(image, parity, roots=roots), info.superblock)
        with fec.opened(fec.Places(image, parity)) as (sb, at, covered, _):
            assert (sb, at, covered.layout) == (info.superblock, info.hash_offset, made)
    os.truncate(image, info.size + 500_000)  # copied to a larger partition
    places = fec.Places(image, parity, hash_offset=info.hash_offset)
    with fec.opened(places) as (_, _, covered, _):
        assert covered.layout == made
    os.truncate(parity, made.parity_size + 512)
    with pytest.raises(FormatError, match="no parity"), fec.opened(places):
        pass
    os.truncate(image, info.size)
    with fec.opened(replace(places, roots=24)) as (_, _, covered, _):
        assert covered.layout == made  # given the roots, a larger device is as good
    small = tmp_path / "small"
    tiny = formatted(small, 1)
    layout = fec.write_parity(fec.Places(small, parity), tiny.superblock)
    assert layout.rounds == 1
    os.truncate(parity, 100)
    with pytest.raises(FormatError, match="no parity of 2 roots"), fec.opened(fec.Places(small, parity, roots=2)):
        pass


def test_a_hostile_superblock_costs_nothing(tmp_path: Path) -> None:
    """A superblock that says more than the files hold is refused before anything is read or reserved."""
    image, parity = tmp_path / "image", tmp_path / "parity"
    info = formatted(image, 30)
    fec.write_parity(fec.Places(image, parity), info.superblock)
    places = fec.Places(image, parity, hash_offset=info.hash_offset)
    good = image.read_bytes()
    for blocks in (31, 1 << 40, (1 << 63) - 1):
        raw = bytearray(good)
        raw[info.hash_offset + 72 : info.hash_offset + 80] = blocks.to_bytes(8, "little")
        image.write_bytes(raw)
        with pytest.raises(FormatError), fec.opened(places):
            pass
    for data, hashes in ((512, 4096), (4096, 1 << 31), (0, 0)):
        raw = bytearray(good)
        raw[info.hash_offset + 64 : info.hash_offset + 72] = data.to_bytes(4, "little") + hashes.to_bytes(4, "little")
        image.write_bytes(raw)
        with pytest.raises((FormatError, UsageError)), fec.opened(places):
            pass
