# SPDX-License-Identifier: Apache-2.0
"""AVB 2 vbmeta images: write, parse, verify.

Source: AOSP external/avb, ``libavb/avb_vbmeta_image.h`` (the header, big-endian, 256 bytes), the descriptors' headers
beside it, ``avb_crypto.h`` (keys) and ``avb_footer.h``. An image is header, authentication block (hash, signature) and
auxiliary block (descriptors, public key); hash and signature cover header and auxiliary block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct
from typing import TYPE_CHECKING, Any, ClassVar

from erofs_edge.errors import ErofsEdgeError, FormatError, VerificationError
from erofs_edge.trust.key import PublicKey, Signer, VerificationKey, rsa_key, sign, verifies

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

MAGIC = b"AVB0"
FOOTER_MAGIC = b"AVBf"
MAIN = "vbmeta"
"""the partition that the boot loader starts from; partitions whose names begin like this have their vbmeta at byte 0"""
VERSION_MAJOR, VERSION_MINOR = 1, 3
ALIGN = 64  # of both blocks
SIZE_MAX = 64 << 10
"""bytes of a vbmeta image, as libavb reads it from a partition with a footer"""
ALGORITHMS = {2048: 1, 4096: 2}
"""bits of an RSA key → SHA256_RSA2048, SHA256_RSA4096"""
HASHTREE_DISABLED, VERIFICATION_DISABLED = 1, 2
"""flags of a vbmeta image that turn the checks off"""

# magic, version, sizes of both blocks, algorithm, hash, signature, public key, its metadata and descriptors (offset
# and size each), rollback index, flags, rollback index location, release string
_HEADER = Struct(">4sII2QI10QQII47sx80x")
_DESCRIPTOR = Struct(">2Q")
_PROPERTY = Struct(">2Q")
_HASHTREE = Struct(">I3QIII2Q32s4I60x")
_HASH = Struct(">Q32s4I60x")
_CMDLINE = Struct(">2I")
_CHAIN = Struct(">4I60x")
_KEY = Struct(">2I")
_FOOTER = Struct(">4s2I3Q28x")
FOOTER_SIZE = _FOOTER.size
DIGESTS = {"sha1": 20, "sha256": 32, "sha512": 64}


@dataclass(frozen=True, slots=True)
class Property:
    """A name and bytes for the boot loader to look up."""

    TAG: ClassVar[int] = 0
    key: str
    value: bytes

    def pack(self) -> bytes:
        """The body, without padding."""
        key = self.key.encode()
        return _PROPERTY.pack(len(key), len(self.value)) + key + b"\0" + self.value + b"\0"


@dataclass(frozen=True, slots=True)
class Hashtree:
    """A dm-verity tree. Sizes and offsets are bytes of the partition; the tree has no superblock and is at
    `tree_offset`, the parity (`fec_roots` > 0) at `fec_offset`."""

    TAG: ClassVar[int] = 1
    partition: str
    image_size: int
    tree_offset: int
    tree_size: int
    root_digest: bytes
    salt: bytes
    algorithm: str = "sha256"
    data_block_size: int = 4096
    hash_block_size: int = 4096
    fec_roots: int = 0
    fec_offset: int = 0
    fec_size: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        """The body, without padding."""
        name = self.partition.encode()
        head = _HASHTREE.pack(
            1, self.image_size, self.tree_offset, self.tree_size, self.data_block_size, self.hash_block_size,
            self.fec_roots, self.fec_offset, self.fec_size, self.algorithm.encode(), len(name), len(self.salt),
            len(self.root_digest), self.flags,
        )  # fmt: skip
        return head + name + self.salt + self.root_digest


@dataclass(frozen=True, slots=True)
class Hash:
    """The digest of salt and the first `image_size` bytes of a partition that is read whole."""

    TAG: ClassVar[int] = 2
    partition: str
    image_size: int
    digest: bytes
    salt: bytes
    algorithm: str = "sha256"
    flags: int = 0

    def pack(self) -> bytes:
        """The body, without padding."""
        name = self.partition.encode()
        head = _HASH.pack(
            self.image_size, self.algorithm.encode(), len(name), len(self.salt), len(self.digest), self.flags
        )  # fmt: skip
        return head + name + self.salt + self.digest


@dataclass(frozen=True, slots=True)
class Cmdline:
    """Kernel arguments."""

    TAG: ClassVar[int] = 3
    cmdline: str
    flags: int = 0

    def pack(self) -> bytes:
        """The body, without padding."""
        text = self.cmdline.encode()
        return _CMDLINE.pack(self.flags, len(text)) + text


@dataclass(frozen=True, slots=True)
class Chain:
    """Another partition with its own vbmeta, signed by `public_key` (in AVB's form), and its own rollback index."""

    TAG: ClassVar[int] = 4
    partition: str
    rollback_index_location: int
    public_key: bytes
    flags: int = 0

    def pack(self) -> bytes:
        """The body, without padding."""
        name = self.partition.encode()
        head = _CHAIN.pack(self.rollback_index_location, len(name), len(self.public_key), self.flags)
        return head + name + self.public_key


Descriptor = Property | Hashtree | Hash | Cmdline | Chain


@dataclass(frozen=True, slots=True)
class VBMeta:
    """The content of a vbmeta image."""

    descriptors: list[Descriptor] = field(default_factory=list)
    rollback_index: int = 0
    rollback_index_location: int = 0
    flags: int = 0
    release: str = "erofs-edge"

    @property
    def minor(self) -> int:
        """Minor version of libavb required to read it."""
        if any(isinstance(d, Chain) and d.flags for d in self.descriptors):
            return 3
        if self.rollback_index_location:
            return 2
        return int(any(isinstance(d, Hashtree | Hash) and d.flags for d in self.descriptors))


@dataclass(frozen=True, slots=True)
class Footer:
    """The last 64 bytes of a partition that contains its vbmeta. In bytes."""

    original_size: int
    vbmeta_offset: int
    vbmeta_size: int

    def pack(self) -> bytes:
        """The 64 bytes."""
        return _FOOTER.pack(FOOTER_MAGIC, 1, 0, self.original_size, self.vbmeta_offset, self.vbmeta_size)


@dataclass(frozen=True, slots=True)
class Unsigned:
    """Everything in a vbmeta image that is signed: all but the authentication block. Sizes in bytes."""

    header: bytes
    auxiliary: bytes
    authentication_size: int
    signature_size: int


def lay_out(meta: VBMeta, key: VerificationKey) -> Unsigned:
    """What a signer signs. The header depends only on the sizes of the descriptors, not on their contents.

    Raises ErofsEdgeError for a key that libavb does not accept.
    """
    _check_chains(meta)
    public = rsa_key(key, "AVB")
    encoded = encode_key(public, key.name)
    descriptors = b"".join(map(pack_descriptor, meta.descriptors))
    auxiliary = _fill(descriptors + encoded, ALIGN)
    signature_size = public.key_size // 8
    authentication_size = -(-(32 + signature_size) // ALIGN) * ALIGN
    header = _HEADER.pack(
        MAGIC, VERSION_MAJOR, meta.minor, authentication_size, len(auxiliary), ALGORITHMS[public.key_size],
        0, 32, 32, signature_size, len(descriptors), len(encoded), len(descriptors) + len(encoded), 0,
        0, len(descriptors), meta.rollback_index, meta.flags, meta.rollback_index_location, meta.release.encode(),
    )  # fmt: skip
    return Unsigned(header, auxiliary, authentication_size, signature_size)


def write_vbmeta(meta: VBMeta, signer: Signer) -> bytes:
    """Make a signed vbmeta image. Raises ErofsEdgeError for a key that libavb does not accept, or if signing fails."""
    made = lay_out(meta, signer)
    digest = hashlib.sha256(made.header + made.auxiliary).digest()
    image = made.header + _fill(digest + sign(signer, made.header + made.auxiliary), ALIGN) + made.auxiliary
    if len(image) > SIZE_MAX:
        raise ErofsEdgeError(f"a vbmeta image of {len(image)} bytes, at most {SIZE_MAX} are read")
    return image


def parse_vbmeta(raw: bytes) -> tuple[VBMeta, bytes, bytes, bytes]:
    """Parse a vbmeta image: (content, public key in AVB's form, signature, recomputed digest that was signed).

    `raw` may be longer than the image. Checks everything that libavb checks except the signature. Raises FormatError,
    also for an unsigned image, and VerificationError if the stored hash is wrong.
    """
    if len(raw) < _HEADER.size or raw[:4] != MAGIC:
        raise FormatError("no vbmeta image here", where="offset 0x0")
    (_, major, minor, auth_size, aux_size, kind, *places, rollback, flags, location, release) = _HEADER.unpack_from(raw)
    if major != VERSION_MAJOR or minor > VERSION_MINOR:
        raise FormatError(
            f"vbmeta of version {major}.{minor}, known is {VERSION_MAJOR}.{VERSION_MINOR}", where="offset 0x4"
        )
    size = _HEADER.size + auth_size + aux_size
    if auth_size % ALIGN or aux_size % ALIGN or size > min(len(raw), SIZE_MAX):
        raise FormatError(f"vbmeta blocks of {auth_size} and {aux_size} bytes do not fit", where="offset 0xc")
    bits = next((bits for bits, number in ALGORITHMS.items() if number == kind), None)
    if bits is None:
        what = "is not signed" if kind == 0 else f"is signed with unknown algorithm {kind}"
        raise FormatError(f"the vbmeta image {what}", where="offset 0x1c")
    authentication = raw[_HEADER.size : _HEADER.size + auth_size]
    auxiliary = raw[_HEADER.size + auth_size : size]
    pairs = list(zip(places[::2], places[1::2], strict=True))
    stored, signature = (_cut(authentication, *pair) for pair in pairs[:2])
    key, _, descriptors = (_cut(auxiliary, *pair) for pair in pairs[2:])
    digest = hashlib.sha256(raw[: _HEADER.size] + auxiliary).digest()
    if stored != digest:
        raise VerificationError("the vbmeta image does not match its hash")
    if len(signature) != bits // 8 or len(key) != _KEY.size + bits // 4:
        raise FormatError("vbmeta key and signature are not of the algorithm's size", where="offset 0x30")
    meta = VBMeta(_parse_all(descriptors), rollback, location, flags, _text(release.rstrip(b"\0")))
    return meta, key, signature, digest


def verify_vbmeta(raw: bytes, key: VerificationKey, minimum: int = 0) -> VBMeta:
    """The content of a vbmeta image, if it is signed by this key, turns no check off and is not too old.

    Raises FormatError or VerificationError.
    """
    meta, embedded, signature, digest = parse_vbmeta(raw)
    public = rsa_key(key, "AVB")
    if embedded != encode_key(public, key.name):
        raise VerificationError(f"the vbmeta image is signed by another key than '{key.name}'")
    if not verifies(public, signature, digest):
        raise VerificationError("the signature of the vbmeta image does not match")
    if meta.flags & (HASHTREE_DISABLED | VERIFICATION_DISABLED):
        raise VerificationError(f"the vbmeta image switches verification off (flags {meta.flags:#x})")
    if meta.rollback_index < minimum:
        raise VerificationError(f"rollback index {meta.rollback_index} is below the minimum of {minimum}")
    return meta


def encode_key(key: RSAPublicKey, name: str) -> bytes:
    """Encode a public key as AvbRSAPublicKeyHeader: bits, -1/n mod 2^32, then modulus and R^2 mod n with R = 2^bits.

    Raises ErofsEdgeError for sizes and exponents that libavb does not accept.
    """
    numbers, bits = key.public_numbers(), key.key_size
    if bits not in ALGORITHMS or numbers.e != 65537:
        raise ErofsEdgeError(
            f"key '{name}': AVB does not support RSA keys of {bits} bits with exponent {numbers.e}",
            hint="use RSA-2048 or RSA-4096",
        )
    inverse = -pow(numbers.n, -1, 1 << 32) % (1 << 32)
    square = pow(2, 2 * bits, numbers.n)
    return _KEY.pack(bits, inverse) + numbers.n.to_bytes(bits // 8, "big") + square.to_bytes(bits // 8, "big")


def decode_key(raw: bytes, name: str) -> PublicKey:
    """Decode a key from AVB's form. Raises FormatError if its parts are inconsistent."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

    bits = _KEY.unpack_from(raw)[0] if len(raw) >= _KEY.size else 0
    if bits not in ALGORITHMS or len(raw) != _KEY.size + bits // 4:
        raise FormatError("not a public key in AVB's form")
    try:
        key = RSAPublicNumbers(65537, int.from_bytes(raw[_KEY.size : _KEY.size + bits // 8], "big")).public_key()
    except ValueError as error:
        raise FormatError("not a public key in AVB's form") from error
    if key.key_size != bits or encode_key(key, name) != raw:
        raise FormatError("not a public key in AVB's form")
    return PublicKey(name, key)


def parse_footer(raw: bytes, size: int) -> Footer | None:
    """The footer in the last 64 bytes of a partition of `size` bytes; None if there is none.

    Raises FormatError if it points outside the partition.
    """
    if len(raw) != FOOTER_SIZE or raw[:4] != FOOTER_MAGIC:
        return None
    _, major, _, original, offset, length = _FOOTER.unpack(raw)
    if major != 1 or length > SIZE_MAX or offset + length > size - FOOTER_SIZE or original > offset:
        raise FormatError("the AVB footer points outside the partition", where=f"offset {size - FOOTER_SIZE:#x}")
    return Footer(original, offset, length)


def _check_chains(meta: VBMeta) -> None:
    used = {meta.rollback_index_location}
    for chain in (d for d in meta.descriptors if isinstance(d, Chain)):
        if chain.rollback_index_location < 1 or chain.rollback_index_location in used:
            raise ErofsEdgeError(
                f"rollback index location {chain.rollback_index_location} of '{chain.partition}' is taken or below 1"
            )
        used.add(chain.rollback_index_location)


def pack_descriptor(descriptor: Descriptor) -> bytes:
    """A descriptor as stored in the auxiliary block: type and size first, padded to 8 bytes."""
    body = _fill(descriptor.pack(), 8)
    return _DESCRIPTOR.pack(descriptor.TAG, len(body)) + body


def _fill(data: bytes, align: int) -> bytes:
    return data + bytes(-len(data) % align)


def _cut(block: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(block):
        raise FormatError("a part of the vbmeta image lies outside its block")
    return block[offset : offset + size]


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError("text in the vbmeta image is not UTF-8") from error


def _parse_all(raw: bytes) -> list[Descriptor]:
    """All descriptors except those of unknown types, which libavb ignores too."""
    found, position = [], 0
    while position < len(raw):
        if position + _DESCRIPTOR.size > len(raw):
            raise FormatError("an AVB descriptor is cut short")
        tag, size = _DESCRIPTOR.unpack_from(raw, position)
        position += _DESCRIPTOR.size
        if size % 8 or position + size > len(raw):
            raise FormatError("an AVB descriptor leaves its block")
        if tag < len(_PARSERS):
            found.append(_PARSERS[tag](raw[position : position + size]))
        position += size
    return found


def _parts(body: bytes, head: int, *sizes: int) -> list[bytes]:
    """Split off pieces of the given sizes that follow `head` bytes and fill the body, except up to 7 bytes at its
    end.
    """
    end = head + sum(sizes)
    if end > len(body) or len(body) - end > 7 or any(body[end:]):
        raise FormatError("an AVB descriptor's sizes do not add up")
    pieces = []
    for size in sizes:
        pieces.append(body[head : head + size])
        head += size
    return pieces


def _head(layout: Struct, body: bytes) -> tuple[Any, ...]:
    if len(body) < layout.size:
        raise FormatError("an AVB descriptor is cut short")
    return layout.unpack_from(body)


def _property(body: bytes) -> Property:
    key_size, value_size = _head(_PROPERTY, body)
    key, zero, value, end = _parts(body, _PROPERTY.size, key_size, 1, value_size, 1)
    if zero + end != b"\0\0":
        raise FormatError("an AVB property does not end with zero")
    return Property(_text(key), value)


def _hashtree(body: bytes) -> Hashtree:
    (version, image, offset, size, data_block, hash_block, roots, fec_offset, fec_size, name, *lengths, flags) = _head(
        _HASHTREE, body
    )
    partition, salt, root = _parts(body, _HASHTREE.size, *lengths)
    algorithm = _algorithm(name, root)
    if version != 1:
        raise FormatError(f"dm-verity of version {version}")
    return Hashtree(
        _text(partition), image, offset, size, root, salt, algorithm, data_block, hash_block, roots, fec_offset,
        fec_size, flags,
    )  # fmt: skip


def _hash(body: bytes) -> Hash:
    image, name, *lengths, flags = _head(_HASH, body)
    partition, salt, digest = _parts(body, _HASH.size, *lengths)
    return Hash(_text(partition), image, digest, salt, _algorithm(name, digest), flags)


def _cmdline(body: bytes) -> Cmdline:
    flags, size = _head(_CMDLINE, body)
    (text,) = _parts(body, _CMDLINE.size, size)
    return Cmdline(_text(text), flags)


def _chain(body: bytes) -> Chain:
    location, *lengths, flags = _head(_CHAIN, body)
    partition, key = _parts(body, _CHAIN.size, *lengths)
    return Chain(_text(partition), location, key, flags)


def _algorithm(name: bytes, digest: bytes) -> str:
    algorithm = _text(name.rstrip(b"\0"))
    if DIGESTS.get(algorithm) != len(digest):
        raise FormatError(f"unknown hash algorithm {algorithm[:40]!r}, or a digest of another length")
    return algorithm


_PARSERS: tuple[Callable[[bytes], Descriptor], ...] = (_property, _hashtree, _hash, _cmdline, _chain)
