# SPDX-License-Identifier: Apache-2.0
"""Older images that a new one builds on: files and chunks that they contain are not stored again.

Equal content is found by sha256, for files by size first. A base becomes a device of the new image with all its blocks,
and so do its own devices. Each is tagged with what identifies it: an image's UUID, which is derived from its content,
or the sha256 of a blob.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.erofs import index, ondisk
from erofs_edge.erofs.backing import DEVICE_BITS
from erofs_edge.erofs.chunks import CHUNK_BITS_MAX, DEVICE_SHIFT, HOLE
from erofs_edge.erofs.codings import Codings
from erofs_edge.erofs.contents import PIECE, digest
from erofs_edge.erofs.device_table import DeviceSlot, image_uuid, is_hash, is_uuid
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.loans import Device, Loans
from erofs_edge.erofs.plan import Node
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.told_digests import hash_file
from erofs_edge.errors import ErofsEdgeError, ErofsFormatError, SourceError, UsageError

HASH_BATCH = 64  # files
_ADDRESS_MASK = (1 << DEVICE_BITS) - 1


@dataclass(slots=True, eq=False)
class Base:
    """An open base. `numbers` maps its devices (0: the base itself) to their places in the loans' list, plus one."""

    image: Image
    numbers: dict[int, int]


@dataclass(slots=True)
class Bases:
    """All bases, in order: for equal content, the first one is used."""

    bases: list[Base]
    block_size: int

    def codings(self, codings: Codings) -> Codings:
        """Add what the bases' compressed files need: an image lists all codecs that it may use."""
        algorithms, largest, big = dict(codings.algorithms), codings.largest, codings.big
        for base in self.bases:
            info = base.image.superblock
            if not info.incompat(ondisk.INCOMPAT_LZ4_0PADDING | ondisk.INCOMPAT_COMPR_CFGS):
                continue
            for number in ondisk.ALGORITHM_NAMES:
                if info.algorithms >> number & 1:
                    algorithms[number] = max(algorithms.get(number, 0), _dictionary(number, info.records.get(number)))
            largest = max(largest, info.max_pcluster)
            big = big or info.incompat(ondisk.INCOMPAT_BIG_PCLUSTER)
        return codings._replace(algorithms=algorithms, largest=largest, big=big)

    def lend(self, nodes: Iterable[Node], loans: Loans, pool: ThreadPoolExecutor) -> None:
        """Let files refer to content that a base has in full. Raises SourceError if a file cannot be read."""
        wanted = [node for node in nodes if node.inode.is_file and node.size and not node.lent]
        found = self._by_content({node.size for node in wanted}, pool)
        sizes = {size for size, _ in found}
        wanted = [node for node in wanted if node.size in sizes]
        batches = [wanted[at : at + HASH_BATCH] for at in range(0, len(wanted), HASH_BATCH)]
        hashes = pool.map(lambda batch: [_digest_of(node) for node in batch], batches)
        for node, key in zip(wanted, (key for batch in hashes for key in batch), strict=True):
            source = found.get((node.size, key))
            if source is not None:
                _borrow(node, *source, loans, self.block_size)

    def chunks(self, chunk_size: int) -> dict[bytes, int]:
        """Return sha256 → address of each uncompressed chunk of the bases at a multiple of `chunk_size` in its file."""
        known: dict[bytes, int] = {}
        for base in self.bases:
            seen: set[tuple[int, int]] = set()
            for inode in _files(base.image):
                if inode.is_compressed:
                    continue
                for extent in base.image.extents(inode):
                    if extent.kind is not Kind.RAW or extent.inline or extent.start % chunk_size:
                        continue
                    for at in range(0, extent.length, chunk_size):
                        length = min(chunk_size, extent.length - at)
                        where = extent.address + at, length
                        # the end of an extent is a chunk only if the file ends there, too
                        if where in seen or (length < chunk_size and extent.start + at + length != inode.size):
                            continue
                        seen.add(where)
                        data = base.image.backing.read(*where, "file data")
                        address = _address(base, extent.address + at, self.block_size)
                        if address is not None and data.count(0) != len(data):
                            known.setdefault(hashlib.sha256(data).digest(), address)
        return known

    def _by_content(self, sizes: set[int], pool: ThreadPoolExecutor) -> dict[tuple[int, bytes], tuple[Base, DiskInode]]:
        candidates = [(b, inode) for b in self.bases for inode in _files(b.image) if inode.size in sizes]
        batches = [candidates[at : at + HASH_BATCH] for at in range(0, len(candidates), HASH_BATCH)]
        hashes = pool.map(lambda batch: [_stored_digest(base.image, inode) for base, inode in batch], batches)
        found: dict[tuple[int, bytes], tuple[Base, DiskInode]] = {}
        for (base, inode), key in zip(candidates, (key for batch in hashes for key in batch), strict=True):
            found.setdefault((inode.size, key), (base, inode))
        return found


