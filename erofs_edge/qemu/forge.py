# SPDX-License-Identifier: Apache-2.0
"""The bytes of damage and forgeries: what an attacker, a cut cable or worn flash writes to a disk.

Each function gets a partition and returns what to write to it. Forgeries are as good as possible without the private
key: hashes and hash trees are recomputed, and only what a key has signed cannot be.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from erofs_edge.boot.contents import LZ4_LEGACY_MAGIC
from erofs_edge.boot.fdt import HEADER, PROP, PROP_HEAD_SIZE, DeviceTree, Node, parse, string, tags, write
from erofs_edge.boot.fit import signed_bytes, signed_nodes
from erofs_edge.boot.fit_paths import CONFIGURATION_PATH, SIGNATURE_PATH
from erofs_edge.boot.initramfs import compress
from erofs_edge.disk import rollback
from erofs_edge.erofs.extents import Kind
from erofs_edge.erofs.ondisk import SUPER_OFFSET
from erofs_edge.erofs.read import Image
from erofs_edge.errors import FormatError
from erofs_edge.manifest.model import Board
from erofs_edge.verity import superblock
from erofs_edge.verity.fec import new_layout
from erofs_edge.verity.superblock import Superblock
from erofs_edge.writing import scratch_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

MASK = 0x20
"""the bit that is flipped"""
BLOCKS_OFFSET, BITS_OFFSET = SUPER_OFFSET + 36, SUPER_OFFSET + 12
"""of the EROFS superblock's number of blocks (u32) and logarithm of the block size (u8)"""
EXTRA = "systemd.mask=edge-report.service"


@dataclass(frozen=True, slots=True)
class Change:
    """`data` is written at byte `offset` of the partition; `what` describes it in a phrase."""

    offset: int
    data: bytes
    what: str


@dataclass(frozen=True, slots=True)
class Target:
    """A partition: read(offset, length) in bytes returns what is there, nothing from beyond its end."""

    board: Board
    read: Callable[[int, int], bytes]


def nothing(target: Target) -> list[Change]:
    """The disk stays as it is."""
    del target
    return []


def flipped(target: Target, place: int) -> list[Change]:
    """Flip one bit of the byte at `place`."""
    return [Change(place, bytes([target.read(place, 1)[0] ^ MASK]), f"byte {place:#x}")]


# The FIT


def in_image(name: str) -> Callable[[Target], list[Change]]:
    """Flip a bit in the middle of an image's data."""

    def change(target: Target) -> list[Change]:
        return flipped(target, _middle(target, f"/images/{name}", "data"))

    return change


def in_signature(target: Target) -> list[Change]:
    """Flip a bit in the middle of the signature."""
    return flipped(target, _middle(target, SIGNATURE_PATH, "value"))


def unsigned(target: Target) -> list[Change]:
    """Remove the signature node."""
    tree = parse(_fit(target))
    _node(tree, CONFIGURATION_PATH).children.pop("signature-1", None)
    return [Change(0, write(tree), "the signature")]


def other_key(target: Target) -> list[Change]:
    """Sign properly, with a key of the same name as the right one."""
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

    size = len(_node(parse(_fit(target)), SIGNATURE_PATH).props["value"])
    return resigned(target, generate_private_key(65537, 8 * size))


