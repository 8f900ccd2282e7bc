# SPDX-License-Identifier: Apache-2.0
"""Forgeries for boards with UEFI firmware: the bytes to change on their EFI system partition.

As good as possible without the private key: the files keep their size and form, and whatever only a digest protects is
corrected. Every kernel image is changed alike.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from hashlib import sha256

from erofs_edge.boot.contents import init_values_of
from erofs_edge.boot.uefi import LOADER_PATH
from erofs_edge.errors import FormatError
from erofs_edge.qemu.forge import EXTRA, MASK, Change, Target
from erofs_edge.qemu.uefi import Esp
from erofs_edge.trust import pe
from erofs_edge.trust.authenticode import sign_image, unsigned
from erofs_edge.trust.certificate import self_signed
from erofs_edge.trust.key import KeySigner

Forge = Callable[[bytes], bytes]
PIECE = 12
"""digits of a root hash that occur in no other number"""


def images(forge: Forge, what: str) -> Callable[[Target], list[Change]]:
    """Replace each kernel image by the result of `forge`."""

    def change(target: Target) -> list[Change]:
        esp = Esp(target.read)
        return [
            Change(offset, data, f"{what} of {name}")
            for name, entry in esp.images().items()
            for offset, data in _joined(esp.replaced(entry, forge(esp.content(entry))))
        ]

    return change


def loader(target: Target) -> list[Change]:
    """Flip a bit in the code of systemd-boot."""
    esp = Esp(target.read)
    entry = esp.entries.get(LOADER_PATH)
    if entry is None:
        raise FormatError("the EFI system partition has no such file", where=LOADER_PATH)
    changes = _joined(esp.replaced(entry, in_section(".text")(esp.content(entry))))
    return [Change(offset, data, "systemd-boot") for offset, data in changes]


def _joined(changes: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Join adjacent changes."""
    done: list[tuple[int, list[bytes]]] = []
    end = -1
    for offset, data in changes:
        if offset == end:
            done[-1][1].append(data)
        else:
            done.append((offset, [data]))
        end = offset + len(data)
    return [(offset, b"".join(pieces)) for offset, pieces in done]


def in_section(name: str) -> Forge:
    """Flip a bit in the middle of a section."""

    def forge(image: bytes) -> bytes:
        section = _section(image, name)
        done = bytearray(image)
        done[section.offset + section.size // 2] ^= MASK
        return bytes(done)

    return forge


def in_signature(image: bytes) -> bytes:
    """Flip a bit near the end of the signature."""
    start, size = pe.parse(image).certificates
    done = bytearray(image)
    done[start + size - 32] ^= MASK
    return bytes(done)


def add_argument(image: bytes) -> bytes:
    """Another argument for the kernel, in the spare room of the section."""
    parsed, section = pe.parse(image), _section(image, ".cmdline")
    text = image[section.offset : section.offset + section.size] + f" {EXTRA}".encode()
    if len(text) > section.stored:
        raise FormatError("no room for one more argument")
    done = bytearray(image)
    done[section.offset : section.offset + len(text)] = text
    header = parsed.table + pe.SECTION_SIZE * parsed.sections.index(section)
    struct.pack_into("<I", done, header + 8, len(text))
    return bytes(done)


def root_hash(image: bytes) -> bytes:
    """The initramfs accepts another system. Most of the hash is literal in LZ4's stream; a few of its digits may happen
    to equal those of another number, and are stored as a copy then."""
    initramfs = pe.section_content(image, _section(image, ".initrd"))
    old = init_values_of(initramfs)["ROOT_HASH"].encode()
    piece = standing(old, initramfs, image)
    return image.replace(old[piece], sha256(old).hexdigest().encode()[piece])


def standing(text: bytes, *streams: bytes) -> slice:
    """The longest piece of a text that occurs in each of these exactly once. Raises FormatError for less than PIECE
    bytes.
    """
    for length in range(len(text), PIECE - 1, -1):
        for start in range(len(text) - length + 1):
            piece = slice(start, start + length)
            if all(stream.count(text[piece]) == 1 for stream in streams):
                return piece
    raise FormatError("the root hash is not found in the initramfs as it is")


def without_signature(image: bytes) -> bytes:
    """Remove the signature; zeros keep the size."""
    return unsigned(image).ljust(len(image), b"\0")


def other_key(image: bytes) -> bytes:
    """Sign properly, with a key of the same name as the right one."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
    from cryptography.hazmat.primitives.serialization import pkcs7

    start, _ = pe.parse(image).certificates
    blob = image[start + 8 :]
    (theirs,) = pkcs7.load_der_pkcs7_certificates(blob[: 4 + int.from_bytes(blob[2:4], "big")])
    name = str(theirs.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
    marked = bool(theirs.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME))
    key = generate_private_key(65537, getattr(theirs.public_key(), "key_size", 2048))
    return resigned(image, KeySigner(name, key, marked), int(theirs.not_valid_before_utc.timestamp()))


def resigned(image: bytes, signer: KeySigner, epoch: int) -> bytes:
    """The same image signed by a key of the right one's size and name."""
    return sign_image(image, signer, self_signed(signer, epoch))


def cut_off(image: bytes) -> bytes:
    """Zeros from the middle on, as if a write to a blank disk had been interrupted."""
    return image[: len(image) // 2].ljust(len(image), b"\0")


def _section(image: bytes, name: str) -> pe.Section:
    section = pe.parse(image).section(name)
    if section is None:
        raise FormatError(f"the image has no section {name}")
    return section