@contextmanager
def open_bases(
    paths: Sequence[Path], devices: Sequence[Path], block_size: int, first: int
) -> Iterator[tuple[Bases, list[Device]]]:
    """Open bases: yield them and the devices that they are or have, the first of which is number `first` of the loans.

    `devices` are files with the bases' data, in any order, matched by tags. Raises UsageError if one is missing or a
    base has a different block size, ErofsFormatError if a base is not an image.
    """
    found: dict[tuple[bytes, int], int] = {}
    listed: list[Device] = []
    with ExitStack() as stack:
        bases = []
        for path in paths:
            slots = _slots(path, block_size)
            files = [_find(slot, number, path, [*devices, *paths], block_size) for number, slot in enumerate(slots, 1)]
            try:
                image = stack.enter_context(Image(path, devices=files))
            except ErofsFormatError as error:
                raise _naming(path, error) from error
            own = Device(path, _tag(image), image.superblock.blocks)
            numbers = {}
            for number, device in enumerate([own, *map(_device, files, slots)]):
                key = device.tag, device.blocks
                if key not in found:
                    listed.append(device)
                    found[key] = first + len(listed) - 1
                numbers[number] = found[key]
            bases.append(Base(image, numbers))
        try:
            yield Bases(bases, block_size), listed
        except ErofsFormatError as error:
            raise _naming(paths[0], error) if len(paths) == 1 else error from error


def hashed(path: Path, size: int) -> str:
    """Return the sha256 of a file's first `size` bytes, in hex. Raises SourceError if it is unreadable or shorter."""
    state = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            for at in range(0, size, PIECE):
                data = file.read(min(PIECE, size - at))
                while len(data) < min(PIECE, size - at) and (more := file.read(min(PIECE, size - at) - len(data))):
                    data += more
                if len(data) != min(PIECE, size - at):
                    raise SourceError(f"file ends before byte {size}", where=str(path))
                state.update(data)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
    return state.hexdigest()


def _slots(path: Path, block_size: int) -> tuple[DeviceSlot, ...]:
    try:
        with Image(path) as image:
            info = image.superblock
    except ErofsFormatError as error:
        raise _naming(path, error) from error
    if info.block_size != block_size:
        raise UsageError(
            f"the base has blocks of {info.block_size} bytes, the new image is to have {block_size}",
            where=str(path),
            hint=f"add -b {info.block_size}",
        )
    return info.devices


def _naming(path: Path, error: ErofsFormatError) -> ErofsFormatError:
    return ErofsFormatError(f"the base {path} cannot be used: {error.message}", where=error.where, hint=error.hint)


def _tag(image: Image) -> bytes:
    """Return what identifies an image: its UUID, or the sha256 of its blocks if it has none."""
    info = image.superblock
    if any(info.raw.uuid):
        return str(uuid.UUID(bytes=info.raw.uuid)).encode()
    return hashed(image.path, info.size).encode()


def _find(slot: DeviceSlot, number: int, path: Path, files: Sequence[Path], block_size: int) -> Path:
    """Find the file that a slot's tag refers to."""
    size = slot.blocks * block_size
    tag = slot.tag.decode("utf-8", "backslashreplace")
    for file in files:
        try:
            if file.stat().st_size < size or file == path:
                continue
        except OSError as error:
            raise ErofsEdgeError(f"cannot read the device: {error.strerror}", where=str(file)) from error
        if is_uuid(slot.tag):
            same = image_uuid(file) == tag
        elif is_hash(slot.tag):
            same = hashed(file, size) == tag
        else:
            same = file.name == tag or (not tag and len(files) == 2)
        if same:
            return file
    raise UsageError(
        f"the base has data on device {number}{f' ({tag})' if tag else ''}, which is not given",
        where=str(path),
        hint="name the file: --base-device FILE",
    )


