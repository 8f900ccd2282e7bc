# SPDX-License-Identifier: Apache-2.0
"""Flattened device trees against golden bytes, dtc, and broken input."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.boot.fdt import DeviceTree, Node, cells, parse, string, write
from erofs_edge.errors import FormatError

NAMES = st.from_regex(r"[a-z][a-z0-9,._+-]{0,20}", fullmatch=True)
PROPS = st.dictionaries(NAMES, st.binary(max_size=40), max_size=4)
NODES = st.recursive(
    st.builds(Node, PROPS),
    lambda inner: st.builds(Node, PROPS, st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=12,
)
TREES = st.builds(
    DeviceTree,
    NODES,
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1)), max_size=3),
    st.integers(0, 2**32 - 1),
)
SAMPLE = DeviceTree(
    Node({"model": string("x"), "empty": b""}, {"cpus": Node({"reg": cells(1, 2)}, {"cpu@0": Node({"model": b"\0"})})}),
    [(0x1000, 0x2000)],
    3,
)


def test_golden_bytes() -> None:
    expected = (
        "d00dfeed 000000c8 00000048 000000b8 00000028 00000011 00000010 00000003 00000010 00000070"
        "0000000000001000 0000000000002000 0000000000000000 0000000000000000"
        "00000001 00000000"
        "00000003 00000002 00000000 78000000"
        "00000003 00000000 00000006"
        "00000001 63707573 00000000"
        "00000003 00000008 0000000c 00000001 00000002"
        "00000001 63707540 30000000"
        "00000003 00000001 00000000 00000000"
        "00000002 00000002 00000002 00000009"
        "6d6f64656c00 656d70747900 72656700"
    )
    assert write(SAMPLE).hex() == expected.replace(" ", "")


@given(TREES)
def test_round_trip(tree: DeviceTree) -> None:
    blob = write(tree)
    assert parse(blob) == tree
    assert write(parse(blob)) == blob


@settings(max_examples=15, deadline=None)
@given(TREES)
def test_dtc_reads_ours_and_we_read_dtcs(oracle: Callable[[str], str], tree: DeviceTree) -> None:
    blob = write(tree)
    command = [oracle("dtc"), "-q", "-f", "-I", "dtb", "-O", "dtb"]
    theirs = subprocess.run(command, input=blob, capture_output=True, check=True).stdout
    assert parse(theirs).root == tree.root
    assert parse(theirs).reservations == tree.reservations


def test_broken_input_raises_format_error_only() -> None:
    blob = write(SAMPLE)
    for length in range(len(blob)):
        with pytest.raises(FormatError):
            parse(blob[:length])
    rng = random.Random(1)
    for _ in range(5000):
        broken = bytearray(blob)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.choice((0, 1, 2, 3, 9, 0x7F, 0xFF, rng.randrange(256)))
        try:
            parse(bytes(broken))
        except FormatError as error:
            assert error.where


def test_deep_nesting_is_refused() -> None:
    root = node = Node()
    for _ in range(70):
        node.children["x"] = node = Node()
    with pytest.raises(FormatError, match="bad node"):
        parse(write(DeviceTree(root)))


def test_node_paths() -> None:
    assert SAMPLE.root.at("/cpus/cpu@0") is SAMPLE.root.children["cpus"].children["cpu@0"]
    assert SAMPLE.root.at("/") is SAMPLE.root
    assert SAMPLE.root.at("/cpus/none") is None
