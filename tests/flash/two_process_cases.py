# SPDX-License-Identifier: Apache-2.0
"""The cases of `test_flash_two_processes.py`, run in a process without other threads, as forking requires: CASE
FOLDER."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from erofs_edge.errors import SourceError
from erofs_edge.flash import comparing, two_processes
from erofs_edge.flash.comparing import Range, differences, pieces
from erofs_edge.flash.image import Image
from erofs_edge.flash.local import FileTarget
from erofs_edge.flash.two_processes import compared

SIZE = (2 << 20) + 4096 + 100
SHARE = 512 << 10
WRONG = [0, 4096, SHARE - 1, SHARE, SIZE - 1]
BLOCKS = [(0, 4096), (4096, 8192), (SHARE - 4096, SHARE), (SHARE, SHARE + 4096), (SIZE - 100, SIZE)]
SHARES = list(pieces([(0, SIZE)], SHARE))

children: list[int] = []
fork = os.fork


def remembered() -> int:
    """Like os.fork, but records the child."""
    if child := fork():
        children.append(child)
    return child


def is_child() -> bool:
    """Whether this is the forked process: each knows only those before it."""
    return os.getpid() != PARENT


PARENT = os.getpid()


def pair(folder: Path) -> tuple[Path, Path]:
    """An image, and a target that differs from it in one byte of some blocks."""
    data = bytearray(random.Random(1).randbytes(SIZE))
    (folder / "image").write_bytes(data)
    for at in WRONG:
        data[at] ^= 1
    (folder / "target").write_bytes(data)
    return folder / "image", folder / "target"


def found(image: Path, target: Path) -> list[Range]:
    """Return what the caller finds, whichever way it is found."""
    there, told = FileTarget(target, SIZE), list[int]()
    with Image(image) as source:
        blocks = list(differences([(0, SIZE)], source.read_into, there, told.append))
    there.close()
    assert told == [end for _, end in SHARES]
    return blocks


def alone() -> None:
    """No child is left, and none has to be waited for."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return
    raise AssertionError("a child is left")


