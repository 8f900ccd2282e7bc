# SPDX-License-Identifier: Apache-2.0
"""A key that is the same in every run, for golden bytes."""

from __future__ import annotations

import functools

from cryptography.hazmat.primitives.asymmetric import rsa

from erofs_edge.trust.key import KeySigner


@functools.cache
def fixed_key() -> KeySigner:
    """RSA-2048 from two fixed primes: those above 2^1023 times 1.5 and 1.75, by the standard library alone."""
    p, q = (next_prime((3 << 1022) + seed) for seed in (1, 1 << 900))
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q), public
    )
    return KeySigner("fixed", numbers.private_key())


def next_prime(start: int) -> int:
    number = start | 1
    while pow(2, number - 1, number) != 1 or pow(3, number - 1, number) != 1:
        number += 2
    return number
