# SPDX-License-Identifier: Apache-2.0
"""A board's disk: positions, complaints that say by how much, and an image that is sparse and either complete or
absent."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erofs_edge.disk import gpt, sparse
from erofs_edge.disk.layout import DiskLayout, plan_disk, write_disk
from erofs_edge.errors import CapacityError, ManifestError, SourceError
from erofs_edge.manifest.model import Board, Boot, Disk, Partition, UBoot

MIB = 1 << 20
SEED = b"seed"


def make_board(size: str = "96M", sector: int = 512, *, hybrid: bool = False, **partitions: Partition) -> Board:
    standard = {
        "firmware": Partition(size="20M", content="firmware"),
        "boot": Partition(size="8M", slots=["a", "b"], content="fit"),
        "system": Partition(size="16M", slots=["a", "b"], content="base.yaml"),
        "misc": Partition(size="64K", content="slot-state"),
        "data": Partition(size="rest", filesystem="ext4"),
    }
    disk = Disk(size=size, sector=sector, hybrid_mbr=hybrid, partitions=partitions or standard)  # type: ignore[arg-type]
    return Board(board="test", disk=disk, boot=Boot(u_boot=UBoot(package="u-boot", path="u-boot.bin")))


def test_places() -> None:
    layout = plan_disk(make_board(), {}, SEED)
    assert [(p.name, p.start // MIB, p.size // MIB) for p in layout.placements] == [
        ("firmware", 1, 20),
        ("boot_a", 21, 8),
        ("boot_b", 29, 8),
        ("system_a", 37, 16),
        ("system_b", 53, 16),
        ("misc", 69, 1),
        ("data", 70, 25),
    ]
    types = {p.name: p.type_guid for p in layout.table.partitions}
    assert types["firmware"] == gpt.TYPE_ESP
    assert types["system_a"] == types["system_b"] == gpt.TYPE_ROOT_ARM64
    assert types["boot_a"] == types["misc"] == types["data"] == gpt.TYPE_LINUX
    assert layout["misc"].start == 69 * MIB
    assert layout.guid("data") == str(gpt.guid_from(SEED, "data"))
    assert plan_disk(make_board(hybrid=True), {}, SEED).table.hybrid == 0


@pytest.mark.oracle
@pytest.mark.parametrize("sector", [512, 4096])
def test_image_holds_the_contents(sector: int, oracle: Callable[[str], str], tmp_path: Path) -> None:
    contents = {}
    for name, size in (("firmware", 5 * MIB + 7), ("system_a", 16 * MIB), ("boot_b", 1)):
        contents[name] = tmp_path / name
        contents[name].write_bytes(os.urandom(size))
    layout = plan_disk(make_board(sector=sector), contents, SEED)
    out = tmp_path / "disk.img"
    seen: list[tuple[int, int]] = []
    write_disk(layout, out, lambda done, total: seen.append((done, total)))
    raw = out.read_bytes()
    assert len(raw) == 96 * MIB
    for name, path in contents.items():
        start, data = layout[name].start, path.read_bytes()
        assert raw[start : start + len(data)] == data
        assert not any(raw[start + len(data) : start + layout[name].size])
    assert seen[-1][0] == seen[-1][1]
    assert out.stat().st_blocks * 512 < 22 * MIB
    assert gpt.decode(lambda o, n: raw[o : o + n], len(raw), sector) == layout.table
    command = [oracle("sfdisk"), "--verify", "--sector-size", str(sector), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if sector == 512:
        checked = subprocess.run([oracle("sgdisk"), "-v", out], capture_output=True, text=True, check=True)
        assert "No problems found" in checked.stdout
    write_disk(layout, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == raw


def test_content_too_large(tmp_path: Path) -> None:
    content = tmp_path / "system.img"
    content.write_bytes(b"")
    os.truncate(content, 18 * MIB + 1)
    with pytest.raises(CapacityError, match=r"'system_b' has 16\.0 MiB.* 2097153 bytes too many") as caught:
        plan_disk(
            make_board(),
            {"system_b": content},
            SEED,
            position=lambda key: f"x.yaml:7:5 {key}",
            largest=lambda name: [(f"/usr/{name}", 3 * MIB)],
        )
    assert caught.value.where == "x.yaml:7:5 disk.partitions.system"
    assert caught.value.hint == "give it 19M; its largest files: /usr/system_b (3.0 MiB)"


def test_disk_too_small() -> None:
    with pytest.raises(CapacityError, match=r"'system' ends 1\.0 MiB after"):
        plan_disk(make_board("69M"), {}, SEED)
    with pytest.raises(CapacityError, match="no space is left for partition 'data'"):
        plan_disk(make_board("71M"), {}, SEED)
    assert plan_disk(make_board("72M"), {}, SEED)["data"].size == MIB


@pytest.mark.parametrize(
    ("size", "partitions", "message"),
    [
        ("96M", {"a": Partition(size="rest"), "b": Partition(size="rest")}, "only one"),
        ("96M", {"a": Partition(size="rest", slots=["a", "b"])}, "only one"),
        ("96M", {"a": Partition(size="5X")}, "not a size"),
        ("96M", {"a": Partition(size=0)}, "not a size"),
        ("96M", {"a": Partition(size=-5)}, "not a size"),
        ("97000K", {"a": Partition(size="1M")}, "whole number of MiB"),
        ("96M", {"a_b": Partition(size="1M"), "a": Partition(size="1M", slots=["b"])}, "same name"),
    ],
)
def test_sizes_that_make_no_sense(size: str, partitions: dict[str, Partition], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        plan_disk(make_board(size, **partitions), {}, SEED)


def test_content_for_nothing(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such partition"):
        plan_disk(make_board(), {"system_c": tmp_path}, SEED)
    with pytest.raises(SourceError):
        plan_disk(make_board(), {"system_a": tmp_path / "missing"}, SEED)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 9 * MIB), min_size=1, max_size=12), rest=st.booleans())
def test_any_sizes(sizes: list[int], rest: bool) -> None:
    partitions = {f"p{i}": Partition(size=size) for i, size in enumerate(sizes)}
    if rest:
        partitions["rest"] = Partition(size="rest")
    layout = plan_disk(make_board("200M", **partitions), {}, SEED)
    end = MIB
    for placement in layout.placements:
        assert placement.start == end
        assert placement.size % MIB == 0
        end += placement.size
    assert all(p.size - MIB < size <= p.size for p, size in zip(layout.placements, sizes, strict=False))
    assert not rest or end == 199 * MIB
    gpt.encode(layout.table)


def test_a_content_that_changes_after_the_plan(tmp_path: Path) -> None:
    content, out = tmp_path / "content", tmp_path / "disk"
    content.write_bytes(bytes(100))
    layout = plan_disk(make_board(), {"system_a": content}, SEED)
    os.truncate(content, 17 * MIB)
    with pytest.raises(SourceError, match="grown"):
        write_disk(layout, out)
    content.unlink()
    with pytest.raises(SourceError):
        write_disk(layout, out)
    assert os.listdir(tmp_path) == []


def written_layout(tmp_path: Path) -> DiskLayout:
    content = tmp_path / "content"
    content.write_bytes(bytes(range(256)) * 4096)
    return plan_disk(make_board(), {"system_a": content}, SEED)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (OSError(errno.ENOSPC, "full"), CapacityError),
        (OSError(errno.EIO, "bad"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_failure_leaves_the_old_image(
    failure: BaseException, expected: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, out = written_layout(tmp_path), tmp_path / "disk"
    out.write_bytes(b"old")

    def fail(*_: object) -> int:
        raise failure

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(expected):
        write_disk(layout, out)
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["content", "disk"]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS])
def test_copies_without_the_kernels_help(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = written_layout(tmp_path)
    write_disk(layout, tmp_path / "disk")

    def refuse(*_: object) -> int:
        raise OSError(code, "no")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    write_disk(layout, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "disk").read_bytes()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 9000)), max_size=6))
def test_holes_are_kept(pieces: list[tuple[int, int]], tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    size = 900_000
    with source.open("wb") as file:
        file.truncate(size)
        for at, length in pieces:
            file.seek(at * 4096)
            file.write(b"x" * length)
    with source.open("rb") as a, target.open("wb+") as b:
        b.truncate(size)
        sparse.copy_data(a.fileno(), b.fileno(), size, 0)
        extents = list(sparse.data_extents(a.fileno(), size))
    assert target.read_bytes() == source.read_bytes()
    # a file system may need a block or two more for one of two equal files
    assert target.stat().st_blocks <= source.stat().st_blocks + 64
    assert all(start < end <= size for start, end in extents)
    assert sum(end - start for start, end in extents) >= len(source.read_bytes().replace(b"\0", b""))


def test_extents_where_the_host_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.lseek

    def refuse(fd: int, offset: int, whence: int) -> Any:
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "no")
        return real(fd, offset, whence)

    monkeypatch.setattr(os, "lseek", refuse)
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with path.open("rb") as file:
        assert list(sparse.data_extents(file.fileno(), 100)) == [(0, 100)]
        assert list(sparse.data_extents(file.fileno(), 0)) == []
