# SPDX-License-Identifier: Apache-2.0
"""What `test_flash_mapped.py` has done by a process without other threads, as who forks must be: CASE FOLDER."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

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

children: list[int] = []
fork = os.fork


def remembered() -> int:
    """As os.fork, and the child is known."""
    if child := fork():
        children.append(child)
    return child


def pair(folder: Path) -> tuple[Path, Path]:
    """An image, and a target that differs from it in one byte of some blocks."""
    data = bytearray(random.Random(1).randbytes(SIZE))
    (folder / "image").write_bytes(data)
    for at in WRONG:
        data[at] ^= 1
    (folder / "target").write_bytes(data)
    return folder / "image", folder / "target"


def seen(image: Path, target: Path, threads: int = 2) -> list[list[Range]]:
    """By the child alone."""
    with image.open("rb") as one, target.open("rb") as other:
        return list(compared(Pair(other.fileno(), one.fileno(), 0), SHARES, threads))


def found(image: Path, target: Path) -> list[Range]:
    """By who asks for what differs, however it is found."""
    there, told = FileTarget(target, SIZE), list[int]()
    with Image(image) as source:
        blocks = list(differences([(0, SIZE)], source.read_into, there, told.append, (source.fileno(), 0)))
    there.close()
    assert told == [end for _, end in SHARES]
    return blocks


def alone() -> None:
    """Nobody is left, and nobody has to be waited for."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return
    raise AssertionError("a child is left")


def in_order(folder: Path) -> None:
    image, target = pair(folder)
    for threads in (1, 2):
        each = seen(image, target, threads)
        assert len(each) == len(SHARES) and [block for blocks in each for block in blocks] == BLOCKS
    assert seen(image, image) == [[]] * len(SHARES)


def elsewhere(folder: Path) -> None:
    """The target lies by any number of bytes before or behind, whatever the size of a page."""
    for shift in (512, 4096, -1024):
        data = bytearray(random.Random(2).randbytes(64 << 10))
        at = max(-shift, 0)
        (folder / "image").write_bytes(data)
        data[20_000] ^= 1
        (folder / "target").write_bytes(bytes(at + shift) + data[at:])
        with (folder / "image").open("rb") as image, (folder / "target").open("rb") as target:
            start = at + shift
            ((block,),) = compared(Pair(target.fileno(), image.fileno(), shift), [(start, len(data) + shift)], 1)
        assert block[0] <= 20_000 + shift < block[1] <= block[0] + 4096 and (block[0] - start) % 4096 == 0


def asked(folder: Path) -> None:
    assert found(*pair(folder)) == BLOCKS and len(children) == 1


def first_only(folder: Path) -> None:
    image, target = pair(folder)
    there = FileTarget(target, SIZE)
    with Image(image) as source:
        some = differences([(0, SIZE)], source.read_into, there, image=(source.fileno(), 0))
        assert next(some) == BLOCKS[0]
        some.close()  # type: ignore[attr-defined]
    there.close()
    assert len(children) == 1


def with_threads(folder: Path) -> None:
    comparing.may_fork = lambda: False  # type: ignore[attr-defined]
    assert found(*pair(folder)) == BLOCKS and not children


def killed(folder: Path) -> None:
    """After it has told so much; the rest is read."""
    real = mapped.in_order  # type: ignore[attr-defined]
    for told in (0, 2):

        def until(*work: object, told: int = told) -> Iterator[object]:
            for number, item in enumerate(real(*work)):
                if number == told:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield item

        mapped.in_order = until  # type: ignore[attr-defined]
        assert found(*pair(folder)) == BLOCKS
    assert len(children) == 2


def cut_short(folder: Path) -> None:
    """Between the look at its size and the look at its bytes, which is a SIGBUS: it ends the child alone."""
    for which in (0, 1):
        files = pair(folder)

        def cut(*_: object, file: Path = files[which]) -> bool:
            os.truncate(file, SHARE // 2)
            return True

        mapped._is_there = cut
        assert seen(*files, 1) == []
        assert files[which].stat().st_size == SHARE // 2


def ends_early(folder: Path) -> None:
    image, target = pair(folder)
    os.truncate(target, SHARE)
    assert found(image, target) == [*BLOCKS[:3], *pieces([(SHARE, SIZE)], 4096)] and len(children) == 1


def not_in_memory(folder: Path) -> None:
    """From there on it is read: the kernel fetches more at a time for who does."""
    for which in (0, 1):
        files = pair(folder)
        inode = files[which].stat().st_ino
        mapped._is_there = lambda file, at, _, inode=inode: os.fstat(file).st_ino != inode or at < SHARE
        assert len(seen(*files)) == 1 and found(*files) == BLOCKS
    assert len(children) == 4


CASES = {
    case.__name__: case
    for case in (in_order, elsewhere, asked, first_only, with_threads, killed, cut_short, ends_early, not_in_memory)
}

if __name__ == "__main__":
    os.fork = remembered
    comparing.WORTH = 0  # small files are worth a child
    comparing.SHARES = {"file": SHARE}
    CASES[sys.argv[1]](Path(sys.argv[2]))
    alone()
