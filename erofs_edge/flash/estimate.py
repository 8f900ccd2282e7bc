# SPDX-License-Identifier: Apache-2.0
"""Estimate how long a plan takes, from the bytes it sends and the measured rate of the link to the target."""

from __future__ import annotations

import time
from dataclasses import dataclass

from erofs_edge.flash.guarded import Guarded
from erofs_edge.flash.prepare import Prepared
from erofs_edge.flash.target import Ability, Target

SAMPLE = 256 << 10  # bytes read to measure the link
ENOUGH = 0.02  # seconds; a link this slow needs no larger sample
SAMPLES = 4
HASH_OVERHEAD = 32 / (1 << 20)  # bytes of digests for each byte verified again


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes written, bytes sent, and seconds (None if the link could not be measured). `at_most` is set if the target
    can unpack, so that less may be sent."""

    written: int
    on_wire: int
    seconds: float | None
    at_most: bool = False


def estimate(prepared: Prepared, target: Target) -> Estimate:
    """Estimate the cost of a plan, including reading back. Raises PartialWriteError or DeviceError if it fails."""
    todo = prepared.todo
    sent = prepared.plan.mended_bytes + sum(found.write_bytes for found in todo.values())
    written = sent + sum(found.zero_bytes + found.copy_bytes for found in todo.values())
    proved = sum(region.data_bytes for region, found in todo.items() if not found.right)
    read_back = int(proved * HASH_OVERHEAD) if Ability.HASH in target.abilities else proved
    with Guarded(target, "target", "reading"):
        rate = link_rate(target)
    seconds = None if rate is None else (sent + read_back) / rate
    on_wire = sent if target.bytes_on_wire is None else sent + read_back
    return Estimate(written, on_wire, seconds, at_most=bool(sent) and Ability.PATCH in target.abilities)


def link_rate(target: Target) -> float | None:
    """Bytes per second, measured by reading; None if the target cannot be read. Too optimistic for media that write
    more slowly than they read."""
    if hasattr(target, "rate"):  # a serial line knows its rate; a sample would take too long
        return None if target.rate is None else float(target.rate)
    size = target.identity.size
    if Ability.READ not in target.abilities or size < SAMPLE:
        return None
    started = time.perf_counter()
    done = 0
    for _ in range(SAMPLES):
        done += len(target.read(done % (size - SAMPLE + 1), SAMPLE))
        if time.perf_counter() - started > ENOUGH:
            break
    return done / max(time.perf_counter() - started, 1e-9)
