# SPDX-License-Identifier: Apache-2.0
"""Decide whether data for a target that can unpack is sent packed or plain: whichever gets more of the disk right per
second.

A slow link favours packing; a slow board behind a fast link favours plain data. Both are measured with data that has
to be sent anyway. First some plain data, until it took long enough for a reliable figure. Then a little packed data,
unless the target's own figure for its speed rules packing out. That figure is trusted only until a trial would be small
compared with what has been sent: the target may have been busy when it measured itself. The faster way is used from
then on, and the other is tried again now and then, since link, card and content change.

There is no clock here: the caller supplies the durations.
"""

from __future__ import annotations

from erofs_edge.flash.target import Effort

FIRST = 1 << 20  # bytes sent plain before anything is known, then MORE times that, repeatedly
MORE = 4  # small, because nothing else is under way until all of it has arrived
ENOUGH = 0.1  # seconds: a shorter time says little about a link
PLAIN = 64 << 20  # bytes of a turn without packing
TRIAL = 4 << 20  # bytes of a turn of the slower way
PACKED = 16 << 20  # bytes of a turn with packing: about the content of one request
OFTEN = 32  # the slower way gets a turn after this many times its amount
SELDOM = 8  # this many times less often if it was less than half as fast
BELIEVED = 16  # a trial is made, whatever the target says, after this many times its expected duration


class Pace:
    """What the two ways have achieved so far."""

    def __init__(self, effort: Effort) -> None:
        self._request, self._turn = effort.request, effort.request + effort.byte * PACKED
        self._trial = effort.request + effort.byte * TRIAL
        self._waited = 0.0  # seconds without packing
        self._first = FIRST  # 0 once the link is known
        self._plain = self._packed = 0.0  # bytes of the disk per second; 0: not known
        self._since = 0  # bytes since the other way last had a turn
        self._refused = False

    @property
    def packs(self) -> bool:
        """Whether the next turn is one with packing."""
        if self._first or self._refused:
            return False
        if not self._packed:
            return self._said < PACKED / self._plain  # as if everything packed to nothing
        return self.prefers_packed != (self._since >= self._patience)

    @property
    def prefers_packed(self) -> bool:
        """Whether packing was the faster way."""
        return self._packed > self._plain

    @property
    def amount(self) -> int:
        """Most bytes that the next turn handles."""
        if self._first:
            return self._first
        if self.packs != self.prefers_packed:
            return TRIAL
        return PACKED if self.prefers_packed else PLAIN

    def pays(self, size: int, packed: int) -> bool:
        """Whether data that packs to this many bytes may arrive sooner that way. If not, the next turn is without
        packing.
        """
        self._refused = self._said + packed / size * PACKED / self._plain >= PACKED / self._plain
        return not self._refused

    def took(self, size: int, seconds: float, *, packed: bool) -> None:
        """Record that what was sent in a turn has arrived or been unpacked; `size` in bytes of the disk."""
        before = self.prefers_packed
        self._since = self._since + size if packed == before and not self._refused else 0
        self._refused = False
        self._waited += 0.0 if packed else seconds
        if size >= FIRST:  # not a last, short piece
            self._measured(size, seconds, packed=packed)
        if self.prefers_packed != before:
            self._since = 0

    def _measured(self, size: int, seconds: float, *, packed: bool) -> None:
        rate = size / max(seconds, 1e-9)
        if packed:
            more = max(1.0, PACKED / size)  # scaled to a full turn, which has one request, too
            self._packed = size * more / max(self._request + (seconds - self._request) * more, 1e-9)
        elif seconds >= ENOUGH or size >= PLAIN:
            self._plain, self._first = rate, 0
        elif self._first:
            self._plain, self._first = rate, self._first * MORE

    @property
    def _said(self) -> float:
        """Least seconds of a turn with packing, as far as the target's own figure is trusted."""
        return 0.0 if self._waited >= BELIEVED * self._trial else self._turn

    @property
    def _patience(self) -> int:
        """Bytes to send before the other way gets a turn."""
        near = 2 * min(self._plain, self._packed) >= max(self._plain, self._packed)
        return TRIAL * OFTEN * (1 if near else SELDOM)
