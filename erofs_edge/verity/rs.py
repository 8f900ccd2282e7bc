# SPDX-License-Identifier: Apache-2.0
"""Reed-Solomon codes over GF(256), for many code words at once: they are columns of numpy arrays.

The code is that of Linux ``drivers/md/dm-verity-fec.c`` and cryptsetup ``lib/verity/verity_fec.c``: field polynomial
0x11d, a generator with the roots 2^0 … 2^(roots-1), 255 symbols per word, of which the last `roots` are parity, highest
power first. Symbol i of a word is the coefficient of x^(254 - i).

Multiplication by a constant is a sum of doublings, each of which is four vectorized numpy operations. A lookup table is
ten times slower, so only decoding uses one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]

WORD = 255
_POLYNOMIAL = 0x11D


def _powers() -> tuple[list[int], list[int]]:
    """2^n for n in [0, 510), and the logarithm of every value except 0."""
    exp, log, value = [0] * 510, [0] * 256, 1
    for n in range(255):
        exp[n] = exp[n + 255] = value
        log[value] = n
        value <<= 1
        if value & 0x100:
            value ^= _POLYNOMIAL
    return exp, log


EXP, LOG = _powers()


def multiply(a: int, b: int) -> int:
    """Return the product of two field elements."""
    return EXP[LOG[a] + LOG[b]] if a and b else 0


def inverse(a: int) -> int:
    """1 / a, for a != 0."""
    return EXP[255 - LOG[a]]


@lru_cache
def _products() -> Bytes:
    """(256, 256): table of all products."""
    log = np.array(LOG)
    table: Bytes = np.array(EXP, np.uint8)[log[:, None] + log[None, :]]
    table[0, :] = table[:, 0] = 0
    return table


@lru_cache
def _inverses() -> Bytes:
    """(256,): 1 / a, with 0 for 0."""
    return np.array([0] + [inverse(v) for v in range(1, 256)], np.uint8)


def generator(roots: int) -> list[int]:
    """Return the coefficients of the generator polynomial from x^0 up; that of x^roots is 1."""
    g = [1]
    for n in range(roots):
        shifted, scaled = [0, *g], [multiply(EXP[n], c) for c in g]
        g = [a ^ b for a, b in zip(shifted, [*scaled, 0], strict=True)]
    return g


def parity(rows: Sequence[Bytes], roots: int) -> Bytes:
    """Return (roots, n): the parity of n code words whose symbol i is `rows[i]`, n bytes each.

    With fewer than 255 - roots rows, the missing symbols are zeros at the end of the word.
    """
    width = len(rows[0])
    terms = [[bit for bit in range(8) if c >> bit & 1] for c in generator(roots)[:roots]]
    depth = 1 + max(bit for bits in terms for bit in bits)
    # the shift register is a ring: its head moves, its contents stay in place
    state, doubled = np.zeros((roots, width), np.uint8), np.empty((depth, width), np.uint8)
    high, zeros = np.empty(width, np.uint8), np.zeros(width, np.uint8)
    for step in range(WORD - roots):
        head = step % roots
        np.bitwise_xor(state[head], rows[step] if step < len(rows) else zeros, out=doubled[0])
        for bit in range(1, depth):
            _double(doubled[bit - 1], doubled[bit], high)
        for back, bits in enumerate(terms[1:], 1):
            target = state[(head + roots - back) % roots]
            for bit in bits:
                np.bitwise_xor(target, doubled[bit], out=target)
        first, *rest = terms[0]
        state[head] = doubled[first]
        for bit in rest:
            np.bitwise_xor(state[head], doubled[bit], out=state[head])
    return np.roll(state, -((WORD - roots) % roots), axis=0)


def _double(a: Bytes, out: Bytes, high: Bytes) -> None:
    """out = 2 a. The sign bit of each byte, spread by an arithmetic shift, selects the reduction."""
    np.right_shift(a.view(np.int8), 7, out=high.view(np.int8))
    np.bitwise_and(high, _POLYNOMIAL & 0xFF, out=high)
    np.add(a, a, out=out)
    np.bitwise_xor(out, high, out=out)


def syndromes(remainder: Bytes) -> Bytes:
    """(roots, n) syndromes from (roots, n) computed parity XOR stored parity. Syndrome j is the word's value at 2^j."""
    products, found = _products(), np.empty_like(remainder)
    for j in range(len(remainder)):
        value = remainder[0].copy()
        for row in remainder[1:]:
            value = products[EXP[j]][value] ^ row
        found[j] = value
    return found


def shifted(found: Bytes, position: int, correction: Bytes) -> Bytes:
    """Return the syndromes after adding `correction` to symbol `position` of the words."""
    products = _products()
    powers = [EXP[(WORD - 1 - position) * j % 255] for j in range(len(found))]
    change: Bytes = np.stack([products[p][correction] for p in powers])
    return found ^ change


