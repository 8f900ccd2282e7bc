# SPDX-License-Identifier: Apache-2.0
"""The input of known answers: what codecs are checked with before their bytes go into images."""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import chain, cycle, islice


@cache
def known_input() -> bytes:
    """150,000 bytes with literals, short and long matches and far matches."""
    words = [hashlib.sha256(b"%d" % i).digest()[: 1 + i % 23] for i in range(257)]
    pairs = zip(cycle([words[i * i % 257] for i in range(257)]), cycle(words[:31]))
    text = b"".join(chain.from_iterable(islice(pairs, 7000)))
    return (text + bytes(5000) + text[::-1])[:150_000]
