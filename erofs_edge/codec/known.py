# SPDX-License-Identifier: Apache-2.0
"""Input for the known-answer tests that codecs must pass before their output goes into images.

Each process that compresses runs them, so the input is short. It is generated from functions that give the same result
in every Python release.
"""

from __future__ import annotations

from functools import cache
from itertools import chain, cycle, islice

try:  # Python's own: hashlib loads OpenSSL's, which takes longer than all checks here
    from _sha3 import shake_128  # type: ignore[import-not-found]

    try:
        from _sha2 import sha256  # type: ignore[import-not-found]
    except ImportError:  # before Python 3.12
        from _sha256 import sha256  # type: ignore[import-not-found]
except ImportError:  # a Python built without them
    from hashlib import sha256, shake_128

SIZE = 64 << 10  # bytes
_NOISE = 8 << 10
_SYMBOLS = bytes(value * value >> 9 for value in range(256))  # half of them occur more often than the others


@cache
def known_input() -> bytes:
    """SIZE bytes: literals of uneven frequency, short and long matches, noise, a run of zeros, and new text again."""
    noise: bytes = shake_128(b"known input").digest(2 * _NOISE)
    letters = noise.translate(_SYMBOLS)
    words = [letters[29 * i : 29 * i + 1 + i % 23] for i in range(257)]
    pairs = zip(cycle([words[i * i % 257] for i in range(257)]), cycle(words[:31]))
    text = b"".join(chain.from_iterable(islice(pairs, 1600)))
    return (text + noise[_NOISE:] + bytes(3000) + text[::-1])[:SIZE]


def digest_of(output: bytes | memoryview) -> str:
    """The digest under which known answers list an output: the first half of its sha256."""
    digest: str = sha256(output).hexdigest()
    return digest[:32]
