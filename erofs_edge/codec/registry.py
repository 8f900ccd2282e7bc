# SPDX-License-Identifier: Apache-2.0
"""Compression by name: the available levels, and what identifies the output."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from erofs_edge.codec import deflate, lz4, lzma, zstd
from erofs_edge.errors import UsageError


class Codec(NamedTuple):
    """A compression as mkfs.erofs names it. `algorithm` is the number in the image; levels are inclusive.

    dictionary  (minimum, maximum) bytes that matches may reach back, if that can be chosen
    kinds       (first bytes of a file, level) for files that benefit from a level other than the default
    """

    name: str
    algorithm: int
    version: str
    default_level: int | None = None
    level_min: int = 0
    level_max: int = 0
    dictionary: tuple[int, int] | None = None
    kinds: tuple[tuple[bytes, int], ...] = ()

    def level_for(self, start: bytes) -> int | None:
        """Return the level for a file with these first bytes, if none was requested."""
        for magic, level in self.kinds:
            if start.startswith(magic):
                return level
        return self.default_level


KERNEL = b"MZ"  # arm64 kernels that EFI can start, and other PE images


class Compressor(Protocol):
    """Fits as much input as possible into a fixed output size; for one thread. See `lz4.FixedOutput`."""

    def fill(self, address: int, length: int, capacity: int | None = None) -> tuple[int, int]: ...

    def padded(self, produced: int, size: int) -> bytes | memoryview: ...


CODECS = {
    "lz4": Codec("lz4", 0, lz4.VERSION),
    # 7 takes two thirds of the time of 9 for 0.1 % more bytes (docs/benchmarks.md); kernels, large single files, gain
    # most from 8 for the time it takes
    "lz4hc": Codec("lz4hc", 0, lz4.VERSION, 7, lz4.LEVEL_MIN, lz4.LEVEL_MAX, kinds=((KERNEL, 8),)),
    "lzma": Codec(
        "lzma",
        1,
        lzma.VERSION,
        lzma.LEVEL_DEFAULT,
        lzma.LEVEL_MIN,
        lzma.LEVEL_MAX,
        (lzma.DICTIONARY_MIN, lzma.DICTIONARY_MAX),
    ),
    "deflate": Codec(
        "deflate",
        2,
        deflate.VERSION,
        deflate.LEVEL_DEFAULT,
        deflate.LEVEL_MIN,
        deflate.LEVEL_MAX,
        (1 << deflate.WINDOW_BITS, 1 << deflate.WINDOW_BITS),
    ),
    "zstd": Codec(
        "zstd",
        3,
        zstd.VERSION,
        zstd.LEVEL_DEFAULT,
        zstd.LEVEL_MIN,
        zstd.LEVEL_MAX,
        (1 << zstd.WINDOW_LOG_MIN, 1 << zstd.WINDOW_LOG_MAX),
    ),
}


def find_codec(name: str, level: int | None = None) -> tuple[Codec, int | None]:
    """Return a codec by name, and the level to use (its default for None). Raises UsageError if either is unknown."""
    codec = CODECS.get(name)
    if codec is None:
        raise UsageError(f"unknown compression {name!r}", hint=f"one of none, {', '.join(CODECS)}")
    if codec.default_level is None:
        if level is not None:
            raise UsageError(f"{name} has no levels", hint=f"use {name} alone, or lz4hc,{level}")
        return codec, None
    level = codec.default_level if level is None else level
    between = name == "lzma" and lzma.LEVEL_PLAIN_MAX < level < lzma.EXTREME
    if between or not codec.level_min <= level <= codec.level_max:
        hint = f"{codec.level_min} to {codec.level_max}" if name != "lzma" else "0 to 9, or 100 to 109 (as xz -e)"
        raise UsageError(f"{name} has no level {level}", hint=hint)
    return codec, level


def dictionary_for(codec: Codec, asked: int | None, pcluster: int) -> int:
    """Return how many bytes back matches may reach: as requested, or what suits the largest pcluster (also in bytes).

    0 for codecs without a choice. Raises UsageError for sizes that kernels, or the codec's library, refuse.
    """
    if codec.dictionary is None:
        if asked is not None:
            raise UsageError(f"the dictionary size of {codec.name} cannot be chosen")
        return 0
    least, most = codec.dictionary
    if asked is not None and (not least <= asked <= most or (codec.name == "zstd" and asked & asked - 1)):
        kind = "powers of two from " if codec.name == "zstd" else ""
        there = f"{kind}{least} to {most}" if least < most else f"it is always {most}"
        raise UsageError(f"{codec.name} cannot have a dictionary of {asked} bytes", hint=there)
    if least == most:
        return 0
    if asked is None:
        return lzma.dictionary_size(pcluster) if codec.name == "lzma" else 1 << zstd.window_log(pcluster)
    return asked


def open_compressor(codec: Codec, level: int | None, capacity: int, padding: int, dictionary: int = 0) -> Compressor:
    """Return a compressor for one thread: at most `capacity` output bytes per call, `padding` zeros before them.

    Raises ToolError if the codec is missing or fails its known-answer test.
    """
    if codec.name in ("lz4", "lz4hc"):
        return lz4.FixedOutput(level if codec.name == "lz4hc" else None, capacity, padding)
    assert level is not None  # noqa: S101 - find_codec fills it in
    if codec.name == "lzma":
        return lzma.FixedOutput(level, capacity, padding, dictionary)
    if codec.name == "deflate":
        return deflate.compressor(level, capacity, padding)
    return zstd.compressor(level, capacity, padding, dictionary.bit_length() - 1)
