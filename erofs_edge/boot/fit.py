# SPDX-License-Identifier: Apache-2.0
"""Flattened Image Trees with a signed configuration, as verified by U-Boot's ``bootm``.

Format: U-Boot doc/usage/fit/source_file_format.rst and signature.rst; the bytes covered by a signature follow
tools/image-host.c (fit_config_get_regions) and boot/fdt_region.c. Images are stored in the tree itself, so the header's
`totalsize` is the length of the whole FIT and a raw partition needs no other record of it.

A configuration signature covers the tags of the root, the configuration, its images and their hash nodes, but not the
images' data, for which the hash nodes stand; then all the strings.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from erofs_edge.boot.fdt import (
    BEGIN_NODE,
    END,
    END_NODE,
    PROP,
    PROP_HEAD_SIZE,
    DeviceTree,
    Node,
    cells,
    header,
    parse,
    string,
    tags,
    write,
)
from erofs_edge.boot.fit_paths import CONFIGURATION, CONFIGURATION_PATH, SIGNATURE_PATH
from erofs_edge.errors import ErofsEdgeError, VerificationError
from erofs_edge.trust.key import rsa_key, sign

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    from erofs_edge.trust.key import Signer, VerificationKey

NOT_SIGNED = frozenset({"data", "data-size", "data-position", "data-offset"})
"""properties of an image node that the signature does not cover: the hash nodes cover what they refer to"""
KERNEL_ALIGN = 2 << 20
"""arm64 kernels run at a multiple of 2 MiB (Documentation/arch/arm64/booting.rst)"""
KEY_BITS = (2048, 3072, 4096)
ROLLBACK_INDEX = "rollback-index"
"""property of the root: decimal number"""
FIRMWARE_DIGEST = "firmware-sha256"
"""property of the root, in hex: `signed_boot.files_digest` of the firmware partition that belongs to this build"""


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a FIT.

    kind         U-Boot's type: a `kernel_noload` runs wherever U-Boot finds room for it
    compression  the compression that U-Boot undoes; 'none' for a ramdisk, which the kernel unpacks itself
    """

    kind: Literal["kernel_noload", "ramdisk", "flat_dt"]
    data: bytes
    description: str
    compression: Literal["none", "gzip", "lz4"] = "none"


def build_fit(
    images: dict[str, Image],
    *,
    description: str,
    epoch: int,
    signer: Signer | None,
    load_address: int | None = None,
    rollback_index: int = 0,
    firmware: str = "",
) -> bytes:
    """Make a FIT with the images 'kernel', 'ramdisk' and, if given, 'fdt', in one configuration named 'conf'.

    epoch         seconds since 1970: the timestamp of the tree and of the signature
    signer        None leaves the configuration unsigned (only for tests)
    load_address  where the FIT will be in memory: an uncompressed kernel is placed so that it starts at a multiple of
                  KERNEL_ALIGN there and U-Boot can run it in place. The kernel comes last because it clears the memory
                  that follows it.
    rollback_index  the version that the boot script compares with the recorded minimum; covered by the signature
    firmware      digest of the firmware partition's files; '' if there is none

    Raises ErofsEdgeError for a key that U-Boot cannot check.
    """
    root = Node({"timestamp": cells(epoch), "description": string(description), "#address-cells": cells(1)})
    root.props[ROLLBACK_INDEX] = string(str(rollback_index))
    if firmware:
        root.props[FIRMWARE_DIGEST] = string(firmware)
    last_is_kernel = sorted(images.items(), key=lambda item: item[0] == "kernel")
    root.children["images"] = Node(children={name: _image_node(image) for name, image in last_is_kernel})
    conf = Node({"description": string(description)} | {name: string(name) for name in images})
    root.children["configurations"] = Node({"default": string(CONFIGURATION)}, {CONFIGURATION: conf})
    if signer is not None:
        conf.children["signature-1"] = _signature_node(list(images), signer, epoch)
    if load_address is not None and images["kernel"].compression == "none":
        root.props["padding"] = b""
        at = _kernel_offset(_skeleton(root)) + sum(len(image.data) + 3 & ~3 for name, image in last_is_kernel[:-1])
        root.props["padding"] = bytes(-(load_address + at) % KERNEL_ALIGN)
    if signer is not None:
        props = conf.children["signature-1"].props
        props["hashed-strings"] = cells(0, header(_skeleton(root))[8])
        props["value"] = sign(signer, signed_bytes(_skeleton(root), signed_nodes(list(images))))
    return write(DeviceTree(root))


