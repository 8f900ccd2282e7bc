# SPDX-License-Identifier: Apache-2.0
"""What a conversation over a serial line asks of whoever owns the port: no port, no clock.

A conversation is a generator. It yields an `Io`: bytes to send and how long to wait; it is sent what has come in the
meantime, b"" when nothing did. A port drives it in real time, a simulated line in a time of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

BITS_PER_BYTE = 10
"""start, eight of data, stop"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Io:
    """data  what to send first
    wait  seconds to wait for the first byte after that; 0 takes only what has come already
    baud  the port's new rate, before anything is sent; None leaves it
    """

    data: bytes = b""
    wait: float = 0.0
    baud: int | None = None


Exchange = Generator[Io, bytes, T]
