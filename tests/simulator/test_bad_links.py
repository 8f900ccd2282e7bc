# SPDX-License-Identifier: Apache-2.0
"""The simulator's bad links: each fault does what it is called, the same way for the same seed."""

from __future__ import annotations

from random import Random

import pytest

from erofs_edge.simulator.links import BadLine, BadPackets

SENT = bytes(range(256)) * 20


def bits_changed(one: bytes, other: bytes) -> list[int]:
    """Of each byte."""
    return [(a ^ b).bit_count() for a, b in zip(one, other, strict=True)]


def test_a_line_without_faults_counts_time_and_does_not_wait() -> None:
    line = BadLine(Random(1), rate=11520)
    assert line(SENT[:1000]) + line(SENT[1000:]) == SENT
    assert line.carried == len(SENT)
    assert line.seconds == pytest.approx(len(SENT) / 11520)


def test_a_line_that_dies_carries_nothing_more() -> None:
    line = BadLine(Random(1), rate=100, dies_after=300)
    assert [len(line(SENT[at : at + 128])) for at in range(0, 512, 128)] == [128, 128, 44, 0]
    assert (line.carried, line.seconds) == (300, pytest.approx(3))


@pytest.mark.parametrize("fault", ["lost", "doubled", "corrupted"])
def test_each_fault_of_a_line(fault: str) -> None:
    lines = [BadLine(Random(7), **{fault: 0.1}) for _ in range(2)]
    arrived = lines[0](SENT)
    assert arrived == lines[1](SENT), "the same seed, the same faults"
    assert arrived != SENT
    if fault == "corrupted":
        assert set(bits_changed(arrived, SENT)) == {0, 1}
        return
    more, fewer = (SENT, arrived) if fault == "lost" else (arrived, SENT)
    assert len(SENT) * 0.05 < len(more) - len(fewer) < len(SENT) * 0.2
    rest = iter(more)
    assert all(byte in rest for byte in fewer), "what is left is in its order"


def test_each_fault_of_packets() -> None:
    one, two = b"first packet", b"second packet"
    assert BadPackets(Random(1))(one) == [one]
    assert BadPackets(Random(1), lost=1)(one) == []
    assert BadPackets(Random(1), repeated=1)(one) == [one, one]
    (changed,) = BadPackets(Random(1), corrupted=1)(one)
    assert sum(bits_changed(changed, one)) == 1
    assert BadPackets(Random(1), corrupted=1)(b"") == [b""]
    link = BadPackets(Random(1), late=1)
    assert link(one) == []
    link.late = 0
    assert link(two) == [two, one]
    assert link(two) == [two]
