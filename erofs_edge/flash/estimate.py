# SPDX-License-Identifier: Apache-2.0
"""How long a plan would take: what goes over the wire, at the rate that the link to this target is measured to have."""

from __future__ import annotations

import time
from dataclasses import dataclass

from erofs_edge.flash.prepare import Prepared
from erofs_edge.flash.target import Ability, Target

SAMPLE = 256 << 10  # bytes that are read to measure the link
ENOUGH = 0.02  # seconds: a link that is this slow needs no larger sample
SAMPLES = 4
HASH_OVERHEAD = 32 / (1 << 20)  # bytes of digests for each byte that is proved again


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes that are written and sent, and seconds; None where the link could not be measured. `at_most`: the target
    can unpack, what is sent may be less."""

    written: int
    on_wire: int
    seconds: float | None
    at_most: bool = False


def estimate(prepared: Prepared, target: Target) -> Estimate:
    """What carrying out a plan would cost, the reading back included. Raises OSError where the target fails."""
    todo = prepared.todo
    sent = sum(found.write_bytes for found in todo.values())
    written = sent + sum(found.zero_bytes + found.copy_bytes for found in todo.values())
    proved = sum(region.data_bytes for region, found in todo.items() if not found.right)
    read_back = int(proved * HASH_OVERHEAD) if Ability.HASH in target.abilities else proved
    rate = link_rate(target)
    seconds = None if rate is None else (sent + read_back) / rate
    on_wire = sent if target.bytes_on_wire is None else sent + read_back
    return Estimate(written, on_wire, seconds, at_most=bool(sent) and Ability.PATCH in target.abilities)


def link_rate(target: Target) -> float | None:
    """Bytes a second, measured by reading; None where the target cannot be read. For a medium that writes slower than
    it reads this is too hopeful."""
    if hasattr(target, "rate"):  # a line has one, and a sample of it takes too long; a fastboot device measures it
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
