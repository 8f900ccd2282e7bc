# SPDX-License-Identifier: Apache-2.0
"""Hostile images: whatever the bytes are, a result or ErofsFormatError, in bounded time and memory."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from fuzzing import KINDS, Base, Patch, judge, make_base, make_source, patched, patches, remember_checksum
from handmade import BLOCK, Made, build, directory, nid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutate import seal

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.check import FINDINGS_MAX, check
from erofs_edge.erofs.extract import extract
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsFormatError

Oracle = Callable[[str], str]
CASES = 480  # for each kind: 10,000
WRITE_EVERY = 10  # cases are extracted too
AGREED = 12  # of which fsck.erofs is asked
SECONDS = 20.0  # of CPU, for one case: most take some milliseconds, on a host with other guests more
MEMORY = 256 << 10  # KiB for one image


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Callable[[str], Base]:
    root = tmp_path_factory.mktemp("hostile")
    source = make_source(root / "source")
    return cache(lambda kind: make_base(kind, oracle("mkfs.erofs-1.9"), source, root))


def forget_peak() -> int:
    """Restart the measurement of this process's peak memory (proc(5), clear_refs). Return its current memory in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Return the peak since then, in KiB: other tests in the same process do not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def survives(path: Path, device: Path | None = None, *, write: bool = True) -> bool:
    """Use an image in every way. Return whether the check accepts it."""
    before = forget_peak()
    start = time.process_time()
    accepted = judge(path, device, write=write)
    assert time.process_time() - start < SECONDS
    assert peak() - before < MEMORY
    return accepted