def _kernel_offset(fit: bytes) -> int:
    """Bytes from the start of a FIT to its kernel's data, or to where that would be."""
    for tag in tags(fit):
        if tag.kind == PROP and tag.path == "/images/kernel" and tag.name == "data":
            return tag.start + PROP_HEAD_SIZE
    raise ErofsEdgeError("the FIT has no kernel")


def signed_nodes(images: list[str]) -> list[str]:
    """Paths of the nodes covered by a configuration signature, in mkimage's order."""
    nodes = ["/", CONFIGURATION_PATH]
    for name in images:
        nodes += [f"/images/{name}", f"/images/{name}/hash-1"]
    return nodes


def signed_bytes(fit: bytes | memoryview, nodes: list[str], strings_size: int | None = None) -> bytes:
    """The bytes covered by a FIT's signature: the tags of `nodes` without the images' data, and the strings. A signer
    that adds properties afterwards covers only the first `strings_size` bytes of the strings.

    Of an unlisted child of a listed node, only the begin and end tags are covered. The images' data has no influence,
    so a FIT may be signed before its data is in place. Raises FormatError.
    """
    listed = frozenset(nodes)
    words = header(fit)
    view = memoryview(fit)
    pieces: list[memoryview] = []
    for tag in tags(fit):
        path = tag.path if tag.path != "/" else ""
        if tag.kind in (BEGIN_NODE, END_NODE):
            covered = tag.path in listed or (path.rpartition("/")[0] or "/") in listed
        elif tag.kind == END:
            covered = True
        else:
            covered = tag.path in listed and tag.name not in NOT_SIGNED
        if covered:
            pieces.append(view[tag.start : tag.end])
    strings_size = words[8] if strings_size is None else min(strings_size, words[8])
    pieces.append(view[words[3] : words[3] + strings_size])
    return b"".join(pieces)