def _device(path: Path, slot: DeviceSlot) -> Device:
    return Device(path, slot.tag, slot.blocks)


def _dictionary(algorithm: int, record: bytes | None) -> int:
    """Return the dictionary size in bytes stated by a compression record."""
    if record is not None and algorithm == ondisk.ALGORITHM_LZMA:
        return int.from_bytes(record[:4], "little")
    if record is not None and algorithm == ondisk.ALGORITHM_ZSTD:
        return 1 << record[1] + 10
    return 0


def _files(image: Image) -> Iterator[DiskInode]:
    """Yield every regular file with content once, in the order of a walk."""
    seen: set[int] = set()
    for _, inode in image.walk():
        if inode.size and inode.nid not in seen and inode.mode & 0o170000 == 0o100000:
            seen.add(inode.nid)
            yield inode


def _digest_of(node: Node) -> bytes:
    assert node.inode.content is not None  # noqa: S101 - it has a size
    return digest(node.inode.content, node.where)


def _stored_digest(image: Image, inode: DiskInode) -> bytes:
    state = hashlib.sha256()
    hash_file(image, inode, state)
    return state.digest()


def _borrow(node: Node, base: Base, inode: DiskInode, loans: Loans, block_size: int) -> bool:
    """Let a node refer to the data of a base's file. False if the new image itself must store part of it."""
    extents = list(base.image.extents(inode))
    if inode.is_compressed:
        return _borrow_compressed(node, base, extents, loans, block_size)
    *whole, last = extents
    tail = b""
    if last.inline:
        tail = base.image.backing.read(last.address, last.length, "inline tail")
        extents = whole
    if not extents:
        return False
    if len(extents) == 1 and extents[0].kind is Kind.RAW:
        address = _address(base, extents[0].address, block_size)
        return address is not None and loans.flat(node, address, tail)
    if tail:
        return False
    chunk = block_size << (inode.u & ondisk.CHUNK_BITS_MASK) if inode.layout == ondisk.LAYOUT_CHUNK_BASED else 0
    table = _table(base, extents, chunk or 1 << CHUNK_BITS_MAX, block_size)
    if table is None or not chunk:
        return False
    loans.chunks(node, table, chunk)
    return True


def _table(base: Base, extents: Sequence[Extent], chunk: int, block_size: int) -> list[int] | None:
    table = []
    for extent in extents:
        for at in range(0, extent.length, chunk):
            address = HOLE if extent.kind is Kind.HOLE else _address(base, extent.address + at, block_size)
            if address is None:
                return None
            table.append(address)
    return table


def _borrow_compressed(node: Node, base: Base, extents: Sequence[Extent], loans: Loans, block_size: int) -> bool:
    found: list[index.Extent] = []
    algorithms: set[int] = set()
    tail = b""
    for extent in extents:
        raw = extent.kind is Kind.RAW
        if not raw and extent.kind is not Kind.ENCODED:
            return False  # fragments are in another inode, and no other index form supports rotated data
        algorithms |= set() if raw else {extent.algorithm}
        if extent.inline:
            tail = base.image.backing.read(extent.address, extent.size, "inline tail")
            found.append(index.Extent(extent.length, 0, raw))
            continue
        address = _address(base, extent.address, block_size)
        blocks, rest = divmod(extent.size, block_size)
        if address is None or rest or (raw and blocks != -(-extent.length // block_size)):
            return False
        found.append(index.Extent(extent.length, blocks, raw, address, extent.partial))
    if len(algorithms) > 1 or not any(extent.blocks for extent in found):
        return False
    return loans.compressed(node, found, algorithms.pop() if algorithms else 0, tail)


def _address(base: Base, address: int, block_size: int) -> int | None:
    """Return the loans' address of a byte of a base that begins a block; None if it does not."""
    block, rest = divmod(address & _ADDRESS_MASK, block_size)
    number = base.numbers.get(address >> DEVICE_BITS)
    return None if rest or number is None or block >> DEVICE_SHIFT else number << DEVICE_SHIFT | block
