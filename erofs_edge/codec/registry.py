# SPDX-License-Identifier: Apache-2.0
"""Compression by name: which levels there are, and what identifies the bytes they give."""

from __future__ import annotations

from typing import NamedTuple

from erofs_edge.codec import lz4
from erofs_edge.errors import UsageError


class Codec(NamedTuple):
    """One compression as mkfs.erofs names it. `algorithm` is the number in the image; levels are inclusive."""

    name: str
    algorithm: int
    version: str
    default_level: int | None = None
    level_min: int = 0
    level_max: int = 0


CODECS = {
    "lz4": Codec("lz4", 0, lz4.VERSION),
    "lz4hc": Codec("lz4hc", 0, lz4.VERSION, 9, lz4.LEVEL_MIN, lz4.LEVEL_MAX),
}


def find_codec(name: str, level: int | None = None) -> tuple[Codec, int | None]:
    """The codec of a name and the level to use (its default for None). Raises UsageError for unknown ones."""
    codec = CODECS.get(name)
    if codec is None:
        raise UsageError(f"unknown compression {name!r}", hint=f"one of none, {', '.join(CODECS)}")
    if codec.default_level is None:
        if level is not None:
            raise UsageError(f"{name} has no levels", hint=f"use {name} alone, or lz4hc,{level}")
        return codec, None
    level = codec.default_level if level is None else level
    if not codec.level_min <= level <= codec.level_max:
        raise UsageError(f"{name} has no level {level}", hint=f"{codec.level_min} to {codec.level_max}")
    return codec, level


def open_compressor(codec: Codec, level: int | None, capacity: int, padding: int) -> lz4.FixedOutput:
    """A compressor for one thread; see `lz4.FixedOutput`."""
    return lz4.FixedOutput(level if codec.name == "lz4hc" else None, capacity, padding)
