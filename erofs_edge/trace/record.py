# SPDX-License-Identifier: Apache-2.0
"""A trace: the blocks of an image in the order of their first reads, and the time since the previous one.

The format is ours: a JSON object with `format` 1, `kind`, `root_hash` (hex), `image_bytes`, `block_size`, `requests`,
`bytes_read`, `reads` (rows of microseconds since the previous row, first block, blocks) and `files` (rows of path,
first byte, bytes, in the order of first use; a directory or a symlink has 0 bytes). A path is escaped as in a profile.

A trace belongs to one image, identified by its root hash: block numbers mean nothing in another one. The names in
`files` do, so the next version of a system can be laid out by the trace of the previous one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from erofs_edge.erofs.profile import Use, is_path, read_profile, unescape
from erofs_edge.errors import ErofsEdgeError, FormatError, SourceError, VerificationError
from erofs_edge.writing import beside

KIND = "erofs-edge trace"
FORMAT = 1
SECTOR = 512  # bytes: no block is smaller
SIZE_MAX = 256 << 20  # bytes; larger files are not traces
MERGE = 8  # blocks: reading a gap up to this size costs less than another request
LONGEST = 256  # maximum blocks of a run fetched ahead: on a slow link others have to wait for it


class Read(NamedTuple):
    """A run of `blocks` blocks that had not been read before. gap: microseconds since the previous row."""

    gap: int
    first: int
    blocks: int


class FileUse(NamedTuple):
    """Bytes [start, start + length) of a file that are in a touched block; length 0 for directories and symlinks."""

    path: str
    start: int
    length: int


class Trace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the module. Sizes in bytes, except in `reads`."""

    kind: str = KIND
    format: int = FORMAT
    root_hash: str
    image_bytes: int
    block_size: int
    requests: int
    bytes_read: int
    reads: tuple[Read, ...]
    files: tuple[FileUse, ...] = ()

    @property
    def blocks(self) -> int:
        """Number of touched blocks."""
        return sum(read.blocks for read in self.reads)

    @property
    def seconds(self) -> float:
        """From the first read to the last that found something new."""
        return sum(read.gap for read in self.reads) / 1e6

    def uses(self) -> tuple[Use, ...]:
        """As a profile. Raises FormatError for a trace of something other than an EROFS image."""
        if not self.files:
            raise FormatError("the trace names no files", hint="record it with 'serve --trace' of an EROFS image")
        return tuple(Use(unescape(f.path), f.start, f.start + f.length if f.length else None) for f in self.files)

    def runs(self, *, merge: int = MERGE, longest: int = LONGEST) -> tuple[tuple[int, int], ...]:
        """Runs of blocks (first, count) that cover everything touched, by first use: what to fetch ahead.

        merge    gaps of up to this many blocks are fetched as well, if that saves a request
        longest  maximum blocks of a run; longer ones are split
        """
        ranks: dict[int, int] = {}
        for rank, read in enumerate(self.reads):
            for block in range(read.first, read.first + read.blocks):
                ranks.setdefault(block, rank)
        found: list[tuple[int, int, int]] = []
        last = self.image_bytes // self.block_size
        for block in sorted(ranks):
            if block >= last:
                break
            if found and block - (found[-1][1] + found[-1][2]) <= merge and block - found[-1][1] < longest:
                rank, first, _ = found[-1]
                found[-1] = min(rank, ranks[block]), first, block + 1 - first
            else:
                found.append((ranks[block], block, 1))
        return tuple((first, count) for _, first, count in sorted(found))

    def belongs_to(self, root_hash: str) -> None:
        """Raises VerificationError if the trace is of another image."""
        if root_hash != self.root_hash:
            raise VerificationError(
                f"the trace is of the image with root hash {self.root_hash}, this one has {root_hash}",
                hint="record a trace of this image: 'erofs-edge serve --trace FILE'",
            )


