# SPDX-License-Identifier: Apache-2.0
"""A file system with its hash tree and signature as a discoverable disk image, for systemd's extensions and portable
services.

Discoverable Partitions Specification: the partitions' types say what they are; the identifiers of data and hash tree
are the first and the last 16 bytes of the root hash. The signature partition contains JSON, padded with zeros (systemd
``src/shared/dissect-image.c``).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.disk import gpt
from erofs_edge.disk.sparse import copied_from, copy_data
from erofs_edge.errors import UsageError
from erofs_edge.writing import sparse_beside, write_exactly

UNIT = 4096
"""bytes: partitions start and end on file system blocks, as in systemd-repart's layout"""
SECTOR = 512
TYPE_VERITY = {"arm64": uuid.UUID("df3300ce-d69f-4c92-978c-9bfb0f38d820")}
TYPE_SIGNATURE = {"arm64": uuid.UUID("6db69de6-29f4-4758-a7a5-962190f00ce3")}
TYPE_ROOT = {"arm64": gpt.TYPE_ROOT_ARM64}


@dataclass(frozen=True, slots=True)
class Part:
    """The content of a partition: a file, or bytes."""

    label: str
    type_guid: uuid.UUID
    guid: uuid.UUID
    size: int
    content: Path | bytes


def write_ddi(
    out: Path, *, name: str, arch: str, data: Path, tree: Path, root_hash: bytes, signature: bytes | None
) -> None:
    """Write the image beside `out` and rename it.

    data, tree  the file system, and the hash tree with its superblock, in separate files
    signature   the content of the signature partition; None leaves it out

    Raises UsageError for an `arch` whose partition types are not known, SourceError if a file cannot be read or changes
    meanwhile, CapacityError if the disk is full, OSError if `out` cannot be written for another reason.
    """
    if arch not in TYPE_ROOT:
        raise UsageError(f"no types of partitions are known for the architecture {arch!r}", where=str(out))
    parts = [
        _part(name, TYPE_ROOT[arch], root_hash[:16], data),
        _part(f"{name}-verity", TYPE_VERITY[arch], root_hash[-16:], tree),
    ]
    if signature is not None:
        guid = gpt.guid_from(root_hash, "signature").bytes
        parts.append(_part(f"{name}-verity-sig", TYPE_SIGNATURE[arch], guid, signature))
    table, starts = _table(parts, root_hash)
    head, tail = gpt.encode(table)
    with sparse_beside(out, table.sectors * SECTOR, "the disk image") as fd:
        write_exactly(fd, head, 0)
        for part, start in zip(parts, starts, strict=True):
            _write(fd, part, start)
        write_exactly(fd, tail, table.sectors * SECTOR - len(tail))


def _part(label: str, type_guid: uuid.UUID, guid: bytes, content: Path | bytes) -> Part:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    return Part(label[: gpt.NAME_UNITS], type_guid, uuid.UUID(bytes=guid), size, content)


def _table(parts: list[Part], seed: bytes) -> tuple[gpt.Table, list[int]]:
    """The partition table, and the byte offset of each part."""
    starts, entries = [], []
    at = gpt.ALIGNMENT
    for part in parts:
        end = at + -(-part.size // UNIT) * UNIT
        starts.append(at)
        entries.append(
            gpt.Partition(
                part.label, part.type_guid, part.guid, at // SECTOR, end // SECTOR - 1, gpt.ATTRIBUTE_READ_ONLY
            )
        )
        at = end
    sectors = (at + gpt.ALIGNMENT) // SECTOR
    return gpt.Table(gpt.guid_from(seed, ""), sectors, tuple(entries), SECTOR), starts


def _write(fd: int, part: Part, start: int) -> None:
    if isinstance(part.content, bytes):
        write_exactly(fd, part.content, start)
        return
    with copied_from(part.content) as source:
        copy_data(source, fd, part.size, start)
