# SPDX-License-Identifier: Apache-2.0
"""Indexes: golden bytes, round trips with any image, damage; images assembled from seeds and servers of every kind."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from channel_web import Web
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.channel.fetch import GAP, make_image
from erofs_edge.channel.index import BLOCK, Index, parse_index, write_index
from erofs_edge.errors import ErofsEdgeError, FormatError, MirrorError, SourceError, VerificationError
from erofs_edge.sources.http import Client

CONTENTS = [bytes(BLOCK), *(random.Random(number).randbytes(BLOCK) for number in range(60))]


def image(path: Path, numbers: list[int]) -> Path:
    """Make an image; block number 0 is zeros."""
    path.write_bytes(b"".join(CONTENTS[number] for number in numbers))
    return path


def served(web: Web, numbers: list[int]) -> tuple[Index, str]:
    web.folder.mkdir(exist_ok=True)
    index = write_index(image(web.folder / "image", numbers), web.folder / "blocks")
    return index, f"{web.url}/blocks"


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
@settings(max_examples=60)
def test_any_image_comes_back(tmp_path_factory: pytest.TempPathFactory, numbers: list[int]) -> None:
    folder = tmp_path_factory.mktemp("i")
    index = write_index(image(folder / "image", numbers), folder / "blocks")
    again = parse_index(index.encode())
    assert again == index and index.encode() == again.encode()
    blocks, made, places = (folder / "blocks").read_bytes(), bytearray(index.size), iter(index.places)
    assert len(blocks) == index.distinct * BLOCK == len(set(numbers) - {0}) * BLOCK
    for start, end in index.ranges:
        for at in range(start, end, BLOCK):
            number = next(places)
            made[at : at + BLOCK] = blocks[number * BLOCK : (number + 1) * BLOCK]
    assert made == (folder / "image").read_bytes()


def test_golden_bytes(tmp_path: Path) -> None:
    index = write_index(image(tmp_path / "i", [0, 1, 2, 1]), tmp_path / "b")
    assert (index.size, index.ranges, list(index.places)) == (4 * BLOCK, ((BLOCK, 4 * BLOCK),), [0, 1, 0])
    raw = index.encode()
    assert raw[:36].hex() == "6565696e64657831" + "0040000000000000" + "01000000" + "03000000" + "02000000" + raw[
        28:36
    ].hex()  # fmt: skip
    assert raw[-64:] == index.digests
    assert (tmp_path / "b").read_bytes() == CONTENTS[1] + CONTENTS[2]


def test_damaged_indexes(tmp_path: Path) -> None:
    raw = write_index(image(tmp_path / "i", [0, 1, 2, 1, 0, 3]), tmp_path / "b").encode()
    chance = random.Random(3)
    for cut in (0, 7, 31, 35, len(raw) - 1):
        with pytest.raises(FormatError):
            parse_index(raw[:cut])
    for _ in range(600):
        bad = bytearray(raw)
        bad[chance.randrange(len(raw) - 96)] ^= 1 << chance.randrange(8)
        try:
            parse_index(bytes(bad))
        except ErofsEdgeError as error:
            assert isinstance(error, FormatError)
    (tmp_path / "odd").write_bytes(b"x" * 5000)
    for name in ("odd", "empty"):
        (tmp_path / "empty").touch()
        with pytest.raises(FormatError, match="no number of 4096-byte blocks"):
            write_index(tmp_path / name, tmp_path / "b2")
    with pytest.raises(SourceError):
        write_index(tmp_path / "none", tmp_path / "b2")
    assert not (tmp_path / "b2").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_only_what_is_nowhere_is_fetched(web: Web, tmp_path: Path, ranges: bool) -> None:
    new = [*range(1, 21), 0, 0, *range(30, 50), 5, 6]
    index, url = served(web, new)
    web.ranges = ranges
    old = image(tmp_path / "old", [*range(10, 21), 3, 2, 1, *range(4, 10), 40, 42, 44])
    got = make_image(index, url, tmp_path / "made", [tmp_path / "none", old], Client())
    assert (tmp_path / "made").read_bytes() == (web.folder / "image").read_bytes()
    missing = len(set(new) - {0} - set(range(1, 21)) - {40, 42, 44})
    assert got.local == 23 * BLOCK and missing * BLOCK <= got.remote <= (missing + 3) * BLOCK and GAP == 2
    assert web.sent["blocks"] == (got.remote if ranges else index.distinct * BLOCK)
    again = make_image(index, url, tmp_path / "made", [tmp_path / "made"], Client())
    assert (again.remote, again.requests) == (0, 0)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_lies_or_breaks_off(web: Web, tmp_path: Path, ranges: bool) -> None:
    index, url = served(web, list(range(1, 30)))
    web.ranges = ranges
    web.change = lambda path, data: data[: 9 * BLOCK] + bytes([data[9 * BLOCK] ^ 1]) + data[9 * BLOCK + 1 :]
    with pytest.raises(VerificationError, match="block 9 does not match the index"):
        make_image(index, url, tmp_path / "made", [], Client())
    web.change = lambda path, data: data[: 20 * BLOCK]
    with pytest.raises(MirrorError, match=r"different range|less than was asked for"):
        make_image(index, url, tmp_path / "made", [], Client())
    web.change = lambda path, data: None
    with pytest.raises(SourceError, match="no such file"):
        make_image(index, url, tmp_path / "made", [], Client())
    assert [path.name for path in tmp_path.iterdir() if "made" in path.name] == []