def by_both(folder: Path) -> None:
    """Each share is done once, by one of the two, and the results are in order."""
    done = os.open(folder / "done", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def compare(start: int, end: int) -> list[Range]:
        os.write(done, f"{start} {int(is_child())}\n".encode())
        time.sleep(0.01)  # neither is through before the other has begun
        return [(start, end)] * (start % 3)

    shares = [(number, number + 1) for number in range(100)]
    assert list(compared(shares, compare)) == [[share] * (share[0] % 3) for share in shares]
    lines = [line.split() for line in (folder / "done").read_text().splitlines()]
    assert sorted(int(start) for start, _ in lines) == list(range(100))
    assert {who for _, who in lines} == {"0", "1"} and len(children) == 1


def many_at_a_time(folder: Path) -> None:
    """More than the pipe with the tickets holds: one process for so many."""
    two_processes.AT_ONCE = 7
    shares = [(number, number + 1) for number in range(17)]
    assert list(compared(shares, lambda start, end: [(start, end)])) == [[share] for share in shares]
    assert len(children) == 3


def much_to_tell(folder: Path) -> None:
    """More results in each share than a pipe takes at once."""
    ranges = [(start, start + 1) for start in range(0, 40_000, 2)]
    shares = [(number, number + 1) for number in range(8)]
    assert list(compared(shares, lambda start, end: [*ranges, (start, end)])) == [[*ranges, share] for share in shares]


def asked(folder: Path) -> None:
    assert found(*pair(folder)) == BLOCKS and len(children) == 1


def elsewhere(folder: Path) -> None:
    """The target is at an offset of any number of bytes before or behind."""
    for shift in (512, 4096, -1024):
        data = bytearray(random.Random(2).randbytes(64 << 10))
        at = max(-shift, 0)
        (folder / "image").write_bytes(data)
        data[20_000] ^= 1
        (folder / "target").write_bytes(bytes(at + shift) + data[at:])
        start, there = at + shift, FileTarget(folder / "target", 0)
        with Image(folder / "image") as source:

            def fill(place: int, buffer: bytearray, shift: int = shift, source: Image = source) -> None:
                source.read_into(place - shift, buffer)

            (block,) = differences([(start, len(data) + shift)], fill, there)
        there.close()
        assert block[0] <= 20_000 + shift < block[1] <= block[0] + 4096 and (block[0] - start) % 4096 == 0
    assert len(children) == 3


def first_only(folder: Path) -> None:
    image, target = pair(folder)
    there = FileTarget(target, SIZE)
    with Image(image) as source:
        some = differences([(0, SIZE)], source.read_into, there)
        assert next(some) == BLOCKS[0]
        some.close()  # type: ignore[attr-defined]
    there.close()
    assert len(children) == 1


def with_threads(folder: Path) -> None:
    comparing.may_fork = lambda: False  # type: ignore[attr-defined]
    assert found(*pair(folder)) == BLOCKS and not children


def one_processor(folder: Path) -> None:
    comparing.processors = lambda: 1  # type: ignore[attr-defined]
    assert found(*pair(folder)) == BLOCKS and not children


def small(folder: Path) -> None:
    comparing.WORTH = SIZE + 1
    assert found(*pair(folder)) == BLOCKS and not children


def the_other(does: Callable[[], None]) -> None:
    """Make the forked process do this at its second share, and let it get there: we wait for it with our first."""
    reading, writing = os.pipe()
    real, seen = comparing._Reader.compare, list[int]()

    def compare(self: comparing._Reader, start: int, end: int) -> list[Range]:
        seen.append(start)
        if is_child() and len(seen) == 2:
            os.write(writing, b".")
            does()
        if not is_child() and len(seen) == 1:
            assert os.read(reading, 1)
        return real(self, start, end)

    comparing._Reader.compare = compare  # type: ignore[method-assign]


def killed(folder: Path) -> None:
    """After it has reported something; we do what it had begun."""
    the_other(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert found(*pair(folder)) == BLOCKS and len(children) == 1


def fails(folder: Path) -> None:
    """Whatever error it meets, we find it ourselves."""

    def fail() -> None:
        raise OSError("cannot be read")

    the_other(fail)
    assert found(*pair(folder)) == BLOCKS and len(children) == 1


def ends_with_its_parent(folder: Path) -> None:
    """Even if that was killed, and so cleans up nothing."""
    reading, writing = os.pipe()

    def compare(start: int, end: int) -> list[Range]:
        os.write(writing, os.getpid().to_bytes(4, "little"))
        time.sleep(0.01)
        return []

    if not (parent := fork()):
        os.close(reading)
        list(compared(SHARES * 10_000, compare))
    os.close(writing)
    seen = set[bytes]()
    while len(seen) < 2:
        seen.add(os.read(reading, 4))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while os.read(reading, 1 << 16):  # until nobody is left who could write
        pass


def an_image_that_shrinks(folder: Path) -> None:
    image, target = pair(folder)
    there = FileTarget(target, SIZE)
    with Image(image) as source:
        os.truncate(image, SHARE + 10)
        try:
            list(differences([(0, SIZE)], source.read_into, there))
        except SourceError as error:
            assert "shorter" in error.message
        else:
            raise AssertionError("nobody has noticed")
    there.close()


def ends_early(folder: Path) -> None:
    image, target = pair(folder)
    os.truncate(target, SHARE)
    assert found(image, target) == [*BLOCKS[:3], *pieces([(SHARE, SIZE)], 4096)] and len(children) == 1


CASES = {
    case.__name__: case
    for case in (
        by_both, many_at_a_time, much_to_tell, asked, elsewhere, first_only, with_threads, one_processor, small, killed,
        fails, ends_with_its_parent, an_image_that_shrinks, ends_early,
    )
}  # fmt: skip

if __name__ == "__main__":
    os.fork = remembered
    comparing.WORTH = 0  # small files are worth a child
    comparing.SHARES = {"file": SHARE}
    comparing.processors = lambda: 2  # type: ignore[attr-defined]
    CASES[sys.argv[1]](Path(sys.argv[2]))
    alone()
