# SPDX-License-Identifier: Apache-2.0
"""The interface between a conversation over a serial line and the owner of the port: no port, no clock.

A conversation is a generator. It yields an `Io`: bytes to send and how long to wait. It is sent what has arrived in the
meantime, b"" if nothing did. A port drives it in real time, a simulated line in simulated time.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

BITS_PER_BYTE = 10
"""start bit, eight data bits, stop bit"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Io:
    """data  what to send first
    wait  seconds to wait for the first byte after that; 0 takes only what has already arrived
    baud  the port's new rate, before anything is sent; None leaves it unchanged
    """

    data: bytes = b""
    wait: float = 0.0
    baud: int | None = None


Exchange = Generator[Io, bytes, T]
