# SPDX-License-Identifier: Apache-2.0
"""The result of a comparison: changes in order, and the totals that people read first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

CHANGES_MAX = 200_000
"""number of changes kept; more are only counted"""


@dataclass(slots=True)
class Change:
    """One difference.

    layer    'partition table', 'partition', 'FAT', 'FIT', 'initramfs', 'vbmeta', 'superblock', 'file', 'inode',
             'content', 'placement', 'encoding', 'metadata', 'verity', 'JSON', 'archive', 'damage'
    where    what it is in, outermost first, joined by ' > ': 'disk.img > system_a > /usr/bin/tool'
    what     the field, or 'added', 'removed', 'content'
    old, new its values as text; None on the side that lacks it
    why      the cause, '' if the value itself says everything
    package  the package that owns the path, '' for none
    blocks   number of blocks of the new image that contain it and differ in place; None if not known
    detail   further lines
    """

    layer: str
    where: str
    what: str
    old: str | None = None
    new: str | None = None
    why: str = ""
    package: str = ""
    blocks: int | None = None
    detail: list[str] = field(default_factory=list)


@dataclass(slots=True)
class PackageChange:
    """One package's share of the changes in an image; `old` or `new` is None if it is on one side only."""

    image: str
    name: str
    old: str | None
    new: str | None
    files: int = 0
    blocks: int = 0

    @property
    def text(self) -> str:
        """'libssl3 3.0.15 → 3.0.16'."""
        if self.old == self.new:
            return f"{self.name} {self.new or ''}".rstrip()
        return f"{self.name} {self.old or '(absent)'} → {self.new or '(absent)'}"


@dataclass(slots=True)
class Report:
    """The outcome. `compared` names what was compared, so that 'no change' is a meaningful statement.

    summary   sentences, each about one image or file
    dropped   number of changes found but not kept
    """

    old: str
    new: str
    changes: list[Change] = field(default_factory=list)
    packages: list[PackageChange] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    dropped: int = 0
    _trail: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not self.changes

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Changes added inside the block are in `name`."""
        self._trail.append(name)
        try:
            yield
        finally:
            self._trail.pop()

    def place(self, name: str = "") -> str:
        """The current place of the comparison."""
        return " > ".join([*self._trail, name] if name else self._trail)

    def add(self, change: Change) -> None:
        """Add a change; its `where` is relative to the current place."""
        if len(self.changes) >= CHANGES_MAX:
            self.dropped += 1
            return
        change.where = self.place(change.where)
        self.changes.append(change)

    def field(self, layer: str, where: str, what: str, old: object, new: object, why: str = "") -> None:
        """Add a change of one value, if the values differ."""
        if old != new:
            self.add(Change(layer, where, what, shown(old), shown(new), why))

    def say(self, sentence: str) -> None:
        """Add a sentence to the summary, prefixed with the place."""
        place = self.place()
        self.summary.append(f"{place}: {sentence}" if place else sentence)


def shown(value: object) -> str | None:
    """A value in a change: bytes as hex, at most 200 characters."""
    if value is None:
        return None
    text = bytes(value).hex() if isinstance(value, bytes | bytearray | memoryview) else str(value)
    return text if len(text) <= 200 else f"{text[:180]}… ({len(text)} characters)"
