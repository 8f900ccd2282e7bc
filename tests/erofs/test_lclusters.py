# SPDX-License-Identifier: Apache-2.0
"""Packs of a compact index: all NONHEADs of an extent at once give what decoding one slot after the other gives."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from erofs_edge.erofs import lclusters, ondisk
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.lclusters import Entry
from erofs_edge.erofs.mapheader import ZMap
from erofs_edge.errors import ErofsFormatError

BIG, SMALL = 7, 1  # h_advise: with and without big pclusters


def zmap_of(advise: int) -> ZMap:
    inode = DiskInode(40, 0x500, False, ondisk.LAYOUT_COMPRESSED_COMPACT, 0, 0o100644, 1, 2000 << 12, 0, 0, 0, 0, 1)
    return ZMap(inode, advise, (0, 0), 0x528, 4096, 2000, 0, 2000, 12, -1, False, 0)


def one_each(pack: list[Entry]) -> list[Entry]:
    """Return entries for one lcluster each."""
    return [
        entry._replace(offset=entry.offset + at, ahead=entry.ahead if at == entry.length - 1 else -1, length=1)
        for entry in pack
        for at in range(entry.length)
    ]


def slots_of(values: list[int]) -> int:
    return sum(value << 14 * slot for slot, value in enumerate(values))


def typical(first: int, heads: dict[int, int], ahead: int, *, big: bool) -> list[int]:
    """Return the values of a pack whose first slot is `first` lclusters after its head; `heads`: slots and kinds."""
    values, distances = [], count(first)
    for slot in range(16):
        if slot in heads:
            values.append(heads[slot] << 12 | slot * 7)
            distances = count(1)
            continue
        distance = next(distances)
        lo = 0x800 | slot + 2 if big and distance == 1 else min(distance, ondisk.DELTA_MAX)
        values.append(ondisk.LCLUSTER_NONHEAD << 12 | (ahead if slot == 15 and not lo & 0x800 else lo))
    return values


HEADS = st.dictionaries(st.integers(0, 15), st.sampled_from([0, 1, 3]))


@given(
    first=st.integers(1, 2100),
    heads=HEADS,
    ahead=st.integers(0, 0xFFF),
    advise=st.sampled_from([BIG, SMALL]),
    spoilt=st.dictionaries(st.integers(0, 15), st.integers(0, 0x3FFF), max_size=2),
)
@example(first=1, heads={}, ahead=3, advise=SMALL, spoilt={})
@example(first=2030, heads={}, ahead=3, advise=BIG, spoilt={})
@example(first=5, heads={14: 1}, ahead=9, advise=BIG, spoilt={})
@example(first=5, heads={13: 1}, ahead=9, advise=BIG, spoilt={})
@example(first=5, heads={14: 1}, ahead=9, advise=SMALL, spoilt={})
def test_at_once_and_one_by_one(
    first: int, heads: dict[int, int], ahead: int, advise: int, spoilt: dict[int, int]
) -> None:
    values = typical(first, heads, ahead, big=advise == BIG)
    for slot, value in spoilt.items():
        values[slot] = value
    zmap = zmap_of(advise)
    at_once = lclusters._decode_runs(zmap, slots_of(values), 1000)
    try:
        one_by_one = lclusters._decode_packs(zmap, 0, [(*values, 1000)])
    except ErofsFormatError:
        assert at_once is None
        return
    assert at_once is None or one_each(at_once) == one_by_one
    if not spoilt and ahead <= ondisk.DELTA_MAX and first + 16 < ondisk.DELTA_MAX:
        assert at_once is not None
        assert len(at_once) <= 3 * len(heads) + 2


@pytest.mark.parametrize("slot", range(15))
def test_a_single_wrong_distance_is_noticed(slot: int) -> None:
    values = typical(20, {}, 1, big=True)
    values[slot] ^= 1
    assert lclusters._decode_runs(zmap_of(BIG), slots_of(values), 0) is None
