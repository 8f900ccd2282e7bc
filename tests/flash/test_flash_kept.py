# SPDX-License-Identifier: Apache-2.0
"""The page cache of a written file: everything that was proved stays cached for the next reader, but nothing is proved
from the cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from erofs_edge.flash.execute import flash
from erofs_edge.flash.image import Image
from erofs_edge.flash.local import LARGEST_FOLIO, FileTarget
from erofs_edge.flash.prepare import Wish, prepare
from erofs_edge.flash.survey import Progress
from erofs_edge.flash.update import read_layout
from erofs_edge.simulator.images import disk_image

EVERYTHING = (0, 0)
"""offset and length for which posix_fadvise(2) takes the whole file"""


class Dropped:
    """Records, by step, what the kernel was told to drop of a file: (offset, length)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_step: dict[str, list[tuple[int, int]]] = {}
        self._now: list[tuple[int, int]] = []
        monkeypatch.setattr(os, "posix_fadvise", self._advise)

    def _advise(self, _file: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        self._now.append((offset, length))

    @contextmanager
    def __call__(self, label: str) -> Iterator[Progress]:
        self._now = self.by_step[label] = []
        yield lambda done, total: None

    def under(self, word: str) -> list[tuple[int, int]]:
        """Return those of steps whose label begins this way."""
        return [drop for label, drops in self.by_step.items() if label.startswith(word) for drop in drops]


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> Dropped:
    return Dropped(monkeypatch)


def written(image: Path, card: Path, steps: Dropped, wish: Wish | None = None) -> FileTarget:
    target = FileTarget(card, image.stat().st_size)
    try:
        todo = prepare(image, target, wish or Wish(), steps)
        flash(todo.plan, target, steps, found=todo.found)
    finally:
        target.close()
    return target


def test_contents_are_read_back_from_the_medium_and_the_table_costs_no_more(
    image: Path, tmp_path: Path, dropped: Dropped
) -> None:
    written(image, tmp_path / "card", dropped)
    for name in ("boot", "unused", "system", "data"):
        found = [drops for label, drops in dropped.by_step.items() if label.split("'")[1:2] == [name]]
        assert [EVERYTHING] in found, name
    size, sector = image.stat().st_size, 512
    head, tail = (dropped.under(f"Writing '{name}' ")[0] for name in ("gpt", "gpt backup"))
    assert head[0] == 0
    assert head[1] >= 34 * sector
    assert EVERYTHING not in (head, tail)
    assert tail[0] <= size - 33 * sector
    assert sum(tail) >= size


def test_the_slot_state_costs_no_more_than_itself(tmp_path: Path, dropped: Dropped) -> None:
    old, new = (disk_image(tmp_path / f"v{version}.img", version) for version in (1, 2))
    card = tmp_path / "card"
    written(old, card, dropped)
    dropped.by_step.clear()
    written(new, card, dropped)
    assert set(dropped.under("Writing")) == {EVERYTHING}  # between what was compared and what is read back
    for step in ("Closing slot b", "Opening slot b"):
        drops = dropped.under(step)
        assert drops, step
        assert EVERYTHING not in drops
    with Image(new) as source:
        layout = read_layout(source)
    assert layout is not None
    start, end = layout.places[layout.misc]
    for offset, length in dropped.under("Opening slot b"):
        assert start - LARGEST_FOLIO < offset < end
        assert start < offset + length < end + LARGEST_FOLIO


@pytest.mark.parametrize(
    ("offset", "length", "first", "last"),
    [
        (0, 1, 0, 1),
        (LARGEST_FOLIO - 1, 2, 0, 2),
        (LARGEST_FOLIO, LARGEST_FOLIO, 1, 2),
        (3 * LARGEST_FOLIO + 5, 9, 3, 4),
    ],
)
def test_a_part_is_whole_pieces_of_what_the_kernel_keeps(
    offset: int, length: int, first: int, last: int, tmp_path: Path, dropped: Dropped
) -> None:
    target = FileTarget(tmp_path / "card", 1 << 20)
    try:
        with dropped("part"):
            target.flush_part(offset, length)
    finally:
        target.close()
    assert dropped.under("part") == [(first * LARGEST_FOLIO, (last - first) * LARGEST_FOLIO)]