def make_trace(
    touches: Sequence[tuple[int, int, int]],
    *,
    root_hash: str,
    image_bytes: int,
    block_size: int,
    requests: int,
    bytes_read: int,
    files: Iterable[FileUse] = (),
) -> Trace:
    """Make a trace from (nanoseconds of a monotonic clock, first block, blocks) in the order of the reads."""
    reads, before = [], touches[0][0] if touches else 0
    for at, first, count in touches:
        reads.append(Read(max(at - before, 0) // 1000, first, count))
        before = at
    return Trace(
        root_hash=root_hash,
        image_bytes=image_bytes,
        block_size=block_size,
        requests=requests,
        bytes_read=bytes_read,
        reads=tuple(reads),
        files=tuple(files),
    )


def encode(trace: Trace) -> bytes:
    """The file: one row per line, so that traces can be compared."""
    fields = {name: getattr(trace, name) for name in trace.__struct_fields__}
    lines = []
    for name, value in fields.items():
        if isinstance(value, tuple):
            rows = b",\n".join(b"  " + msgspec.json.encode(row) for row in value)
            lines.append(f' "{name}": ['.encode() + (b"\n" + rows + b"\n " if rows else b"") + b"]")
        else:
            lines.append(f' "{name}": '.encode() + msgspec.json.encode(value))
    return b"{\n" + b",\n".join(lines) + b"\n}\n"


def decode(data: bytes, where: str) -> Trace:
    """Parse a trace. Raises FormatError for anything else, and for inconsistent values."""
    try:
        trace = msgspec.json.decode(data, type=Trace)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"not a trace: {error}", where=where) from error
    if trace.kind != KIND or trace.format != FORMAT:
        raise FormatError("not a trace of this version", where=where)
    if trace.block_size < SECTOR or trace.block_size & (trace.block_size - 1):
        raise FormatError(f"the trace has blocks of {trace.block_size} bytes", where=where)
    limit = -(-trace.image_bytes // trace.block_size)
    if any(r.gap < 0 or r.first < 0 or r.blocks < 1 or r.first + r.blocks > limit for r in trace.reads):
        raise FormatError("the trace has reads outside the image", where=where)
    for file in trace.files:
        if not file.path.startswith("/") or file.start < 0 or file.length < 0 or not is_path(unescape(file.path)):
            raise FormatError(f"the trace has an impossible file: {file.path!r}", where=where)
    return trace


def is_trace(data: bytes) -> bool:
    """Whether a file that could also be a profile is a trace: no line of a profile contains a brace."""
    return data.lstrip()[:1] == b"{"


def read_uses(path: Path) -> tuple[Use, ...]:
    """What is used first, according to a profile, or to a trace in its place. Raises SourceError, FormatError."""
    try:
        with path.open("rb") as handle:
            start = handle.read(64)
    except OSError as error:
        raise SourceError(f"cannot read the profile: {error.strerror}", where=str(path)) from error
    return read_trace(path).uses() if is_trace(start) else read_profile(path)


def read_trace(path: Path) -> Trace:
    """Read a trace. Raises SourceError if it cannot be read, FormatError if it is not one."""
    try:
        with path.open("rb") as handle:
            data = handle.read(SIZE_MAX + 1)
    except OSError as error:
        raise SourceError(f"cannot read the trace: {error.strerror}", where=str(path)) from error
    if len(data) > SIZE_MAX:
        raise FormatError(f"not a trace: larger than {SIZE_MAX} bytes", where=str(path))
    return decode(data, str(path))


def write_trace(trace: Trace, path: Path) -> None:
    """Write it beside its place and rename it. Raises ErofsEdgeError if it cannot be written."""
    try:
        with beside(path, "the trace") as temporary:
            temporary.write_bytes(encode(trace))
    except OSError as error:
        raise ErofsEdgeError(f"cannot write the trace: {error.strerror}", where=str(path)) from error