@pytest.mark.parametrize("kind", KINDS)
def test_fields_that_lie(
    kind: str, bases: Callable[[str], Base], tmp_path: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bases(kind)
    path = tmp_path / "image"
    path.write_bytes(base.data)
    assert survives(path, base.device)
    monkeypatch.setattr(ondisk, "crc32c", ondisk.crc32c)  # what remember_checksum sets goes with the test
    accepted = 0
    for seed in range(CASES):
        found = patches(base, seed)
        image = patched(base, found)
        with path.open("r+b") as file:  # not made anew, which the file system would write to the disk at once
            file.write(image)
        remember_checksum(image)
        try:
            ok = survives(path, base.device, write=seed % WRITE_EVERY == 0)
            if seed < AGREED and ok and not base.device and "HOLE" not in kind:  # fsck.erofs decodes them
                assert not fsck_rejects(oracle("fsck.erofs-1.9"), path), "fsck.erofs rejects it"
        except BaseException as error:
            error.add_note(f"seed {seed}: {', '.join(patch.told for patch in found)}")
            raise
        accepted += ok
    assert CASES // 20 < accepted < CASES // 2, "mutations must mostly, not always, break the image"


def test_a_case_has_the_right_checksum(bases: Callable[[str], Base]) -> None:
    """The shortcut that cases use gives the result of the full computation."""
    for kind in KINDS[::7]:
        base = bases(kind)
        for seed in range(40):
            image = patched(base, patches(base, seed))
            assert image == seal(image)


def fsck_rejects(tool: str, path: Path) -> bool:
    """Return the verdict of fsck.erofs --extract; on some sizes it runs for ever, which is no verdict."""
    try:
        return bool(subprocess.run([tool, "--extract", path], capture_output=True, timeout=2, check=False).returncode)
    except subprocess.TimeoutExpired:
        return False


def test_a_pcluster_must_end_where_one_extent_says_so(bases: Callable[[str], Base], tmp_path: Path) -> None:
    """Of two extents of one pcluster with equal lengths, only the first may omit its end (found by the campaign)."""
    base = bases("-zlz4 -b1024 -C8192 -Eztailpacking,dedupe")
    entries = [field.offset for field in base.fields if ".index+" in field.name]
    partial = [at for at in entries if base.data[at : at + 2] == b"\x01\x80"]
    path = tmp_path / "image"
    verdicts = []
    for at in partial:
        path.write_bytes(patched(base, [Patch(at, b"\x01\x00", "partial")]))
        verdicts.append(survives(path))
    assert False in verdicts


@pytest.mark.parametrize("distance", [ondisk.DELTA_MAX, 0x2008, 0x8002])
def test_a_distance_that_only_looks_saturated(distance: int, bases: Callable[[str], Base], tmp_path: Path) -> None:
    """It goes back to before the file, in a cluster that reading from the start does not need (found by the
    campaign)."""
    base = bases("-zlz4 -Elegacy-compress -C16384")
    path = tmp_path / "image"
    entries = [field.offset for field in base.fields if ".index+" in field.name]
    told = {at: ondisk.FULL_INDEX.unpack_from(base.data, at) for at in entries if not at % 8}
    behind = [at + 4 for at, (kind, _, deltas) in told.items() if kind == 2 and 1 < deltas & 0xFFFF < 0x800]
    assert behind
    for at in behind:
        path.write_bytes(patched(base, [Patch(at, distance.to_bytes(2, "little"), "distance")]))
        assert not survives(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_bytes(data: st.DataObject, bases: Callable[[str], Base], tmp_path: Path) -> None:
    base = bases(data.draw(st.sampled_from(KINDS)))
    image = bytearray(base.data)
    end = data.draw(st.sampled_from([min(len(image), 12288), len(image)]))
    for _ in range(data.draw(st.integers(1, 6))):
        chunk = data.draw(st.binary(min_size=1, max_size=24))
        at = data.draw(st.integers(ondisk.SUPER_OFFSET + 8, end - len(chunk)))
        image[at : at + len(chunk)] = chunk
    (tmp_path / "image").write_bytes(seal(image))
    survives(tmp_path / "image", base.device)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_images(data: st.DataObject, bases: Callable[[str], Base], tmp_path: Path) -> None:
    image = bases(data.draw(st.sampled_from(KINDS))).data
    (tmp_path / "image").write_bytes(image[: data.draw(st.integers(1, len(image) - 1))])
    assert not survives(tmp_path / "image")


def test_every_superblock_bit(bases: Callable[[str], Base], tmp_path: Path) -> None:
    """Each bit of the superblock flipped on its own, with a correct checksum."""
    path = tmp_path / "image"
    clean = bases("-zlz4 -C16384 -T1").data
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
    """A chain of 2100 directories, each containing the next one."""
    depth = 2100
    inodes = []
    for number in range(depth):
        entries = [(b".", number, 2), (b"..", max(0, number - 1), 2), (b"d", number + 1, 2)]
        last = number == depth - 1
        inodes.append(Made(0o40755, 2 if last else 3, directory(entries[:2] if last else entries)))
    path = build(tmp_path / "image", inodes, [])
    assert any("nested deeper" in finding.message for finding in check(path).errors)
    with Image(path) as image:
        assert image.lookup("d/d/d/d").nid == nid(4)
        with pytest.raises(ErofsFormatError, match="nested deeper than 2048"):
            image.tree()
        with pytest.raises(ErofsFormatError, match="nested deeper than 2048"):
            extract(image, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bomb_of_shared_directory_blocks_ends(tmp_path: Path) -> None:
    """Ten thousand directories whose names are all in one block: a name costs a fraction of a byte."""
    count = 10_000
    names = [b"%03d" % number + b"n" * 240 for number in range(15)]
    shared = directory([(b".", 0, 2), (b"..", 0, 2), *((name, count + 1, 1) for name in names)])
    root_entries = [(b".", 0, 2), (b"..", 0, 2), *((b"%05d" % number, number + 1, 2) for number in range(count))]
    per_block = BLOCK // (ondisk.DIRENT_SIZE + 5)
    blocks = [directory(root_entries[at : at + per_block]) for at in range(0, len(root_entries), per_block)]
    root = Made(0o40755, 2, block=0, size=(len(blocks) - 1) * BLOCK + len(blocks[-1]))
    below = Made(0o40755, 2, block=len(blocks), size=len(shared))
    inodes = [root, *[below] * count, Made(0o100644, 1)]
    path = build(tmp_path / "image", inodes, [*blocks, shared])
    for use in (Image.tree, lambda image: extract(image, tmp_path / "out")):
        with Image(path) as image, pytest.raises(ErofsFormatError, match="larger than the image can hold"):
            use(image)
    assert len(check(path).errors) == FINDINGS_MAX


def test_a_small_handmade_image_is_clean(tmp_path: Path) -> None:
    """So that the two tests above fail for the intended reason."""
    root = directory([(b".", 0, 2), (b"..", 0, 2), (b"d", 1, 2), (b"f", 2, 1)])
    below = directory([(b".", 1, 2), (b"..", 0, 2)])
    inodes = [Made(0o40755, 3, root), Made(0o40755, 2, below), Made(0o100644, 1, block=0, size=5)]
    path = build(tmp_path / "image", inodes, [b"bytes"])
    assert check(path).findings == []
    with Image(path) as image:
        assert image.read(image.lookup("f"), 0, 10) == b"bytes"
