# SPDX-License-Identifier: Apache-2.0
"""A discoverable disk image: signature partition → root hash → hash tree and file system in their own partitions.

The root hash determines which partitions belong together: the identifier of the data is its first 16 bytes, that of the
tree its last 16 (Discoverable Partitions Specification).
"""

from __future__ import annotations

import uuid

from erofs_edge.disk import gpt
from erofs_edge.disk.ddi import TYPE_SIGNATURE
from erofs_edge.errors import FormatError
from erofs_edge.trust.root_hash import PARTITION_MAX, parse_verity_signature, verify_root_hash
from erofs_edge.verify.system import check_file_system, check_tree
from erofs_edge.verify.walk import Part, Walk
from erofs_edge.verity import superblock


def verify_discoverable(walk: Walk, table: gpt.Table, parts: list[Part]) -> set[str]:
    """Check each signature partition and what it covers; return the names of the partitions examined.

    parts  those of the table, in its order
    """
    looked_at = set[str]()
    by_guid = {entry.guid: part for entry, part in zip(table.partitions, parts, strict=True)}
    for entry, part in zip(table.partitions, parts, strict=True):
        if entry.type_guid not in TYPE_SIGNATURE.values():
            continue
        looked_at.add(part.name)
        with walk.verdict.check(f"{part.name}: root hash", f"key '{walk.key.name}'") as row:
            root, _, signature = parse_verity_signature(walk.read(part, 0, min(part.size, PARTITION_MAX + 1)))
            row.digest = root.hex()
            if len(root) not in superblock.DIGEST_SIZES.values():
                raise FormatError(f"a root hash of {len(root)} bytes")
            verify_root_hash(signature, root, walk.key)
        if row.ok:
            data, tree = (by_guid.get(uuid.UUID(bytes=half)) for half in (root[:16], root[-16:]))
            _verify_data(walk, part, data, tree, root)
            looked_at |= {one.name for one in (data, tree) if one is not None}
    return looked_at


def _verify_data(walk: Walk, holder: Part, data: Part | None, tree: Part | None, root: bytes) -> None:
    with walk.verdict.check(f"{holder.name}: tree", "the signed root hash", root.hex()) as row:
        if data is None or tree is None:
            raise FormatError("no partitions have the identifiers that follow from the root hash")
        sb = superblock.parse(walk.read(tree, 0, superblock.SIZE), 0)
        if sb.data_size > data.size or sb.end(0) > tree.size or sb.digest_size != len(root):
            raise FormatError("data and tree do not fit into their partitions, or the root hash is another algorithm's")
        check_tree(walk.fd, data.start, sb, sb.levels(0), root, jobs=walk.jobs, hash_base=tree.start)
    if row.ok and data is not None:
        check_file_system(walk.fd, data.start, sb.data_size, walk.verdict, f"{data.name}: file system", jobs=walk.jobs)
