# SPDX-License-Identifier: Apache-2.0
"""Whether what a target could unpack goes to it packed or as it is: whatever makes more of its disk right in a second.

A slow wire speaks for packing, a slow board behind a quick wire against it. Both are measured, with what has to be sent
anyway: first a little as it is, until that took long enough to be believed; then a little packed, unless what the
target says of itself rules that out. That is believed until a trial would be little beside what has gone by: the target
may have been busy when it measured itself. The quicker way goes on, and now and then the other has a turn, for the
wire, the card and the content change.

There is no clock here: the caller says what took how long.
"""

from __future__ import annotations

from erofs_edge.flash.target import Effort

FIRST = 1 << 20  # bytes that go as they are before anything is known, and then MORE times that, again and again
MORE = 4  # few, for until all of it has arrived nothing else is under way
ENOUGH = 0.1  # seconds: of a wire, a shorter time says little
PLAIN = 64 << 20  # bytes of a turn without packing
TRIAL = 4 << 20  # bytes of a turn of the way that is not the quicker one
PACKED = 16 << 20  # bytes of a turn with packing: what one request is about
OFTEN = 32  # the other way has a turn after so many times as much
SELDOM = 8  # that many times more where it was not half as quick
BELIEVED = 16  # what a target says of itself is tried after that many times as long as the trial would take then


class Pace:
    """What the two ways have achieved so far."""

    def __init__(self, effort: Effort) -> None:
        self._request, self._turn = effort.request, effort.request + effort.byte * PACKED
        self._trial = effort.request + effort.byte * TRIAL
        self._waited = 0.0  # seconds without packing
        self._first = FIRST  # 0 when the wire is known
        self._plain = self._packed = 0.0  # bytes of the disk in a second; 0: not known
        self._since = 0  # bytes since the other way had a turn
        self._refused = False

    @property
    def packs(self) -> bool:
        """Whether the next turn is one with packing."""
        if self._first or self._refused:
            return False
        if not self._packed:
            return self._said < PACKED / self._plain  # as if all of it packed to nothing
        return self.prefers_packed != (self._since >= self._patience)

    @property
    def prefers_packed(self) -> bool:
        """Whether packing was the quicker way."""
        return self._packed > self._plain

    @property
    def amount(self) -> int:
        """Bytes that the next turn is about, at most."""
        if self._first:
            return self._first
        if self.packs != self.prefers_packed:
            return TRIAL
        return PACKED if self.prefers_packed else PLAIN

    def pays(self, size: int, packed: int) -> bool:
        """Whether bytes that are as many packed might arrive sooner so. If not, the next turn is one without."""
        self._refused = self._said + packed / size * PACKED / self._plain >= PACKED / self._plain
        return not self._refused

    def took(self, size: int, seconds: float, *, packed: bool) -> None:
        """What was sent in a turn has arrived, or been unpacked: bytes of the disk."""
        before = self.prefers_packed
        self._since = self._since + size if packed == before and not self._refused else 0
        self._refused = False
        self._waited += 0.0 if packed else seconds
        if size >= FIRST:  # not the end of something
            self._measured(size, seconds, packed=packed)
        if self.prefers_packed != before:
            self._since = 0

    def _measured(self, size: int, seconds: float, *, packed: bool) -> None:
        rate = size / max(seconds, 1e-9)
        if packed:
            more = max(1.0, PACKED / size)  # of a turn that is full, and has one request, too
            self._packed = size * more / max(self._request + (seconds - self._request) * more, 1e-9)
        elif seconds >= ENOUGH or size >= PLAIN:
            self._plain, self._first = rate, 0
        elif self._first:
            self._plain, self._first = rate, self._first * MORE

    @property
    def _said(self) -> float:
        """Seconds that a turn with packing takes at the least, as far as the target is believed."""
        return 0.0 if self._waited >= BELIEVED * self._trial else self._turn

    @property
    def _patience(self) -> int:
        """Bytes that go by before the other way has a turn."""
        near = 2 * min(self._plain, self._packed) >= max(self._plain, self._packed)
        return TRIAL * OFTEN * (1 if near else SELDOM)