def resigned(target: Target, key: RSAPrivateKey) -> list[Change]:
    """The same FIT signed by `key`, which must have the size of the right one."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    tree = parse(_fit(target))
    props = _node(tree, SIGNATURE_PATH).props
    images = [name for name in _node(tree, CONFIGURATION_PATH).props if name != "description"]
    covered = signed_bytes(write(tree), signed_nodes(images), int.from_bytes(props["hashed-strings"][4:8], "big"))
    props["value"] = key.sign(covered, PKCS1v15(), SHA256())
    return [Change(0, write(tree), "the signature")]


def root_hash(target: Target) -> list[Change]:
    """The initramfs accepts another system; its hash in the FIT is corrected."""
    tree = parse(_fit(target))
    archive = unpack_lz4(_node(tree, "/images/ramdisk").props["data"])
    found = re.search(rb"ROOT_HASH='([0-9a-f]{64})'", archive)
    if found is None:
        raise FormatError("the initramfs names no root hash")
    forged = archive.replace(found[1], sha256(found[1]).hexdigest().encode())
    _replace_image(tree, "ramdisk", compress(forged))
    return [Change(0, write(tree), "the root hash in the initramfs")]


def device_tree(target: Target) -> list[Change]:
    """Change the device tree of the FIT; if there is none, add one of the attacker's."""
    tree = parse(_fit(target))
    images = _node(tree, "/images").children
    if "fdt" in images:
        data = bytearray(images["fdt"].props["data"])
        data[len(data) // 2] ^= MASK
        _replace_image(tree, "fdt", bytes(data))
        return [Change(0, write(tree), "the device tree")]
    data = bytearray(write(DeviceTree(Node({"model": string("forged")}))))
    ramdisk = images["ramdisk"]
    # before the kernel, which runs in place and comes last
    kernel = images.pop("kernel")
    images["fdt"] = Node(
        {**ramdisk.props, "type": string("flat_dt"), "description": string("forged")},
        {"hash-1": Node(dict(ramdisk.children["hash-1"].props))},
    )
    images["kernel"] = kernel
    _replace_image(tree, "fdt", bytes(data))
    _node(tree, CONFIGURATION_PATH).props["fdt"] = string("fdt")
    return [Change(0, write(tree), "a device tree slipped in")]


def truncated(target: Target) -> list[Change]:
    """Zeros from the middle on, as if a write to a blank disk had been interrupted."""
    size = len(_fit(target))
    return [Change(size // 2, bytes(size - size // 2), f"from byte {size // 2:#x} on")]


def add_argument(script: str) -> str:
    """The boot script with another argument for the kernel."""
    return script.replace('setenv bootargs "', f'setenv bootargs "{EXTRA} ')


def _fit(target: Target) -> bytes:
    return target.read(0, HEADER.unpack(target.read(0, HEADER.size))[1])


def _middle(target: Target, path: str, name: str) -> int:
    """The byte in the middle of a property's value. Raises FormatError if it does not exist."""
    for tag in tags(_fit(target)):
        if tag.kind == PROP and tag.path == path and tag.name == name:
            return tag.start + PROP_HEAD_SIZE + len(tag.value) // 2
    raise FormatError(f"the FIT has no {path}/{name}")


def _node(tree: DeviceTree, path: str) -> Node:
    node = tree.root.at(path)
    if node is None:
        raise FormatError(f"the FIT has no {path}")
    return node


def _replace_image(tree: DeviceTree, name: str, data: bytes) -> None:
    node = _node(tree, f"/images/{name}")
    node.props["data"] = data
    node.children["hash-1"].props["value"] = sha256(data).digest()


def unpack_lz4(packed: bytes) -> bytes:
    """Unpack what `boot.initramfs.compress` made. Raises FormatError on anything else."""
    import lz4.block

    if len(packed) < 4 or struct.unpack_from("<I", packed)[0] != LZ4_LEGACY_MAGIC:
        raise FormatError("the initramfs is not in LZ4's legacy frame")
    pieces, at = [], 4
    while at + 4 <= len(packed):
        (size,) = struct.unpack_from("<I", packed, at)
        try:
            pieces.append(lz4.block.decompress(packed[at + 4 : at + 4 + size], uncompressed_size=8 << 20))
        except lz4.block.LZ4BlockError as error:
            raise FormatError("the initramfs is damaged", where=f"offset {at:#x}") from error
        at += 4 + size
    return b"".join(pieces)


# The slot state


def raise_minimum(target: Target) -> list[Change]:
    """As if a newer version had been running and had been marked good."""
    minimum = target.board.sign.rollback_index + 1
    record = rollback.encode(minimum)
    return [Change(at, record, f"minimum version {minimum} at byte {at:#x}") for at in rollback.OFFSETS]


def trust_any_version(script: str) -> str:
    """The boot script without its version check."""
    return script.replace(f"then setenv ee_min ${{{rollback.NAME}}}; fi", "then true; fi")


# The system


def in_first_block(target: Target) -> list[Change]:
    """Flip a bit of byte 0. The superblock at 1024 is in the same verity block, so every boot reads it; EROFS itself
    neither uses nor checks the first 1024 bytes (kernel fs/erofs/super.c), so only dm-verity can detect it."""
    return [*flipped(target, 0), *_no_parity(target)]


def in_superblock(target: Target) -> list[Change]:
    """Flip a bit of EROFS's magic number."""
    return [*flipped(target, SUPER_OFFSET), *_no_parity(target)]


def in_hash_tree(target: Target) -> list[Change]:
    """Flip a bit in the topmost block of the tree, which every read depends on."""
    sb, at = verity_area(target)
    return [*flipped(target, sb.start_block(at) * sb.hash_block_size), *_no_parity(target)]


def in_init(target: Target) -> list[Change]:
    """Flip a bit in the first block of /sbin/init."""
    return in_file("/sbin/init")(target)


def in_file(name: str) -> Callable[[Target], list[Change]]:
    """Flip a bit in the first block of a file of the system. Raises FormatError if it has no block of its own."""

    def change(target: Target) -> list[Change]:
        return [*flipped(target, _place_of(target, name)), *_no_parity(target)]

    return change


def repairable(target: Target) -> list[Change]:
    """Flip a bit in the first block, and destroy the whole first block of /sbin/init: every boot reads both. Not the
    hash tree: to repair one of its blocks the kernel must verify others, and meets the same block again (see
    docs/verity.md)."""
    sb, _ = verity_area(target)
    init, size = _place_of(target, "/sbin/init"), sb.data_block_size
    return [*flipped(target, 0), Change(init // size * size, bytes(size), f"the block at byte {init:#x}")]


def other_system(target: Target) -> list[Change]:
    """A consistent system, tree included, but not the one that the FIT was built for."""
    sb, at = verity_area(target)
    block = bytearray(target.read(0, sb.data_block_size))
    block[0] ^= MASK
    changes = [Change(0, bytes(block), "another system")]
    for level in sb.levels(at):
        state = sb.salted()
        state.update(block)
        place = level.start * sb.hash_block_size
        block = bytearray(target.read(place, sb.hash_block_size))
        block[: sb.digest_size] = state.digest()
        changes.append(Change(place, bytes(block), f"its hash tree at byte {place:#x}"))
    return [*changes, *_no_parity(target)]


def verity_area(target: Target) -> tuple[Superblock, int]:
    """The verity superblock after the EROFS image, and its byte offset. Raises FormatError if there is none."""
    (blocks,) = struct.unpack("<I", target.read(BLOCKS_OFFSET, 4))
    end = blocks << target.read(BITS_OFFSET, 1)[0]
    return superblock.parse(target.read(end, superblock.SIZE), end), end


def _no_parity(target: Target) -> list[Change]:
    """Error correction would undo damage, so an attacker wipes the parity as well."""
    if not (roots := target.board.verity.fec_roots):
        return []
    sb, at = verity_area(target)
    layout = new_layout(sb, at, sb.end(at), roots, sb.end(at))
    return [Change(layout.offset, bytes(layout.parity_size), f"parity at byte {layout.offset:#x}")]


def _place_of(target: Target, name: str) -> int:
    """The byte offset in the partition at which a file's content starts. Raises FormatError if it has none."""
    _, end = verity_area(target)
    with scratch_folder("qemu") as folder:
        path = folder / "system.img"
        path.write_bytes(target.read(0, end))
        with Image(path) as image:
            for extent in image.extents(image.lookup(name)):
                if extent.kind not in (Kind.HOLE, Kind.FRAGMENT):
                    return extent.address
    raise FormatError(f"the system has no {name} with a content of its own")
