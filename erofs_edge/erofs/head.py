# SPDX-License-Identifier: Apache-2.0
"""The first blocks of an image: superblock, compression records, root inode, shared attributes.

The root comes right after the superblock because its nid has only 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from erofs_edge.erofs.attributes import Attribute, inline_area, shared_area
from erofs_edge.erofs.codings import Codings
from erofs_edge.erofs.ondisk import (
    COMPAT_ISHARE_XATTRS,
    COMPAT_MTIME,
    COMPAT_PLAIN_XATTR_PFX,
    COMPAT_SB_CHKSUM,
    COMPAT_XATTR_FILTER,
    DEVICE_SLOT,
    FINGERPRINT,
    INCOMPAT_DEVICE_TABLE,
    INCOMPAT_XATTR_PREFIXES,
    NULL_ADDR,
    SLOT_BITS,
    SLOT_SIZE,
    SUPER_OFFSET,
    SUPER_SIZE,
    SUPERBLOCK,
    Superblock,
    super_checksum,
)
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.plan import Plan, choose_flat_layout


class Head(NamedTuple):
    """blocks: its size; hole: (start, end) bytes left for other inodes in its last block; shared: the shared
    attributes, followed by the tables of long prefixes and of devices; root_blocks: blocks that the root directory
    needs elsewhere."""

    blocks: int
    hole: tuple[int, int]
    record: bytes
    shared_at: int
    shared: bytes
    root_blocks: int
    codings: Codings


def plan_head(
    plan: Plan, codings: Codings, options: WriteOptions, old: Mapping[Attribute, int] = MappingProxyType({})
) -> Head:
    """Place the root and build every node's attribute area. `old`: former byte offsets of shared attributes."""
    block_size = options.block_size
    record = codings.records(block_size)
    root = plan.nodes[0]
    root_at = _round_up(SUPER_OFFSET + SUPER_SIZE + len(record), SLOT_SIZE)
    # sizes do not depend on the place of the shared area, so it can be chosen after the root's
    rules = options.attributes
    _, ids = shared_area(plan.attributes, 0, rules)
    root.xattrs = inline_area(root.inode.xattrs if plan.attributes else {}, ids, root.where, rules)
    room = -(root_at + root.head_size) % block_size or block_size
    root.nid = root_at >> SLOT_BITS
    root_blocks = choose_flat_layout(root, block_size, room)
    shared_at = _round_up(root_at + root.head_size + root.tail_size, 4)
    shared, ids = shared_area(plan.attributes, shared_at, rules, old)
    if plan.attributes:
        for node in plan.nodes:
            if node.inode.xattrs:
                node.xattrs = inline_area(node.inode.xattrs, ids, node.where, rules)
    plan.prefixes_at = shared_at + len(shared)
    shared += rules.prefix_table()
    if plan.slots:
        plan.devices_at = _round_up(shared_at + len(shared), DEVICE_SLOT.size)
        shared += bytes(plan.devices_at + plan.slots * DEVICE_SLOT.size - shared_at - len(shared))
    hole_at = _round_up(shared_at + len(shared), SLOT_SIZE)
    end = _round_up(hole_at, block_size)
    return Head(end // block_size, (hole_at, end), record, shared_at, shared, root_blocks, codings)


def finish_head(raw: bytearray, plan: Plan, head: Head, options: WriteOptions, *, blocks: int, uuid: bytes) -> None:
    """Write superblock and checksum into the first bytes of the image, once everything else is there."""
    incompat, u1 = head.codings.features()
    superblock = Superblock(
        feature_compat=COMPAT_MTIME
        | (COMPAT_SB_CHKSUM if options.checksum else 0)
        | (COMPAT_XATTR_FILTER if plan.attributes and options.xattr_filter else 0),
        blkszbits=options.block_bits,
        rootnid_2b=plan.nodes[0].nid,
        inos=len(plan.nodes),
        epoch=plan.epoch,
        fixed_nsec=plan.epoch_ns,
        blocks_lo=blocks & NULL_ADDR,
        uuid=uuid,
        volume_name=options.volume_name,
        feature_incompat=incompat | plan.incompat,
        u1=u1,
        build_time=plan.built_after,
    )
    if blocks > NULL_ADDR:
        superblock = superblock._replace(rootnid_2b=blocks >> 32, rootnid_8b=plan.nodes[0].nid)
    if plan.packed is not None:
        superblock = superblock._replace(packed_nid=plan.packed.nid)
    if plan.devices:
        superblock = superblock._replace(
            feature_incompat=superblock.feature_incompat | INCOMPAT_DEVICE_TABLE,
            extra_devices=plan.devices,
            devt_slotoff=plan.devices_at // DEVICE_SLOT.size,
        )
    prefixes = options.attributes.prefixes
    if prefixes:
        superblock = superblock._replace(
            feature_compat=superblock.feature_compat | COMPAT_PLAIN_XATTR_PFX,
            feature_incompat=superblock.feature_incompat | INCOMPAT_XATTR_PREFIXES,
            xattr_prefix_count=len(prefixes),
            xattr_prefix_start=plan.prefixes_at // 4,
        )
    if options.fingerprints:
        superblock = superblock._replace(
            feature_compat=superblock.feature_compat | COMPAT_ISHARE_XATTRS,
            ishare_xattr_prefix_id=prefixes.index(FINGERPRINT),
        )
    raw[SUPER_OFFSET : SUPER_OFFSET + SUPER_SIZE] = SUPERBLOCK.pack(*superblock)
    if options.checksum:
        superblock = superblock._replace(checksum=super_checksum(bytes(raw), options.block_bits))
        raw[SUPER_OFFSET : SUPER_OFFSET + SUPER_SIZE] = SUPERBLOCK.pack(*superblock)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
