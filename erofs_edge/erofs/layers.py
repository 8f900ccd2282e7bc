# SPDX-License-Identifier: Apache-2.0
"""Images in several layers: new data on devices of its own, old data on those of the layers below.

There are three kinds of devices: a blob that is written with the image, older images (bases.py), and archives whose
members are used in place. This module combines them, with one device table for all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.erofs.bases import Bases, hashed, open_bases
from erofs_edge.erofs.chunks import CHUNK_BITS_MAX, DEVICE_SHIFT, HOLE, ChunkStore, finish_device
from erofs_edge.erofs.codings import Codings
from erofs_edge.erofs.files import FileStore
from erofs_edge.erofs.loans import DEVICES_MAX, Device, Loans
from erofs_edge.erofs.ondisk import NULL_ADDR
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.output import Sink
from erofs_edge.erofs.plan import Node, Plan
from erofs_edge.errors import CapacityError, SourceError, UsageError
from erofs_edge.tree import FileContent, SparseContent

TABLE_MAX = 1 << 22  # entries in a sparse file's table: 32 MiB of metadata


@dataclass(slots=True)
class Layers:
    """The devices of the image being written, and what they lend to it."""

    options: WriteOptions
    loans: Loans
    bases: Bases | None = None
    archives: Sequence[Path] = ()

    @property
    def own_blocks(self) -> int:
        """Number of blocks of the blob, once it is written."""
        return self.loans.devices[0].blocks if self.loans.own else 0

    def codings(self, codings: Codings) -> Codings:
        """Add what compressed files of the bases need."""
        return self.bases.codings(codings) if self.bases is not None else codings

    def lend(self, plan: Plan) -> None:
        """Let files refer to data on the devices instead of storing it. Their attributes must be known already."""
        if self.archives:
            first = len(self.loans.devices) - len(self.archives) + 1
            numbers = {os.fspath(path): first + i for i, path in enumerate(self.archives)}
            for number in numbers.values():
                self.loans.use(number << DEVICE_SHIFT)  # even if nothing in it is used: it will be given when mounting
            for node in plan.files:
                self._lend_member(node, numbers)
        if self.bases is not None:
            with ThreadPoolExecutor(self.options.workers, thread_name_prefix="erofs-base") as pool:
                self.bases.lend(list(plan.files), self.loans, pool)

    def known_chunks(self) -> dict[bytes, int]:
        """Return sha256 → address of chunks that need not be stored."""
        size = self.options.chunk_size
        return self.bases.chunks(size) if self.bases is not None and size is not None else {}

    def finish(self, plan: Plan, files: FileStore, chunks: ChunkStore | None, blob: Sink | None, blocks: int) -> bytes:
        """Return the device table, once all data is written and the image's number of blocks is known.

        Raises CapacityError if the blob's block numbers are too large for files.
        """
        if blob is not None:
            own = self.loans.devices[0]
            own.tag, own.blocks = finish_device(blob, self.options.block_size)
            if chunks is None and blocks + own.blocks > NULL_ADDR:
                raise CapacityError(
                    f"{blocks + own.blocks} blocks of image and blob are too many for 32 bits",
                    where=str(own.path),
                    hint="store chunks, which have addresses of their own: --chunksize",
                )
        for address in chunks.addresses if chunks is not None else ():
            self.loans.use(address)
        table = self.loans.settle(blocks)
        if chunks is not None:
            chunks.settle(self.loans.renumbered)
        elif blob is not None:
            files.settle(lambda block: blocks + block)
        plan.devices = len(self.loans.used)
        plan.incompat |= self.loans.features
        return table

    def _lend_member(self, node: Node, numbers: dict[str, int]) -> None:
        content = node.inode.content
        bits, block_size = self.options.block_bits, self.options.block_size
        if isinstance(content, FileContent) and os.fsdecode(content.path) in numbers and not content.start % block_size:
            self.loans.flat(node, numbers[os.fsdecode(content.path)] << DEVICE_SHIFT | content.start >> bits, b"")
        elif isinstance(content, SparseContent) and os.fsdecode(content.stored.path) in numbers:
            sparse = sparse_table(content, block_size, node.where)
            if sparse is not None:
                table, chunk = sparse
                number = numbers[os.fsdecode(content.stored.path)] << DEVICE_SHIFT
                self.loans.chunks(node, [a if a == HOLE else number | a >> bits for a in table], chunk)


def sparse_table(content: SparseContent, block_size: int, where: str) -> tuple[list[int], int] | None:
    """Return (byte in the archive, or HOLE, for each chunk of a sparse file; bytes of a chunk).

    None if its extents do not start and end at block boundaries. Raises CapacityError if the table would be huge.
    """
    borders = content.stored.start | block_size << 20
    for (offset, length), start in zip(content.extents, content.starts, strict=True):
        borders |= offset | start | (length if offset + length < content.size else 0)
    chunk = borders & -borders
    if chunk < block_size:
        return None
    chunk = min(chunk, 1 << CHUNK_BITS_MAX)
    count = -(-content.size // chunk)
    if count > TABLE_MAX:
        raise CapacityError(f"{count} chunks of a sparse file are too many for a table", where=where)
    table = [HOLE] * count
    for (offset, length), start in zip(content.extents, content.starts, strict=True):
        for at in range(0, length, chunk):
            table[(offset + at) // chunk] = content.stored.start + start + at
    return table, chunk


@contextmanager
def open_layers(plan: Plan, options: WriteOptions) -> Iterator[Layers]:
    """Yield the layers requested by the options; they stay open inside the block.

    Raises UsageError, ErofsFormatError and ErofsEdgeError for unusable bases, SourceError for an archive that cannot be
    read.
    """
    _check_blob(options)
    devices = [Device(options.blob, b"", 0)] if options.blob is not None else []
    bases = None
    with ExitStack() as stack:
        if options.bases:
            opened = open_bases(options.bases, options.base_devices, options.block_size, len(devices) + 1)
            bases, more = stack.enter_context(opened)
            devices += more
        devices += [_archive(path, options.block_size) for path in options.archives]
        if len(devices) > DEVICES_MAX:
            raise UsageError(f"{len(devices)} devices are more than an image can have")
        plan.slots = len(devices)
        most = sum(-(-node.size // options.block_size) + 4 for node in plan.nodes)
        far = most + sum(device.blocks for device in devices) > NULL_ADDR
        loans = Loans(devices, options, own=options.blob is not None, far=far)
        yield Layers(options, loans, bases, options.archives)


def _check_blob(options: WriteOptions) -> None:
    """The blob replaces the file of its name, whichever way a path leads there."""
    if options.blob is None:
        return
    blob = options.blob.resolve()
    if any(path.resolve() == blob for path in (*options.bases, *options.base_devices, *options.archives)):
        raise UsageError(
            "the new blob would replace an extra device that the image needs",
            where=str(options.blob),
            hint="give the blob another name",
        )


def _archive(path: Path, block_size: int) -> Device:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise SourceError(f"cannot read the archive: {error.strerror}", where=str(path)) from error
    blocks = size // block_size
    return Device(path, hashed(path, blocks * block_size).encode(), blocks)