def verify_fit(fit: bytes, key: RSAPublicKey) -> Node:
    """Check one of our FITs as U-Boot does: each image's hash, then the configuration's signature. Returns its root.

    Parts that the signature does not cover must not mislead a reader: libfdt takes `kernel@1` when it looks for
    `kernel` (CVE-2021-27138; U-Boot's fdt_check_no_at), and data outside the tree takes precedence over data in it.

    Raises FormatError on a malformed tree, VerificationError if a hash or the signature does not match.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    root = parse(fit).root
    conf, signature = root.at(CONFIGURATION_PATH), root.at(SIGNATURE_PATH)
    if conf is None or signature is None or "value" not in signature.props:
        raise VerificationError("the FIT is not signed", where=CONFIGURATION_PATH)
    images = [name for name in conf.props if name != "description"]
    _check_names(root, "")
    for name in images:
        image, node = root.at(f"/images/{name}"), root.at(f"/images/{name}/hash-1")
        if image is None or node is None:
            raise VerificationError("the FIT has no such image or hash", where=f"/images/{name}")
        if elsewhere := sorted(NOT_SIGNED & image.props.keys() - {"data"}):
            raise VerificationError(f"an image must not hold '{elsewhere[0]}'", where=f"/images/{name}")
        if hashlib.sha256(image.props.get("data", b"")).digest() != node.props.get("value"):
            raise VerificationError("the image does not match its hash", where=f"/images/{name}")
    strings_size = int.from_bytes(signature.props.get("hashed-strings", b"")[4:8], "big")
    covered = signed_bytes(fit, signed_nodes(images), strings_size)
    try:
        key.verify(signature.props["value"], covered, PKCS1v15(), SHA256())
    except InvalidSignature as error:
        raise VerificationError("the signature does not match", where=SIGNATURE_PATH) from error
    return root


def _check_names(node: Node, path: str) -> None:
    for name, child in node.children.items():
        if "@" in name:
            raise VerificationError("a FIT must not hold a node with a unit address", where=f"{path}/{name}")
        _check_names(child, f"{path}/{name}")


def public_key_node(signer: VerificationKey) -> Node:
    """The key in the form that U-Boot reads from its control device tree (lib/rsa/rsa-verify.c), required for every
    FIT.

    Besides modulus and exponent it has the constants of Montgomery multiplication, which U-Boot does not compute:
    R**2 mod n with R = 2**bits, and -1/n mod 2**32.
    """
    key = rsa_key(signer, "a FIT")
    numbers, bits = key.public_numbers(), key.key_size
    return Node(
        {
            "required": string("conf"),
            "algo": string(algorithm(key)),
            "rsa,r-squared": pow(2, 2 * bits, numbers.n).to_bytes(bits // 8, "big"),
            "rsa,modulus": numbers.n.to_bytes(bits // 8, "big"),
            "rsa,exponent": numbers.e.to_bytes(8, "big"),
            "rsa,n0-inverse": cells(-pow(numbers.n, -1, 1 << 32) % (1 << 32)),
            "rsa,num-bits": cells(bits),
            "key-name-hint": string(signer.name),
        }
    )


def add_key(dtb: bytes, signer: VerificationKey) -> bytes:
    """Make a control device tree with which U-Boot refuses FITs not signed by `signer`. Raises FormatError."""
    tree = parse(dtb)
    signature = tree.root.children.setdefault("signature", Node())
    signature.children[f"key-{signer.name}"] = public_key_node(signer)
    return write(tree)


def _skeleton(root: Node) -> bytes:
    """The FIT with empty images: neither the signed bytes nor the start of the first image depend on their data."""

    def bare(node: Node) -> Node:
        props = {name: b"" if name == "data" else value for name, value in node.props.items()}
        return Node(props, {name: bare(child) for name, child in node.children.items()})

    return write(DeviceTree(bare(root)))


def _image_node(image: Image) -> Node:
    node = Node(
        {
            "description": string(image.description),
            "data": image.data,
            "type": string(image.kind),
            "arch": string("arm64"),
            "compression": string(image.compression),
        }
    )
    if image.kind != "flat_dt":
        node.props["os"] = string("linux")
    if image.kind == "kernel_noload":
        # bootm requires both; for this type they are relative to wherever the image is
        node.props |= {"load": cells(0), "entry": cells(0)}
    node.children["hash-1"] = Node({"algo": string("sha256"), "value": hashlib.sha256(image.data).digest()})
    return node


def _signature_node(images: list[str], signer: Signer, epoch: int) -> Node:
    key = rsa_key(signer, "a FIT")
    return Node(
        {
            "algo": string(algorithm(key)),
            "key-name-hint": string(signer.name),
            "sign-images": b"".join(map(string, images)),
            "value": bytes(key.key_size // 8),
            "signer-name": string("erofs-edge, development key" if signer.development else "erofs-edge"),
            "timestamp": cells(epoch),
            "hashed-nodes": b"".join(map(string, signed_nodes(images))),
            "hashed-strings": cells(0, 0),
        }
    )


def algorithm(key: RSAPublicKey) -> str:
    """U-Boot's name of the signature algorithm. Raises ErofsEdgeError for a key size that it does not support."""
    if key.key_size not in KEY_BITS or key.public_numbers().e != 65537:
        raise ErofsEdgeError(
            f"U-Boot cannot check signatures of an RSA key of {key.key_size} bits"
            f" with exponent {key.public_numbers().e}",
            hint="use an RSA-2048 key with exponent 65537",
        )
    return f"sha256,rsa{key.key_size}"
