# SPDX-License-Identifier: Apache-2.0
"""Two files that a child compares where the kernel has them: what it finds, and what becomes of what it cannot."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from erofs_edge.flash import comparing, mapped
from erofs_edge.flash.comparing import Range, differences, pieces
from erofs_edge.flash.image import Image
from erofs_edge.flash.local import FileTarget
from erofs_edge.flash.mapped import Pair, compared

SIZE = (2 << 20) + 4096 + 100
SHARE = 512 << 10
WRONG = [0, 4096, SHARE - 1, SHARE, SIZE - 1]
BLOCKS = [(0, 4096), (4096, 8192), (SHARE - 4096, SHARE), (SHARE, SHARE + 4096), (SIZE - 100, SIZE)]
SHARES = list(pieces([(0, SIZE)], SHARE))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """An image, and a target that differs from it in one byte of some blocks."""
    data = bytearray(random.Random(1).randbytes(SIZE))
    (tmp_path / "image").write_bytes(data)
    for at in WRONG:
        data[at] ^= 1
    (tmp_path / "target").write_bytes(data)
    return tmp_path / "image", tmp_path / "target"


@pytest.fixture
def fds(files: tuple[Path, Path]) -> Iterator[tuple[int, int]]:
    """Both, open: (image, target)."""
    opened = os.open(files[0], os.O_RDONLY), os.open(files[1], os.O_RDONLY)
    yield opened
    for fd in opened:
        os.close(fd)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Those that were forked, by number; small files are worth one."""
    forked: list[int] = []
    real = os.fork

    def fork() -> int:
        child = real()
        if child:
            forked.append(child)
        return child

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(comparing, "WORTH", 0)
    monkeypatch.setattr(comparing, "may_fork", lambda: True)
    monkeypatch.setattr(comparing, "SHARES", {"file": SHARE})
    return forked


def gone(child: int) -> bool:
    """Whether nobody is left of it, and nobody has to wait for it."""
    try:
        os.waitpid(child, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def found(files: tuple[Path, Path]) -> list[Range]:
    """By who asks for what differs, however it is found."""
    target, told = FileTarget(files[1], SIZE), list[int]()
    try:
        with Image(files[0]) as image:
            blocks = list(differences([(0, SIZE)], image.read_into, target, told.append, (image.fileno(), 0)))
    finally:
        target.close()
    assert told == [end for _, end in SHARES]
    return blocks


@pytest.mark.parametrize("threads", [1, 2])
def test_blocks_that_differ_are_found_in_order(fds: tuple[int, int], threads: int) -> None:
    each = list(compared(Pair(fds[1], fds[0], 0), SHARES, threads))
    assert len(each) == len(SHARES) and [block for blocks in each for block in blocks] == BLOCKS
    assert not any(blocks for blocks in compared(Pair(fds[0], fds[0], 0), SHARES, threads))


@pytest.mark.parametrize("shift", [512, 4096, -1024])
def test_the_target_may_lie_elsewhere(tmp_path: Path, shift: int) -> None:
    """By any number of bytes, whatever the size of a page."""
    data = bytearray(random.Random(2).randbytes(64 << 10))
    at = max(-shift, 0)
    (tmp_path / "image").write_bytes(data)
    data[20_000] ^= 1
    (tmp_path / "target").write_bytes(bytes(at + shift) + data[at:])
    with (tmp_path / "image").open("rb") as image, (tmp_path / "target").open("rb") as target:
        pair = Pair(target.fileno(), image.fileno(), shift)
        start = at + shift
        (blocks,) = compared(pair, [(start, len(data) + shift)], 1)
    (block,) = blocks
    assert block[0] <= 20_000 + shift < block[1] <= block[0] + 4096 and (block[0] - start) % 4096 == 0


def test_who_asks_is_told_by_a_child(files: tuple[Path, Path], children: list[int]) -> None:
    assert found(files) == BLOCKS
    assert len(children) == 1 and gone(children[0])


def test_who_wants_the_first_only_leaves_no_child(files: tuple[Path, Path], children: list[int]) -> None:
    target = FileTarget(files[1], SIZE)
    with Image(files[0]) as image:
        some = differences([(0, SIZE)], image.read_into, target, image=(image.fileno(), 0))
        assert next(some) == BLOCKS[0]
        some.close()  # type: ignore[attr-defined]
    target.close()
    assert gone(children[0])


def test_a_process_with_threads_reads(
    files: tuple[Path, Path], children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "may_fork", lambda: False)
    assert found(files) == BLOCKS and not children


@pytest.mark.parametrize("told", [0, 2])
def test_what_a_killed_child_has_not_told_is_read(
    files: tuple[Path, Path], children: list[int], monkeypatch: pytest.MonkeyPatch, told: int
) -> None:
    real = mapped.in_order

    def killed(*work: object) -> Iterator[tuple[Range, list[Range]]]:
        for number, item in enumerate(real(*work)):  # type: ignore[arg-type, var-annotated]
            if number == told:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    monkeypatch.setattr(mapped, "in_order", killed)
    assert found(files) == BLOCKS
    assert len(children) == 1 and gone(children[0])


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_that_is_cut_short_ends_the_child_alone(
    fds: tuple[int, int], files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """Between the look at its size and the look at its bytes, which is a SIGBUS."""

    def cut(*_: object) -> bool:
        os.truncate(files[which], SHARE // 2)
        return True

    monkeypatch.setattr(mapped, "_is_there", cut)
    assert list(compared(Pair(fds[1], fds[0], 0), SHARES, 1)) == []
    assert files[which].stat().st_size == SHARE // 2


def test_a_target_that_ends_early_is_read_from_there_on(files: tuple[Path, Path], children: list[int]) -> None:
    os.truncate(files[1], SHARE)
    assert found(files) == [*BLOCKS[:3], *pieces([(SHARE, SIZE)], 4096)]
    assert len(children) == 1


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_in_memory_is_read(
    files: tuple[Path, Path], children: list[int], monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """From there on: the kernel fetches more at a time for who reads."""
    inode = files[which].stat().st_ino

    def is_there(file: int, offset: int, _: int) -> bool:
        return os.fstat(file).st_ino != inode or offset < SHARE

    monkeypatch.setattr(mapped, "_is_there", is_there)
    assert found(files) == BLOCKS
    assert len(children) == 1 and gone(children[0])


@pytest.mark.parametrize(
    ("answer", "there"), [(1, True), (BlockingIOError(), False), (OSError(95, "unsupported"), True), (None, True)]
)
def test_the_kernel_is_asked_what_it_has(
    fds: tuple[int, int], monkeypatch: pytest.MonkeyPatch, answer: int | OSError | None, there: bool
) -> None:
    """Where it cannot be asked, or has no answer, all may be there."""
    asked: list[int] = []

    def preadv(_file: int, _buffers: object, place: int, _flags: int) -> int:
        asked.append(place)
        if isinstance(answer, OSError):
            raise answer
        return 1

    monkeypatch.setattr(os, "preadv", preadv)
    if answer is None:
        monkeypatch.delattr(os, "RWF_NOWAIT")
    assert mapped._is_there(fds[0], 4096, 2 << 20) is there
    assert asked == ([4096, 4096 + (1 << 20)] if answer == 1 else [] if answer is None else [4096])
