# SPDX-License-Identifier: Apache-2.0
"""Forward error correction for dm-verity: where the parity of each block is, and how it is computed.

Sources: Linux ``drivers/md/dm-verity-fec.c``; cryptsetup ``lib/verity/verity_fec.c``. The covered area is the data
blocks, followed by the hash device from the first block of the tree on (the superblock is not covered). It is divided
into 255 - roots strips of `rounds` blocks, padded with zeros: byte j of all strips is one code word, whose parity is
bytes [j * roots, (j + 1) * roots) of the parity area. So a run of lost blocks costs each word at most one symbol, as
long as it is shorter than a strip, and repairing a block means reading one round.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from erofs_edge.errors import FormatError, UsageError
from erofs_edge.positions import READ, READ_WRITE, pread, preadv
from erofs_edge.threads import processors
from erofs_edge.verity import superblock
from erofs_edge.verity.area import area_of
from erofs_edge.verity.blocks import Progress, counter, file_size, read_exactly
from erofs_edge.verity.check import check_bounds, find_superblock
from erofs_edge.verity.superblock import Superblock
from erofs_edge.writing import write_exactly

if TYPE_CHECKING:
    from erofs_edge.verity.rs import Bytes

ROOTS_MIN, ROOTS_MAX, WORD = 2, 24, 255
ROOTS = 2  # as in veritysetup and Android
COLUMNS = 32 << 10  # words per task; megabytes of input


@dataclass(frozen=True, slots=True)
class Places:
    """Where an image, its tree and its parity are.

    parity       file or device; may be the image or the hash device
    hash_device  holds the tree; None: the image does
    hash_offset  byte of the superblock; None: 0 on a hash device; in the image, where it is found or right after the
                 data
    fec_offset   byte where the parity begins; None: 0, or, if it shares a file with the tree, the end of the tree (for
                 new parity: the end of that file)
    roots        None: derived from the size of the parity; for new parity, ROOTS
    """

    image: Path
    parity: Path
    _: KW_ONLY
    hash_device: Path | None = None
    hash_offset: int | None = None
    fec_offset: int | None = None
    roots: int | None = None

    @property
    def tree(self) -> Path:
        """The file or device that holds the tree."""
        return self.hash_device or self.image

    @property
    def inside(self) -> bool:
        """Whether the parity is in the same file or device as the tree."""
        return self.parity.exists() and os.path.samefile(self.tree, self.parity)


@dataclass(frozen=True, slots=True)
class Layout:
    """What is covered, and by how much parity. Blocks of the covered area are numbered: first data, then the hash area.

    roots        parity bytes for each 255 - roots bytes
    block_size   size of data and hash blocks in bytes
    data_blocks  covered blocks of the data device, from its byte 0
    hash_start   first covered block of the hash device
    hash_blocks  number of covered blocks from there on
    offset       byte of the parity area in its file
    """

    roots: int
    block_size: int
    data_blocks: int
    hash_start: int
    hash_blocks: int
    offset: int

    def __post_init__(self) -> None:
        """Raises UsageError for values that the kernel does not accept."""
        if not ROOTS_MIN <= self.roots <= ROOTS_MAX:
            raise UsageError(f"{self.roots} FEC roots: possible are {ROOTS_MIN} to {ROOTS_MAX}")
        if self.offset < 0 or self.offset % 512:
            raise UsageError(f"FEC offset {self.offset} is not a multiple of 512")

    @property
    def blocks(self) -> int:
        """Number of covered blocks: `fec_blocks` of a dm-verity table."""
        return self.data_blocks + self.hash_blocks

    @property
    def strips(self) -> int:
        """Number of data symbols in a code word."""
        return WORD - self.roots

    @property
    def rounds(self) -> int:
        """Number of blocks in a strip: blocks b, b + rounds, b + 2 rounds, … are coded together."""
        return -(-self.blocks // self.strips)

    @property
    def parity_size(self) -> int:
        """Size of the parity area in bytes."""
        return self.rounds * self.roots * self.block_size

    def place(self, block: int) -> tuple[bool, int]:
        """Return whether a covered block is on the hash device, and its byte offset there."""
        if block < self.data_blocks:
            return False, block * self.block_size
        return True, (self.hash_start + block - self.data_blocks) * self.block_size


def new_layout(sb: Superblock, hash_offset: int, hash_end: int, roots: int, offset: int) -> Layout:
    """Return the layout of parity over data, tree and anything else up to byte `hash_end` of the hash device.

    Raises UsageError if data and hash blocks differ in size, which the kernel does not support.
    """
    if sb.data_block_size != sb.hash_block_size:
        raise UsageError(
            f"error correction needs data and hash blocks of the same size, not {sb.data_block_size} and "
            f"{sb.hash_block_size}",
            hint="give --hash-block-size the value of --data-block-size",
        )
    start, size = sb.start_block(hash_offset), sb.hash_block_size
    return Layout(roots, size, sb.data_blocks, start, max(hash_end // size - start, 0), offset)


def find_layout(
    sb: Superblock, hash_offset: int, hash_size: int, fec_size: int, *, roots: int | None, offset: int, inside: bool
) -> Layout:
    """Return the layout of an existing parity area: the one whose size fits.

    `inside` says that the parity is on the hash device itself; `fec_size` is the size of its file. The hash area ends
    either with its device, as in veritysetup, or with the tree, if the image was copied to a larger partition. Raises
    FormatError if no number of roots fits, UsageError if several do.
    """
    if inside and offset < sb.end(hash_offset):
        raise UsageError(f"FEC offset {offset} lies inside the tree, which ends at {sb.end(hash_offset)}")
    available = fec_size - offset
    for end in (offset if inside else hash_size, sb.end(hash_offset)):
        candidates = [
            layout
            for n in ([roots] if roots is not None else range(ROOTS_MIN, ROOTS_MAX + 1))
            if (layout := new_layout(sb, hash_offset, end, n, offset)).parity_size == available
        ]
        if len(candidates) > 1:
            several = ", ".join(str(layout.roots) for layout in candidates)
            raise UsageError(f"parity of this size can have {several} roots", hint="say which with --fec-roots")
        if candidates:
            return candidates[0]
    if roots is not None:
        layout = new_layout(sb, hash_offset, offset if inside else hash_size, roots, offset)
        if layout.parity_size <= available:
            return layout
    of_roots = "" if roots is None else f" of {roots} roots"
    raise FormatError(
        f"{max(available, 0)} bytes from FEC offset {offset} on are no parity{of_roots} of this image",
        hint="give --fec-offset and --fec-roots as when the parity was made",
    )


class Covered:
    """Reads from the covered area."""

    def __init__(self, layout: Layout, data_fd: int, hash_fd: int) -> None:
        self.layout, self.data_fd, self.hash_fd = layout, data_fd, hash_fd

    def fill(self, row: memoryview, offset: int) -> None:
        """Read len(row) bytes from byte `offset` of the covered area; zeros after its end.

        Raises FormatError if a file is shorter than the layout says.
        """
        layout = self.layout
        split, end = layout.data_blocks * layout.block_size, layout.blocks * layout.block_size
        first = layout.hash_start * layout.block_size
        for fd, low, high, shift in ((self.data_fd, 0, split, 0), (self.hash_fd, split, end, first - split)):
            start, stop = max(offset, low), min(offset + len(row), high)
            if start < stop:
                _read_into(fd, row[start - offset : stop - offset], start + shift)
        if (beyond := max(offset, end) - offset) < len(row):
            row[beyond:] = bytes(len(row) - beyond)

    def columns(self, start: int, width: int) -> Bytes:
        """Return (strips, width): words of bytes [start, start + width) of the strips, without trailing all-zero
        strips."""
        import numpy as np

        stride = self.layout.rounds * self.layout.block_size
        used = -(-self.layout.blocks // self.layout.rounds)
        rows = np.empty((used, width), np.uint8)
        for number in range(used):
            self.fill(memoryview(rows[number]), number * stride + start)
        return rows

    def parity(self, start: int, width: int) -> bytes:
        """Return the parity of these words, in the order of the parity area."""
        from erofs_edge.verity import rs

        return rs.parity(list(self.columns(start, width)), self.layout.roots).T.tobytes()


def parities(covered: Covered, *, jobs: int | None = None, progress: Progress | None = None) -> Iterator[bytes]:
    """Yield the whole parity area in pieces, in order, with a few pieces in memory at a time."""
    layout = covered.layout
    total = layout.rounds * layout.block_size
    count = counter(progress, layout.blocks * layout.block_size)
    workers = jobs or processors()
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            starts = iter(range(0, total, COLUMNS))
            while True:
                for start in islice(starts, workers + 1 - len(waiting)):
                    waiting.append(pool.submit(covered.parity, start, min(COLUMNS, total - start)))
                if not waiting:
                    break
                piece = waiting.popleft().result()
                if count is not None:
                    count(len(piece) // layout.roots * layout.strips)
                yield piece
        finally:
            for future in waiting:
                future.cancel()


def write_parity(
    places: Places, sb: Superblock, *, jobs: int | None = None, progress: Progress | None = None
) -> Layout:  # fmt: skip
    """Write the parity of an image and its tree, as `veritysetup format --fec-device` does.

    A new file gets its name only once it is complete. Devices, and files with data before `fec_offset`, are written in
    place; a file that grew is cut back after a failure. Raises UsageError if areas would overlap or the number of roots
    is impossible, CapacityError if the disk is full.
    """
    hash_offset, fec_offset, parity = places.hash_offset, places.fec_offset, places.parity
    inside, exists, hash_size = places.inside, parity.exists(), _size(places.tree)
    if hash_offset is None:
        hash_offset = 0 if places.hash_device else sb.data_size
    if fec_offset is None:
        fec_offset = hash_size if inside else 0
    roots = ROOTS if places.roots is None else places.roots
    layout = new_layout(sb, hash_offset, fec_offset if inside else hash_size, roots, fec_offset)
    with_data = exists and os.path.samefile(places.image, parity)
    if (inside and fec_offset < sb.end(hash_offset)) or (with_data and fec_offset < sb.data_size):
        raise UsageError(f"FEC offset {fec_offset} lies inside what it protects", where=str(parity))
    with (
        places.image.open("rb", buffering=0) as data,
        places.tree.open("rb", buffering=0) as tree,
        area_of(parity, fec_offset, "the parity") as fd,
    ):
        position = fec_offset
        for piece in parities(Covered(layout, data.fileno(), tree.fileno()), jobs=jobs, progress=progress):
            write_exactly(fd, piece, position)
            position += len(piece)
    return layout


@contextmanager
def opened(places: Places, *, writable: bool = False) -> Iterator[tuple[Superblock, int, Covered, int]]:
    """Open an image with parity: yield its superblock, the superblock's byte offset, the covered area and the parity's
    descriptor.

    The superblock is searched for as in `verify`; if everything is in one file, before the parity. `writable` opens all
    files for writing. Raises FormatError and UsageError as `verify` and `find_layout` do.
    """
    hash_offset, fec_offset, inside = places.hash_offset, places.fec_offset, places.inside
    if hash_offset is None:
        end = fec_offset if inside else None
        hash_offset = 0 if places.hash_device else find_superblock(places.image, end) or 0
    with ExitStack() as stack:
        fds = []
        for path in (places.image, places.tree, places.parity):
            fd = os.open(path, READ_WRITE if writable else READ)
            stack.callback(os.close, fd)
            fds.append(fd)
        data_fd, hash_fd, fec_fd = fds
        sb = superblock.parse(pread(hash_fd, superblock.SIZE, hash_offset), hash_offset)
        sizes = file_size(data_fd), file_size(hash_fd)
        check_bounds(sb, hash_offset, *sizes, one_file=places.hash_device is None)
        if fec_offset is None:
            fec_offset = sb.end(hash_offset) if inside else 0
        layout = find_layout(
            sb, hash_offset, sizes[1], file_size(fec_fd), roots=places.roots, offset=fec_offset, inside=inside
        )  # fmt: skip
        yield sb, hash_offset, Covered(layout, data_fd, hash_fd), fec_fd


def wrong_parity(
    covered: Covered, fec_fd: int, *, mend: bool = False, jobs: int | None = None, progress: Progress | None = None
) -> int:
    """Count the bytes of the parity area that do not match the covered area; with `mend`, rewrite them."""
    import numpy as np

    position, differing = covered.layout.offset, 0
    for piece in parities(covered, jobs=jobs, progress=progress):
        stored = read_exactly(fec_fd, len(piece), position).ljust(len(piece), b"\0")
        if stored != piece:
            differing += int(np.count_nonzero(np.frombuffer(piece, np.uint8) != np.frombuffer(stored, np.uint8)))
            if mend:
                write_exactly(fec_fd, piece, position)
        position += len(piece)
    return differing


def _size(path: Path) -> int:
    with path.open("rb", buffering=0) as file:
        return file_size(file.fileno())


def _read_into(fd: int, row: memoryview, offset: int) -> None:
    while len(row):
        done = preadv(fd, [row], offset)
        if not done:
            raise FormatError("the file ends inside the blocks that the parity covers", where=f"offset {offset:#x}")
        row, offset = row[done:], offset + done
