# SPDX-License-Identifier: Apache-2.0
"""The differences between an image and a local target, read by several threads at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from erofs_edge.errors import SourceError
from erofs_edge.flash.comparing import SHARES, differences
from erofs_edge.flash.image import Image
from erofs_edge.flash.local import FileTarget
from erofs_edge.flash.plan import plan_flash
from erofs_edge.flash.survey import survey
from erofs_edge.flash.target import Ability
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.target import SimulatedTarget
from erofs_edge.threads import in_order

SHARE = SHARES["file"]
SIZE = 2 * SHARE + (1 << 20) + 4096 + 100
WRONG = [0, 4096, SHARE - 4096, SHARE, 2 * SHARE + (256 << 10), SIZE - 100]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, FileTarget]:
    """An image, and a target that differs from it in one byte of some blocks."""
    data = bytearray(random.Random(1).randbytes(SIZE))
    (tmp_path / "image").write_bytes(data)
    for at in WRONG:
        data[at] ^= 1
    (tmp_path / "target").write_bytes(data)
    return tmp_path / "image", FileTarget(tmp_path / "target", SIZE)


def test_all_that_differs_is_found_in_order(pair: tuple[Path, FileTarget]) -> None:
    path, target = pair
    assert target.at_once > 1
    told: list[int] = []
    with Image(path) as image:
        found = list(differences([(0, SIZE)], image.read_into, target, told.append))
        assert found == [(at, min(at + 4096, SIZE)) for at in WRONG]
        assert told == sorted(told) and told[-1] == SIZE
        (region,) = plan_flash(path, target.identity).contents
        findings = survey(region, image, target)
    assert findings.write == [(0, 8192), (SHARE - 4096, SHARE + 4096), *((a, min(a + 4096, SIZE)) for a in WRONG[4:])]
    assert findings.kept == SIZE - findings.write_bytes
    target.close()


def test_who_wants_the_first_only_gets_it(pair: tuple[Path, FileTarget]) -> None:
    path, target = pair
    with Image(path) as image:
        found = differences([(4096, SIZE)], image.read_into, target)
        assert next(found) == (4096, 8192)
        found.close()  # type: ignore[attr-defined]
    target.close()


def test_an_image_that_has_become_shorter(pair: tuple[Path, FileTarget]) -> None:
    path, target = pair
    with Image(path) as image:
        with path.open("r+b") as file:
            file.truncate(SHARE + 10)
        with pytest.raises(SourceError, match="shorter"):
            list(differences([(0, SIZE)], image.read_into, target))
    target.close()


def test_work_of_several_threads_comes_in_order() -> None:
    """However long each takes; a failure is raised in its place."""
    ended = [threading.Event() for _ in range(100)]

    def work(number: int) -> int:
        if number < 2:
            assert ended[number + 1].wait(60), "a later one is under way meanwhile"
        ended[number].set()
        if number == 5:
            raise OSError("five")
        return number * number

    made = in_order(work, range(100), 3)
    assert [next(made) for _ in range(5)] == [(number, number * number) for number in range(5)]
    with pytest.raises(OSError, match="five"):
        next(made)
    assert list(in_order(work, [], 3)) == [] and list(in_order(work, [7], 3)) == [(7, 49)]
    here = threading.get_ident()
    assert list(in_order(lambda _: threading.get_ident(), [1], 4)) == [(1, here)]
    some = in_order(lambda _: threading.get_ident(), range(1000), 4)
    assert next(some)[1] != here
    some.close()  # type: ignore[attr-defined]


class Dear(SimulatedTarget):
    """Each answer costs as much as writing some tens of KiB."""

    asked = 0

    @property
    def steps(self) -> tuple[int, ...]:
        return 1 << 20, 64 << 10

    def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.asked += len(ranges)
        return super().digests(ranges)


@pytest.mark.parametrize(("wrong", "asked", "written"), [(range(4), 4, 4 << 20), ([2], 4 + 16, 64 << 10)])
def test_a_blank_slot_is_not_asked_about_piece_by_piece(
    wrong: Sequence[int], asked: int, written: int, tmp_path: Path
) -> None:
    data = bytearray(random.Random(2).randbytes(4 << 20))
    (tmp_path / "image").write_bytes(data)
    for number in wrong:
        data[number << 20] ^= 1
    target = Dear(SimulatedDisk(data), Ability.READ | Ability.HASH)
    with Image(tmp_path / "image") as image:
        (region,) = plan_flash(tmp_path / "image", target.identity).contents
        assert survey(region, image, target).write_bytes == written
    assert target.asked == asked
