# SPDX-License-Identifier: Apache-2.0
"""RAUC bundles in the format `verity`: an image for each partition of a slot, all under one signature.

Sources: rauc ``docs/reference.rst`` (manifest, bundle formats) and ``src/bundle.c``: a squashfs payload; its dm-verity
hash tree, without a superblock; a CMS SignedData whose content is the manifest; its size in eight bytes, big-endian.
``src/hash_index.c``: a `block-hash-index` is the concatenated SHA-256 of each 4096 bytes of an image. With it, a device
that streams the bundle only reads blocks that neither of its slots has.
"""

from __future__ import annotations

import configparser
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erofs_edge.build.inputs import compatible as of_names
from erofs_edge.build.record import read_release
from erofs_edge.bundle.content import default_version, slot_files
from erofs_edge.bundle.squashfs import Payload, squashfs
from erofs_edge.errors import FormatError, SourceError, UsageError, VerificationError
from erofs_edge.trust.certificate import Certificate
from erofs_edge.trust.cms import SIZE_MAX, enclosed, sign_enclosed
from erofs_edge.trust.key import Signer, VerificationKey
from erofs_edge.verify.system import check_tree
from erofs_edge.verity.blocks import read_exactly
from erofs_edge.verity.superblock import Superblock
from erofs_edge.verity.tree import write_levels
from erofs_edge.writing import new_file, write_exactly

BLOCK = 4096
PAYLOAD_BLOCK = 16 << 10
"""bytes: a streaming device reads whole ones, and kernels cannot mount a payload with blocks smaller than their memory
pages, which have 4 KiB (Debian's for arm64) or 16 KiB, rarely 64 KiB"""
MANIFEST = "manifest.raucm"
INDEX = ".block-hash-index"
_COPY = 4 << 20  # bytes, whole blocks
_DIGEST = 32


@dataclass(frozen=True, slots=True)
class BundleImage:
    """An image of a bundle: bytes (whole blocks) and SHA-256 in hex of what is written to the slot."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle states about itself. `root_hash` covers the payload; `size` of the whole bundle in bytes."""

    compatible: str
    version: str
    description: str
    images: tuple[BundleImage, ...]
    root_hash: str
    size: int


@dataclass(frozen=True, slots=True)
class Label:
    """What a new bundle's manifest says about the update.

    compatible   by default `inputs.compatible` of board and system, as in the stock systems' system.conf
    version      by default `default_version`
    description  left out if empty
    """

    compatible: str | None = None
    version: str | None = None
    description: str = ""

    def words(self, record: dict[str, Any]) -> dict[str, str]:
        """The words for the build with this record. Raises UsageError for text that a manifest cannot contain."""
        words = {
            "compatible": self.compatible or of_names(str(record["board"]), str(record["system"]["name"])),
            "version": self.version or default_version(record),
        } | ({"description": self.description} if self.description else {})
        for word, value in words.items():
            if not value or not value.isprintable() or value != value.strip():
                raise UsageError(f"not a valid {word} for a bundle: {value!r}", hint="printable text on one line")
        return words


