# SPDX-License-Identifier: Apache-2.0
"""What an update will cost for those who have an earlier release: blocks to write, bytes to send, minutes by link."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erofs_edge.build.record import read_release
from erofs_edge.errors import ErofsEdgeError, VerificationError
from erofs_edge.flash.delta import patch_bytes

FORECAST = "forecast.json"
SYSTEM = "system.img"
BLOCK = 4096
LINKS = {"serial 115200": 11_520, "1 Mbit/s": 125_000, "20 Mbit/s": 2_500_000, "USB 2": 35_000_000}
"""link → bytes per second"""


@dataclass(frozen=True, slots=True)
class Forecast:
    """One earlier release compared with the new one. Sizes in bytes of system.img with its hash tree and parity.

    blocks   blocks of 4096 bytes in the new image
    written  those that differ from the block in the same place
    novel    those whose content is nowhere in the old image: sent if the device copies the others
    patch    frames against the old image: sent if the device unpacks them
    """

    root_hash: str
    version: int
    size: int
    blocks: int
    written: int
    novel: int
    patch: int

    @property
    def methods(self) -> dict[str, int]:
        """Transfer method → bytes on the wire."""
        return {
            "whole image": self.size,
            "blocks that differ": self.written * BLOCK,
            "blocks that are new": self.novel * BLOCK,
            "patch": self.patch,
        }


def read_earlier(old: Path, board: str) -> dict[str, Any]:
    """The record of an earlier release (or build). Raises ErofsEdgeError if there is none, or for another board's."""
    record = read_release(old)
    if record["board"] != board:
        raise ErofsEdgeError(f"this is a release of board '{record['board']}', not of '{board}'", where=str(old))
    return record


def forecast(old: Path, new: Path) -> Forecast:
    """Forecast the update of a slot on a device that has the release (or build) in the folder `old`.

    Raises ErofsEdgeError if a folder has no release or another board's.
    """
    after = read_release(new)
    before = read_earlier(old, after["board"])
    try:
        one, other = (old / SYSTEM).read_bytes(), (new / SYSTEM).read_bytes()
    except OSError as error:
        raise ErofsEdgeError(f"cannot read: {error.strerror}", where=str(error.filename)) from error
    for folder, record, data in ((old, before, one), (new, after, other)):
        if hashlib.sha256(data).hexdigest() != record["files"][SYSTEM]["sha256"]:
            raise VerificationError("differs from what release.json lists", where=str(folder / SYSTEM))
    had, has = _blocks(one), _blocks(other)
    known = set(had)
    return Forecast(
        root_hash=before["system"]["root_hash"],
        version=before["sign"]["rollback_index"],
        size=len(other),
        blocks=len(has),
        written=sum(index >= len(had) or block != had[index] for index, block in enumerate(has)),
        novel=sum(block not in known for block in has),
        patch=patch_bytes(one, other),
    )


def _blocks(data: bytes) -> list[bytes]:
    """A digest of each block; the last one may be short."""
    view = memoryview(data)
    return [hashlib.blake2b(view[at : at + BLOCK], digest_size=16).digest() for at in range(0, len(data), BLOCK)]


def forecast_record(found: list[Forecast]) -> list[dict[str, Any]]:
    """The value of forecast.json."""
    return [
        {
            "root_hash": one.root_hash,
            "rollback_index": one.version,
            "blocks": one.blocks,
            "blocks_written": one.written,
            "bytes_on_wire": one.methods,
            "seconds": {
                link: {way: round(size / rate, 1) for way, size in one.methods.items()} for link, rate in LINKS.items()
            },
        }
        for one in found
    ]
