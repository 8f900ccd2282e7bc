# SPDX-License-Identifier: Apache-2.0
"""Blocks of directories: what is checked for all entries at once is what holds for each of them."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from erofs_edge.erofs.dirents import Dirent, parse_block
from erofs_edge.erofs.ondisk import DIRENT, NAME_MAX
from erofs_edge.errors import ErofsFormatError

NAMES = st.lists(st.binary(max_size=6) | st.binary(min_size=250, max_size=260), min_size=1, max_size=6)


def block_of(names: list[bytes]) -> bytes:
    at = DIRENT.size * len(names)
    entries = b""
    for number, name in enumerate(names):
        entries += DIRENT.pack(number, at, number % 8)
        at += len(name)
    return entries + b"".join(names)


@given(names=NAMES, ordered=st.booleans(), padding=st.integers(0, 3))
@example(names=[b"a", b"b/c"], ordered=True, padding=0)
@example(names=[b"a", b"b\0c", b"d"], ordered=True, padding=0)
@example(names=[b"a", b"a"], ordered=True, padding=1)
@example(names=[b"b", b"a"], ordered=False, padding=1)
@example(names=[b"", b"a"], ordered=True, padding=0)
@example(names=[b"a", b"b" * (NAME_MAX + 1)], ordered=True, padding=0)
def test_a_block_is_read_as_it_was_made_or_refused(names: list[bytes], ordered: bool, padding: int) -> None:
    names = sorted(names) if ordered else names
    good = names == sorted(set(names)) and all(
        0 < len(name) <= NAME_MAX and b"/" not in name and b"\0" not in name for name in names
    )
    try:
        found = parse_block(block_of(names) + bytes(padding), 0)
    except ErofsFormatError as error:
        assert not good, error.message
        return
    if b"\0" not in names[-1]:  # which would end the last name
        assert good
    if good:
        assert found == [Dirent(name, number, number % 8) for number, name in enumerate(names)]