def write_bundle(
    out: Path,
    target: Path,
    signer: Signer,
    certificate: Certificate,
    label: Label = Label(),
    *,
    block_size: int = PAYLOAD_BLOCK,
) -> Bundle:
    """Write the bundle of the build in the folder `out`; the same build, key and label give the same bytes.

    block_size  of the payload in bytes; devices with larger pages need larger ones

    Raises UsageError for a board without slots or a label that a manifest cannot contain, VerificationError if a file
    does not match the build's record, SourceError if one cannot be read.
    """
    record = read_release(out)
    files = slot_files(out)
    words = label.words(record)
    sizes = {base: -(-path.stat().st_size // BLOCK) * BLOCK for base, path in files.items()}
    blank = [BundleImage(base, size, "0" * 2 * _DIGEST) for base, size in sizes.items()]
    parts = [(MANIFEST, len(_manifest(words, blank)))]
    parts += [(f"{base}.img{INDEX}", size // BLOCK * _DIGEST) for base, size in sizes.items()]
    parts += [(f"{base}.img", size) for base, size in sizes.items()]
    payload = squashfs(parts, epoch=int(record["epoch"]), block_size=block_size)
    with new_file(target, "the bundle") as new:
        images = tuple(_copy(new.fd, payload, base, path, sizes[base], record) for base, path in files.items())
        return _finish(new.fd, payload, words, images, signer, certificate)


def _copy(fd: int, payload: Payload, base: str, path: Path, size: int, record: dict[str, Any]) -> BundleImage:
    """Copy an image and its index into the payload."""
    listed = record["files"][path.name]["sha256"]
    place, told, plain, hashes = payload.places[f"{base}.img"], hashlib.sha256(), hashlib.sha256(), []
    with path.open("rb") as source:
        for at in range(0, size, _COPY):
            data = source.read(min(_COPY, size - at))
            plain.update(data)
            data = data.ljust(min(_COPY, size - at), b"\0")
            told.update(data)
            hashes += [hashlib.sha256(data[i : i + BLOCK]).digest() for i in range(0, len(data), BLOCK)]
            write_exactly(fd, data, place + at)
    if plain.hexdigest() != listed:
        raise VerificationError(
            "differs from what the build's record lists", where=str(path), hint="erofs-edge verify OUT --key PUB"
        )
    write_exactly(fd, b"".join(hashes), payload.places[f"{base}.img{INDEX}"])
    return BundleImage(base, size, told.hexdigest())


def _finish(
    fd: int,
    payload: Payload,
    words: dict[str, str],
    images: tuple[BundleImage, ...],
    signer: Signer,
    certificate: Certificate,
) -> Bundle:
    """Append the rest of the payload, the hash tree, the signature."""
    inner = _manifest(words, images)
    for at, data in ((0, payload.head), (payload.places[MANIFEST], inner), (payload.tables, payload.tail)):
        write_exactly(fd, data, at)
    os.ftruncate(fd, payload.size)
    salt = hashlib.sha256(b"erofs-edge bundle salt\0" + inner).digest()
    sb = Superblock(bytes(16), salt, payload.size // BLOCK)
    levels = sb.levels_from(sb.data_blocks)
    root = write_levels(sb, fd, fd, levels)
    tree = sum(level.count for level in levels) * BLOCK
    outer = _manifest(words, images, {"verity-hash": root.hex(), "verity-salt": salt.hex(), "verity-size": str(tree)})
    signature = sign_enclosed(outer, signer, certificate)
    end = payload.size + tree
    write_exactly(fd, signature + len(signature).to_bytes(8, "big"), end)
    size = end + len(signature) + 8
    return Bundle(words["compatible"], words["version"], words.get("description", ""), images, root.hex(), size)


def _manifest(
    words: dict[str, str],
    images: tuple[BundleImage, ...] | list[BundleImage],
    verity: dict[str, str] | None = None,
) -> bytes:
    """The text of a manifest, in GLib's key-file syntax."""
    lines = ["[update]", *(f"{word}={value}".replace("\\", "\\\\") for word, value in words.items()), ""]
    lines += ["[bundle]", "format=verity", *(f"{word}={value}" for word, value in (verity or {}).items()), ""]
    for one in images:
        lines += [f"[image.{one.name}]", f"sha256={one.sha256}", f"size={one.size}", f"filename={one.name}.img"]
        lines += ["adaptive=block-hash-index", ""]
    return "\n".join(lines).encode()


def read_bundle(path: Path, key: VerificationKey | None = None) -> Bundle:
    """What a bundle of the format `verity` states about itself; with a key, only if the key's signature covers all of
    it.

    Raises SourceError if it cannot be read, FormatError for anything else, VerificationError for another key or a
    changed payload.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
    try:
        size = os.fstat(fd).st_size
        length = int.from_bytes(read_exactly(fd, 8, max(size - 8, 0)), "big")
        if size < 8 or not 0 < length <= min(SIZE_MAX, size - 8):
            raise FormatError("not a RAUC bundle: no signature at its end", where=str(path))
        manifest = enclosed(read_exactly(fd, length, size - 8 - length), key)
        bundle, sb, tree = _parse(manifest, size, size - 8 - length)
        levels = sb.levels_from(sb.data_blocks)
        if sb.data_size + tree != size - 8 - length or tree != sum(level.count for level in levels) * BLOCK:
            raise FormatError("payload and hash tree do not fill the bundle", where=str(path))
        if key is not None:
            check_tree(fd, 0, sb, levels, bytes.fromhex(bundle.root_hash))
        return bundle
    finally:
        os.close(fd)


def _parse(manifest: bytes, size: int, end: int) -> tuple[Bundle, Superblock, int]:
    """The bundle, its hash tree and that tree's size in bytes; payload and tree have `end` bytes."""
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#",), strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(manifest.decode())
        if parser["bundle"].get("format") != "verity":
            raise FormatError("the bundle's format is not verity")
        images = tuple(
            BundleImage(name.removeprefix("image."), int(parser[name]["size"]), parser[name]["sha256"])
            for name in parser.sections()
            if name.startswith("image.")
        )
        update, bundle = parser["update"], parser["bundle"]
        tree, root, salt = int(bundle["verity-size"]), bundle["verity-hash"], bytes.fromhex(bundle["verity-salt"])
        if len(bytes.fromhex(root)) != _DIGEST or not 0 <= tree < end:
            raise ValueError("verity-hash, verity-size")
        words = [update.get(word, "") for word in ("compatible", "version", "description")]
    except (configparser.Error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise FormatError(f"not a manifest of a RAUC bundle: {' '.join(str(error).split())[:200]}") from error
    sb = Superblock(bytes(16), salt, max((end - tree) // BLOCK, 1))
    return Bundle(words[0], words[1], words[2], images, root, size), sb, tree
