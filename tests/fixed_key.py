# SPDX-License-Identifier: Apache-2.0
"""Keys that are the same in every run: for golden bytes, and for random damage from a fixed seed."""

from __future__ import annotations

import functools

from cryptography.hazmat.primitives.asymmetric import rsa

from erofs_edge.trust.key import KeySigner

SMALL = [n for n in range(3, 5000, 2) if pow(2, n - 1, n) == 1 and all(n % m for m in range(3, 71, 2) if m < n)]
"""primes; numbers that one of them divides need no further test"""


@functools.cache
def fixed_key(number: int = 0, name: str = "fixed") -> KeySigner:
    """Return RSA-2048 from two fixed primes: those above 2^1023 times 1.5 and 1.75, with the standard library only.
    Each `number` has its own key."""
    p, q = (next_prime((3 << 1022) + seed + (number << 800)) for seed in (1, 1 << 900))
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q), public
    )
    return KeySigner(name, numbers.private_key())


def next_prime(start: int) -> int:
    """Return the next prime from there on, with negligible probability of error."""
    number = start | 1
    while any(number % small == 0 for small in SMALL) or any(pow(base, number - 1, number) != 1 for base in (2, 3)):
        number += 2
    return number