def decode(found: Bytes, erasures: Sequence[int]) -> tuple[dict[int, Bytes], Flags]:
    """Return what to add to which symbols of n words with these (roots, n) syndromes, and which words that makes valid.

    Erased symbols (at most `roots`) may have any value in all words. Beyond those, errors at any position are found, up
    to half of the remaining roots. Words that cannot be made valid get no correction. A word with more errors than that
    may be made valid and still be wrong; the caller has hashes to tell.
    """
    count = len(erasures)
    corrections = dict(zip(erasures, _erased(found, erasures), strict=True))
    rest = found
    for position, values in corrections.items():
        rest = shifted(rest, position, values)
    ok: Flags = np.all(rest[count:] == 0, axis=0)
    for values in corrections.values():
        values[~ok] = 0
    columns = np.flatnonzero(~ok)
    if len(columns) and len(found) - count >= 2:
        more, solved = _errors(found[:, columns], erasures)
        for position, values in more.items():
            corrections.setdefault(position, np.zeros(found.shape[1], np.uint8))[columns] = values
        ok[columns] = solved
    return corrections, ok


def _erased(found: Bytes, erasures: Sequence[int]) -> list[Bytes]:
    """Return the values of the erased symbols if nothing else is wrong: the solution of a Vandermonde system."""
    products, count = _products(), len(erasures)
    matrix = [
        [EXP[(WORD - 1 - p) * j % 255] for p in erasures] + [int(j == k) for k in range(count)] for j in range(count)
    ]
    for column in range(count):
        pivot = next(row for row in range(column, count) if matrix[row][column])
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        scale = inverse(matrix[column][column])
        matrix[column] = [multiply(scale, v) for v in matrix[column]]
        for row in range(count):
            if row != column and (factor := matrix[row][column]):
                matrix[row] = [v ^ multiply(factor, w) for v, w in zip(matrix[row], matrix[column], strict=True)]
    solved = []
    for line in matrix:
        value = np.zeros(found.shape[1], np.uint8)
        for factor, syndrome in zip(line[count:], found[:count], strict=True):
            value ^= products[factor][syndrome]
        solved.append(value)
    return solved


def _errors(found: Bytes, erasures: Sequence[int]) -> tuple[dict[int, Bytes], Flags]:
    """Correct errors and erasures (Berlekamp-Massey, Chien search, Forney), each step for all words at once."""
    products = _products()
    roots, width = found.shape
    locator = _locator(found, erasures)
    evaluator = np.zeros_like(found)
    for i in range(roots):
        for k in range(i + 1):
            evaluator[i] ^= products[locator[k], found[i - k]]
    slope = locator.copy()
    slope[0::2] = 0
    corrections: dict[int, Bytes] = {}
    rest = found.copy()
    for position in range(WORD):
        x = EXP[(WORD - 1 - position) % 255]
        columns = np.flatnonzero(_at(locator, inverse(x)) == 0)
        if not len(columns):
            continue
        top, bottom = _at(evaluator[:, columns], inverse(x)), _at(slope[:, columns], inverse(x))
        # For roots starting at 2^0, Forney's formula has a factor x; the slope is not divided by x, so it already
        # includes it
        values = products[top, _inverses()[bottom]]
        corrections[position] = np.zeros(width, np.uint8)
        corrections[position][columns] = values
        rest[:, columns] = shifted(rest[:, columns], position, values)
    ok: Flags = np.all(rest == 0, axis=0)
    for values in corrections.values():
        values[~ok] = 0
    return corrections, ok


def _locator(found: Bytes, erasures: Sequence[int]) -> Bytes:
    """(roots + 1, n): polynomials, from x^0 up, whose roots are the inverse positions of errors and erasures."""
    products = _products()
    roots, width = found.shape
    start = [1]
    for position in erasures:
        x = EXP[(WORD - 1 - position) % 255]
        start = [a ^ multiply(x, b) for a, b in zip([*start, 0], [0, *start], strict=True)]
    locator = np.zeros((roots + 1, width), np.uint8)
    locator[: len(start)] = np.array(start, np.uint8)[:, None]
    before, length = locator.copy(), np.full(width, len(erasures))
    for i in range(len(erasures), roots):
        gap = np.zeros(width, np.uint8)
        for k in range(i + 1):
            gap ^= products[locator[k], found[i - k]]
        before = np.roll(before, 1, axis=0)
        before[0] = 0
        grown = (gap != 0) & (2 * length <= i + len(erasures))
        following = locator ^ products[gap[None, :], before]
        before[:, grown] = products[_inverses()[gap[grown]][None, :], locator[:, grown]]
        length[grown] = i + 1 + len(erasures) - length[grown]
        locator = following
    return locator


def _at(polynomial: Bytes, x: int) -> Bytes:
    """Evaluate polynomials, given from x^0 up, at x."""
    row = _products()[x]
    value: Bytes = polynomial[-1].copy()
    for coefficients in polynomial[-2::-1]:
        value = row[value] ^ coefficients
    return value
