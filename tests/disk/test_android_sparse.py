# SPDX-License-Identifier: Apache-2.0
"""Android sparse images: golden bytes, pieces, the real tools in both directions, hostile images."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.disk import android_sparse
from erofs_edge.errors import CapacityError, FormatError

BLOCK = android_sparse.BLOCK


def encoded(image: bytes, data: list[tuple[int, int]], limit: int = 1 << 30) -> list[bytes]:
    pieces = android_sparse.plan_pieces(len(image), data, limit)
    done = [b"".join(piece.encode(lambda offset, length: image[offset : offset + length])) for piece in pieces]
    assert [len(piece) for piece in done] == [piece.size for piece in pieces]
    return done


def decoded(pieces: list[bytes], size: int) -> bytes:
    blocks = -(-size // BLOCK)
    out = bytearray(b"\xee" * (blocks * BLOCK))

    def write(offset: int, data: bytes | memoryview) -> None:
        out[offset : offset + len(data)] = data

    for piece in pieces:
        assert android_sparse.decode(memoryview(piece), write, len(out)) == len(out)
    return bytes(out)


def test_golden_bytes() -> None:
    image = b"A" * BLOCK + bytes(2 * BLOCK) + b"tail"
    (piece,) = encoded(image, [(0, BLOCK), (3 * BLOCK, 3 * BLOCK + 4)])
    assert piece == b"".join(
        [
            bytes.fromhex("3aff26ed 0100 0000 1c00 0c00 00100000 04000000 03000000 00000000"),
            bytes.fromhex("c1ca 0000 01000000 0c100000") + b"A" * BLOCK,
            bytes.fromhex("c2ca 0000 02000000 10000000 00000000"),
            bytes.fromhex("c1ca 0000 01000000 0c100000") + b"tail" + bytes(BLOCK - 4),
        ]
    )


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=8), st.integers(1, 40), st.data())
def test_pieces_make_the_image(runs: list[tuple[int, bool]], blocks_a_piece: int, data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 1 << 20)))
    image, extents = b"", []
    for blocks, has_data in runs:
        if has_data:
            extents.append((len(image), len(image) + blocks * BLOCK))
        image += rng.randbytes(blocks * BLOCK) if has_data else bytes(blocks * BLOCK)
    limit = 100 + blocks_a_piece * (BLOCK + 12)
    pieces = encoded(image, extents, limit)
    assert all(len(piece) <= limit for piece in pieces)
    assert decoded(pieces, len(image)) == image


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["raw", "fill", "leave"])), min_size=1, max_size=12),
    st.integers(1, 12),
)
def test_a_sparse_image_is_divided_anew(chunks: list[tuple[int, str]], blocks_a_piece: int) -> None:
    rng, runs, at, image = random.Random(len(chunks)), [], 0, b""
    for count, kind in chunks:
        fill = rng.randbytes(4)
        image += {"raw": rng.randbytes(count * BLOCK), "fill": fill * (count * 1024), "leave": b"\xee" * count * BLOCK}[
            kind
        ]
        if kind != "leave":
            runs.append(android_sparse.Run(at, count, kind == "raw", fill if kind == "fill" else bytes(4)))
        at += count
    whole = b"".join(
        android_sparse.Piece(tuple(runs), at).encode(lambda offset, length: image[offset : offset + length])
    )
    assert decoded([whole], at * BLOCK) == image
    source = android_sparse.SparseFile(lambda offset, length: whole[offset : offset + length], len(whole))
    assert (source.runs, source.size) == (runs, at * BLOCK)
    limit = 100 + blocks_a_piece * (BLOCK + 12)
    pieces = source.pieces(limit)
    done = [b"".join(piece.encode(source.read)) for piece in pieces]
    assert all(len(raw) == piece.size <= limit for raw, piece in zip(done, pieces, strict=True))
    assert decoded(done, at * BLOCK) == image


def test_a_device_without_memory() -> None:
    with pytest.raises(CapacityError, match="too few"):
        android_sparse.plan_pieces(BLOCK, [(0, BLOCK)], BLOCK)


def test_the_real_tools_agree(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    rng = random.Random(3)
    image = rng.randbytes(5 * BLOCK) + bytes(40 * BLOCK) + rng.randbytes(3 * BLOCK)
    data = [(0, 5 * BLOCK), (45 * BLOCK, 48 * BLOCK)]
    names = []
    for number, piece in enumerate(encoded(image, data, 4 * BLOCK)):
        names.append(tmp_path / f"piece{number}")
        names[-1].write_bytes(piece)
    assert len(names) > 2
    subprocess.run([oracle("simg2img"), *map(str, names), str(tmp_path / "out")], check=True, capture_output=True)
    assert (tmp_path / "out").read_bytes() == image
    (tmp_path / "raw").write_bytes(image)
    subprocess.run([oracle("img2simg"), str(tmp_path / "raw"), str(tmp_path / "theirs")], check=True)
    out = bytearray(len(image))

    def write(offset: int, data: bytes | memoryview) -> None:
        out[offset : offset + len(data)] = data

    android_sparse.decode(memoryview((tmp_path / "theirs").read_bytes()), write, len(image))
    assert out == image


def test_hostile_images_end_in_an_error() -> None:
    (whole,) = encoded(b"A" * BLOCK + bytes(BLOCK), [(0, BLOCK)])
    written = 0

    def write(offset: int, data: bytes | memoryview) -> None:
        nonlocal written
        assert 0 <= offset <= offset + len(data) <= 2 * BLOCK
        written += len(data)

    refused = 0
    for seed in range(3000):
        rng = random.Random(seed)
        case = bytearray(whole)
        for _ in range(rng.choice([1, 2, 4])):
            at = rng.choice([*range(40), *range(len(whole) - 16, len(whole) - 4)])
            struct.pack_into("<I", case, at, rng.choice([0, 1, 3, 0xCAC1CAC3, 0x7FFFFFFF, 0xFFFFFFFF]))
        del case[rng.choice([10, 40, len(case), len(case)]) :]
        written = 0
        try:
            android_sparse.SparseFile(lambda at, count, raw=bytes(case): raw[at : at + count], len(case))  # type: ignore[misc]
        except FormatError as error:
            assert error.where
        try:
            android_sparse.decode(memoryview(case), write, 2 * BLOCK)
        except FormatError as error:
            refused += 1
            assert error.where
        assert written <= 2 * BLOCK
    assert refused > 1000
