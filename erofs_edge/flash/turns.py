# SPDX-License-Identifier: Apache-2.0
"""Send data to a target that can unpack but holds nothing to refer to: packed or plain, in turns decided by `pace`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from erofs_edge.flash.comparing import CHUNK, Range
from erofs_edge.flash.delta import Frame, Window, packed, windows
from erofs_edge.flash.image import Image
from erofs_edge.flash.pace import PACKED, Pace
from erofs_edge.flash.plan import Region
from erofs_edge.flash.survey import Findings
from erofs_edge.threads import Threads

if TYPE_CHECKING:
    from concurrent.futures import Future

LONG = 2.0  # seconds after which a turn without packing ends early, since the link may have become slow

Piece = Frame | Range
Clock = Callable[[], float]
"""seconds; only differences count"""


class Turns:
    """One region on its way.

    settle  waits until everything sent has arrived
    """

    def __init__(
        self,
        region: Region,
        found: Findings,
        image: Image,
        pool: Threads,
        pace: Pace,
        settle: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._windows, self._back = windows(region, found), deque[Window]()
        self._image, self._shift = image, region.shift
        self._pool, self._pace, self._settle, self._clock = pool, pace, settle, clock

    def __iter__(self) -> Iterator[Piece]:
        """Yield frames and ranges to be sent. By asking for the next one, the caller confirms that it has sent or
        posted the previous ones. The next data is packed meanwhile."""
        coming: tuple[list[Window], Future[list[Piece]]] | None = None
        while group := self._take(self._pace.amount):
            pieces = None
            if coming is not None and coming[0] == group and self._pace.packs:
                pieces = coming[1].result()
            elif self._pace.packs:
                pieces = self._packed(group)
            coming = None
            if pieces is None:
                self._back.extendleft(reversed(group))
                yield from self._plain(self._pace.amount)
                continue
            if self._pace.prefers_packed and (following := self._take(PACKED)):
                coming = following, self._pool.submit(self._pack, following)
                self._back.extendleft(reversed(following))
            yield from self._timed(pieces)

    def _take(self, size: int) -> list[Window]:
        """The next windows, with at least this many bytes in total while there are any."""
        group: list[Window] = []
        while size > 0:
            window = self._back.popleft() if self._back else next(self._windows, None)
            if window is None:
                break
            group.append(window)
            size -= window.size
        return group

    def _pack(self, group: list[Window]) -> list[Piece]:
        return list(_joined(packed(group, self._image, self._shift)))

    def _packed(self, group: list[Window]) -> list[Piece] | None:
        """The group for a turn with packing. If packing was not the faster way, its start is packed first to see
        whether it could be; None if not."""
        if not self._pace.prefers_packed:
            sample = self._pack(group[:1])
            sent = sum(len(one.data) if isinstance(one, Frame) else one[1] - one[0] for one in sample)
            if not self._pace.pays(group[0].size, sent):
                return None
        return self._pack(group)

    def _timed(self, pieces: list[Piece]) -> Iterator[Piece]:
        """A turn with packing. Ranges that do not shrink are sent meanwhile and not timed."""
        seconds, done = 0.0, 0
        for piece in pieces:
            if not isinstance(piece, Frame):
                yield piece
                continue
            self._settle()
            started = self._clock()
            yield piece
            seconds += self._clock() - started
            done += piece.wrong
        if done:
            self._pace.took(done, seconds, packed=True)

    def _plain(self, limit: int) -> Iterator[Piece]:
        """A turn without packing, of about this many bytes."""
        self._settle()
        started, sent = self._clock(), 0
        while sent < limit and (not sent or self._clock() - started < LONG):
            group = self._take(min(CHUNK, limit - sent))
            if not group:
                break
            yield from _joined(piece for window in group for piece in window.wrong)
            sent += sum(window.size for window in group)
        self._settle()
        self._pace.took(sent, self._clock() - started, packed=False)


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Join consecutive ranges."""
    held: Range | None = None
    for piece in pieces:
        if isinstance(piece, Frame):
            if held is not None:
                yield held
            yield piece
            held = None
        elif held is not None and held[1] == piece[0]:
            held = held[0], piece[1]
        else:
            if held is not None:
                yield held
            held = piece
    if held is not None:
        yield held
