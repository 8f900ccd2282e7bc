# SPDX-License-Identifier: Apache-2.0
"""BLAKE3, the default chunk digest of Nydus's builder, computed for many chunks of 1 KiB side by side.

Source: "BLAKE3: one function, fast everywhere", sections 2.1 to 2.5. Words are 32 bits, little-endian. The four columns
of a state and all chunks of the input are lanes of one array.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

CHUNK, BLOCK = 1024, 64  # bytes
IV = np.array(
    [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19], np.uint32
)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
ROUNDS = 7
_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)


def _schedule() -> list[tuple[list[int], ...]]:
    """For each round, the message words used by the columns and then by the diagonals: x and y of each."""
    order, found = list(range(16)), list[tuple[list[int], ...]]()
    for _ in range(ROUNDS):
        found.append((order[0:8:2], order[1:8:2], order[8:16:2], order[9:16:2]))
        order = [order[place] for place in _PERMUTATION]
    return found


_SCHEDULE = _schedule()


def blake3(data: bytes) -> bytes:
    """Return the 32-byte hash. Uses about eight times the memory of `data`."""
    whole = max(0, len(data) - 1) // CHUNK
    rest = data[whole * CHUNK :]
    if not whole:
        return _chunks(rest, np.zeros(1, np.uint64), ROOT)[:, 0].astype("<u4").tobytes()
    nodes = np.concatenate(
        [
            _chunks(data[: whole * CHUNK], np.arange(whole, dtype=np.uint64), 0),
            _chunks(rest, np.array([whole], np.uint64), 0),
        ],
        axis=1,
    )
    # pairs of neighbours become parents; an odd one moves up unchanged: the tree of section 2.1
    while nodes.shape[1] > 1:
        even = nodes.shape[1] & ~1
        flags = PARENT | (ROOT if nodes.shape[1] == 2 else 0)
        message = np.concatenate([nodes[:, 0:even:2], nodes[:, 1:even:2]])
        parents = _compress(_start(even // 2), message, np.zeros(even // 2, np.uint64), BLOCK, flags)
        nodes = np.concatenate([parents, nodes[:, even:]], axis=1)
    return nodes[:, 0].astype("<u4").tobytes()


def _start(lanes: int) -> Words:
    return np.repeat(IV[:, None], lanes, axis=1)


def _chunks(data: bytes, counters: NDArray[np.uint64], flags: int) -> Words:
    """Return the chaining values, (8, lanes), of chunks of equal length. `flags` apply to the last block of each."""
    lanes = len(counters)
    length = len(data) // lanes
    blocks = max(1, -(-length // BLOCK))
    padded = data if length == blocks * BLOCK else data.ljust(blocks * BLOCK, b"\0")
    words = np.frombuffer(padded, "<u4").reshape(lanes, blocks, 16)
    value = _start(lanes)
    for block in range(blocks):
        last = block == blocks - 1
        size = length - block * BLOCK if last else BLOCK
        kind = (CHUNK_START if not block else 0) | (CHUNK_END | flags if last else 0)
        value = _compress(value, np.ascontiguousarray(words[:, block].T, np.uint32), counters, size, kind)
    return value


def _compress(value: Words, message: Words, counters: NDArray[np.uint64], size: int, flags: int) -> Words:
    """Return the first half of the compression function's output: value (8, lanes), message (16, lanes) → (8,
    lanes)."""
    a, b, c = value[:4].copy(), value[4:].copy(), np.repeat(IV[:4, None], value.shape[1], axis=1)
    d = np.empty_like(a)
    d[0], d[1], d[2], d[3] = counters & np.uint64(0xFFFFFFFF), counters >> np.uint64(32), size, flags
    for x, y, further_x, further_y in _SCHEDULE:
        _mix(a, b, c, d, message[x], message[y])
        b, c, d = np.roll(b, -1, 0), np.roll(c, -2, 0), np.roll(d, -3, 0)
        _mix(a, b, c, d, message[further_x], message[further_y])
        b, c, d = np.roll(b, 1, 0), np.roll(c, 2, 0), np.roll(d, 3, 0)
    return np.concatenate([a ^ c, b ^ d])


def _mix(a: Words, b: Words, c: Words, d: Words, x: Words, y: Words) -> None:
    """The function G on four columns at once, in place."""
    for message, of_d, of_b in ((x, 16, 12), (y, 8, 7)):
        a += b
        a += message
        d ^= a
        _rotate(d, of_d)
        c += d
        b ^= c
        _rotate(b, of_b)


def _rotate(words: Words, bits: int) -> None:
    high = words << np.uint32(32 - bits)
    words >>= np.uint32(bits)
    words |= high
