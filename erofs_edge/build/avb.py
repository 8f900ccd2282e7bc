# SPDX-License-Identifier: Apache-2.0
"""AVB's layout of a partition: data, hash tree without superblock, parity, vbmeta, and the footer in the last block.

Source: AOSP external/avb, README.md ("The VBMeta struct", "Footers") and ``libavb/avb_footer.h``. The vbmeta directly
follows the parity, and the footer is the last 64 bytes of the partition, so that a boot loader can find it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from erofs_edge.errors import CapacityError, UsageError
from erofs_edge.trust.avb import FOOTER_SIZE, Footer, Hash, Hashtree, VBMeta, parse_footer, write_vbmeta
from erofs_edge.trust.key import Signer
from erofs_edge.verity.blocks import SLICE, Progress, counter, file_size, read_exactly
from erofs_edge.verity.fec import Covered, Layout, parities
from erofs_edge.verity.superblock import Superblock
from erofs_edge.verity.tree import write_levels
from erofs_edge.writing import room_for, write_exactly

BLOCK = 4096  # bytes: of data and tree; vbmeta and footer are padded to it


def add_hashtree_footer(
    image: Path,
    partition: str,
    partition_size: int,
    signer: Signer,
    meta: VBMeta | None = None,
    *,
    fec_roots: int = 2,
    algorithm: str = "sha256",
    salt: bytes | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Hashtree:
    """Append tree, parity, vbmeta and footer to the data of an image, which becomes `partition_size` bytes long,
    sparse.

    partition  the boot loader's name for it, without the slot
    meta       rollback index, further descriptors and so on of the vbmeta
    fec_roots  0 for no parity
    salt       derived from the data's sha256 unless given

    What an earlier call added is removed first. After any failure the image is without it. Raises UsageError for
    impossible sizes, CapacityError if the partition or the host's disk is too small, ErofsEdgeError for the key.
    """
    if partition_size % BLOCK:
        raise UsageError(f"partition size {partition_size} is not a multiple of {BLOCK}")
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    size = -1
    try:
        with room_for("tree and parity", str(image)):
            size = original_size(fd)
            if not size:
                raise UsageError("an empty image", where=str(image))
            os.ftruncate(fd, size)
            salt = _salt(fd, size, algorithm) if salt is None else salt
            tree = _write_tree(fd, size, partition, salt, algorithm, jobs, progress)
            if fec_roots:
                tree = _write_parity(fd, tree, fec_roots, jobs)
            meta = meta or VBMeta()
            vbmeta = write_vbmeta(replace(meta, descriptors=[tree, *meta.descriptors]), signer)
            at = -(-file_size(fd) // BLOCK) * BLOCK
            end = at + -(-len(vbmeta) // BLOCK) * BLOCK
            if end + BLOCK > partition_size:
                raise CapacityError(
                    f"partition '{partition}' holds {partition_size} bytes; data and what AVB adds are {end + BLOCK}",
                    where=str(image),
                )
            write_exactly(fd, vbmeta, at)
            os.ftruncate(fd, partition_size)
            write_exactly(fd, Footer(size, at, len(vbmeta)).pack(), partition_size - FOOTER_SIZE)
    except BaseException:
        if size >= 0:
            os.ftruncate(fd, size)
        raise
    finally:
        os.close(fd)
    return tree


def hash_descriptor(image: Path, partition: str, salt: bytes | None = None, algorithm: str = "sha256") -> Hash:
    """The descriptor of a partition that is read whole, such as a boot image. `salt` derives from the data by
    default.
    """
    with image.open("rb") as file:
        fd = file.fileno()
        size = file_size(fd)
        salt = _salt(fd, size, algorithm) if salt is None else salt
        digest = _digest(fd, size, hashlib.new(algorithm, salt))
    return Hash(partition, size, digest, salt, algorithm)


def original_size(fd: int) -> int:
    """Size in bytes of an image without what AVB has appended."""
    size = file_size(fd)
    footer = parse_footer(os.pread(fd, FOOTER_SIZE, max(size - FOOTER_SIZE, 0)), size)
    return footer.original_size if footer else size


def _write_tree(
    fd: int, size: int, partition: str, salt: bytes, algorithm: str, jobs: int | None, progress: Progress | None
) -> Hashtree:
    blocks = -(-size // BLOCK)
    os.ftruncate(fd, blocks * BLOCK)
    sb = Superblock(bytes(16), salt, blocks, algorithm)
    levels = sb.levels_from(blocks)
    tree_size = sum(level.count for level in levels) * BLOCK
    os.ftruncate(fd, blocks * BLOCK + tree_size)
    root = write_levels(sb, fd, fd, levels, jobs=jobs, count=counter(progress, size))
    return Hashtree(partition, blocks * BLOCK, blocks * BLOCK, tree_size, root, salt, algorithm)


def _write_parity(fd: int, tree: Hashtree, roots: int, jobs: int | None) -> Hashtree:
    offset = tree.tree_offset + tree.tree_size
    blocks = tree.image_size // BLOCK
    layout = Layout(roots, BLOCK, blocks, blocks, tree.tree_size // BLOCK, offset)
    position = offset
    for piece in parities(Covered(layout, fd, fd), jobs=jobs):
        write_exactly(fd, piece, position)
        position += len(piece)
    return replace(tree, fec_roots=roots, fec_offset=offset, fec_size=layout.parity_size)


def _salt(fd: int, size: int, algorithm: str) -> bytes:
    """As long as the digest, as AVB recommends; derived from the data, so that equal data has equal root digests."""
    seed = _digest(fd, size, hashlib.sha256())
    return hashlib.new(algorithm, b"erofs-edge avb salt\0" + seed).digest()


def _digest(fd: int, size: int, state: hashlib._Hash) -> bytes:
    for offset in range(0, size, SLICE):
        state.update(read_exactly(fd, min(SLICE, size - offset), offset))
    return state.digest()
