# SPDX-License-Identifier: Apache-2.0
"""Signed containers, damage for them, and the judgement: never accepted with other content, never another error."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from made_build import make_fit
from pe_sample import pe_file

from erofs_edge.boot.contents import init_values
from erofs_edge.boot.fdt import DeviceTree, Node, write
from erofs_edge.boot.fit import verify_fit
from erofs_edge.boot.loader import control_tree, join, split
from erofs_edge.boot.signed_boot import boot_signature, verify_boot_signature
from erofs_edge.bundle.rauc import read_bundle
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.trust import pe
from erofs_edge.trust.authenticode import sign_image, verify_image
from erofs_edge.trust.avb import (
    Chain,
    Hashtree,
    Property,
    VBMeta,
    encode_key,
    parse_vbmeta,
    verify_vbmeta,
    write_vbmeta,
)
from erofs_edge.trust.certificate import Certificate, load_certificate, self_signed
from erofs_edge.trust.cms import enclosed, sign_enclosed
from erofs_edge.trust.dsse import Statement, seal, unseal
from erofs_edge.trust.key import KeySigner
from erofs_edge.trust.root_hash import (
    parse_detached,
    parse_verity_signature,
    sign_root_hash,
    verify_root_hash,
    verity_signature_json,
)

ROOT = bytes(range(32))
Accept = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Container:
    """`accept` returns what the container says, or raises ErofsEdgeError; None where only its form is looked at."""

    name: str
    data: bytes
    accept: Accept


def containers(key: KeySigner) -> list[Container]:
    """One of each kind, by signature where there is one and by form alone."""
    public = key.key.public_key()
    assert isinstance(public, rsa.RSAPublicKey)
    certificate = self_signed(key, 5)
    tree = Hashtree("system", 8192, 8192, 4096, ROOT, b"salt")
    vbmeta = write_vbmeta(VBMeta([tree, Property("a", b"b"), Chain("boot", 1, encode_key(public, "k"))], 3), key)
    fit, signature = make_fit({"ROOT_HASH": ROOT.hex()}, key), sign_root_hash(ROOT, key, certificate)
    json_text = verity_signature_json(ROOT, key, certificate).rstrip(b"\0")
    loader = join(b"program", control_tree(write(DeviceTree(Node({"a": b"b"}))), key, "run ee_all"))
    image = b"a boot image"

    def fit_says(raw: bytes) -> object:
        verify_fit(raw, public)
        return init_values(raw)

    def json_says(raw: bytes) -> object:
        root_hash, _, found = parse_verity_signature(raw)
        verify_root_hash(found, root_hash, key)
        return root_hash

    return [
        Container("fit", fit, fit_says),
        Container("fit-form", fit, lambda raw: init_values(raw) and None),
        Container("vbmeta", vbmeta, lambda raw: verify_vbmeta(raw, key)),
        Container("vbmeta-form", vbmeta, lambda raw: parse_vbmeta(raw) and None),
        Container("pkcs7", signature, lambda raw: verify_root_hash(raw, ROOT, key)),
        Container("pkcs7-form", signature, lambda raw: parse_detached(raw) and None),
        Container("verity-signature", json_text, json_says),
        Container("certificate", certificate.der, lambda raw: load_certificate(raw, "x") and None),
        Container("boot-sig", boot_signature(image, key, 5), lambda raw: verify_boot_signature(raw, image, key)),
        Container("u-boot", loader, lambda raw: split(raw) and None),
        *_further(key, certificate),
    ]


def _further(key: KeySigner, certificate: Certificate) -> list[Container]:
    """What releases, updates and UEFI firmware read: statements, enclosed content, bundles, programs."""
    statement = Statement("urn:test:1", {"disk.img": ROOT.hex(), "boot.fit": ROOT.hex()}, {"builder": "here"})
    content = b"[update]\ncompatible=made\nversion=1\n\n[bundle]\nformat=verity\n" * 3
    program = sign_image(pe_file({".linux": b"kernel" * 99, ".cmdline": b"quiet"}), key, certificate)
    words = f"verity-hash={ROOT.hex()}\nverity-salt=aa\nverity-size=4096\n"
    manifest = f"[update]\ncompatible=made\n\n[bundle]\nformat=verity\n{words}\n[image.boot]\nsha256=0\nsize=1\n"
    signature = sign_enclosed(manifest.encode(), key, certificate)
    bundle = bytes(3 * 4096) + signature + len(signature).to_bytes(8, "big")

    def bundle_form(raw: bytes) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(raw)
            file.flush()
            read_bundle(Path(file.name))

    def program_form(raw: bytes) -> None:
        image = pe.parse(raw)
        for section in image.sections:
            pe.section_content(raw, section)

    return [
        Container("dsse", seal(statement, key), lambda raw: unseal(raw, key)),
        Container("enclosed", sign_enclosed(content, key, certificate), lambda raw: enclosed(raw, key)),
        Container("enclosed-form", sign_enclosed(content, key, certificate), lambda raw: enclosed(raw) and None),
        Container("rauc-form", bundle, bundle_form),
        Container("efi", program, lambda raw: verify_image(raw, key)),
        Container("efi-form", program, program_form),
    ]


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to four of: bits flipped, bytes of note, pieces cut out, doubled or moved, the end cut off."""
    raw = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(max(len(raw), 1)), rng.randint(1, 40)
        kind = rng.randrange(6)
        if kind == 0 and raw:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[at : at + 4] = rng.choice([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
        elif kind == 2:
            del raw[at : at + length]
        elif kind == 3:
            raw[at:at] = raw[at : at + length]
        elif kind == 4:
            raw[at : at + length] = rng.randbytes(length)
        else:
            del raw[at:]
    return bytes(raw)


def judge(container: Container, seed: int) -> tuple[bytes, str] | None:
    """One case: (the damaged container, what is wrong with how it was taken), None where nothing is."""
    broken = damage(container.data, random.Random(f"{container.name} {seed}"))
    try:
        found = container.accept(broken)
    except ErofsEdgeError:
        return None
    except Exception as error:  # the finding itself
        return broken, f"{type(error).__name__}: {error}"
    return None if found == container.accept(container.data) else (broken, "accepted with other content")
