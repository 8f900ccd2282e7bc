# SPDX-License-Identifier: Apache-2.0
"""Verify what a path names: an output folder, a disk, a FIT, an EFI program, a vbmeta, a system image, or a record."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from erofs_edge.boot.fdt import MAGIC as FDT_MAGIC
from erofs_edge.build.record import RELEASE, read_release
from erofs_edge.build.signing import ROOT_HASH_SIGNATURE, VERITY_SIGNATURE
from erofs_edge.errors import ErofsEdgeError, UsageError, VerificationError
from erofs_edge.positions import READ
from erofs_edge.trust import avb
from erofs_edge.trust.authenticode import verify_image
from erofs_edge.trust.key import VerificationKey
from erofs_edge.trust.root_hash import parse_verity_signature, verify_detached, verify_root_hash
from erofs_edge.trust.sigstore import BUNDLE, BUNDLE_MAX, Policy, check_bundle
from erofs_edge.verify.checks import Verdict
from erofs_edge.verify.disk import (
    find_table,
    footer_vbmeta,
    verify_disk,
    verify_fit_alone,
    verify_vbmeta_slot,
)
from erofs_edge.verify.esp import FILE_MAX
from erofs_edge.verify.output import verify_output
from erofs_edge.verify.system import check_file_system, check_tree, find_tree
from erofs_edge.verify.walk import Part, Walk
from erofs_edge.verity.blocks import Source, file_size, read_exactly
from erofs_edge.verity.check import read_superblock
from erofs_edge.verity.source import Kept, Place, Section
from erofs_edge.verity.tree import root_hash as compute

SIGNATURE_MAX = 4 << 20


def verify_path(
    path: Place,
    key: VerificationKey,
    *,
    name: str | None = None,
    signature: Path | None = None,
    jobs: int | None = None,
    policy: Policy | None = None,
) -> Verdict:
    """Verify everything at a path, or in what an export reads, with a public key.

    name       what messages call it (default: the last part of the path)
    signature  a signature file to use instead of the one found beside the path: of a system image's root hash (PKCS#7
               or JSON), or of a record
    policy     who must have signed the Sigstore bundle over a build's record, checked in addition to the key

    Raises ErofsEdgeError only if the path cannot be read, and UsageError if `signature` is given for something that
    contains its own. Anything that fails verification is reported in the verdict.
    """
    verdict = Verdict()
    if not isinstance(path, Path):
        with Kept(path) as kept:
            _verify_file(kept, name or "export", None, key, verdict, signature, jobs)
        return verdict
    if policy is not None:
        _check_sigstore(path, policy, verdict)
    if path.is_dir():
        _refuse(signature, "the folder of a build")
        if (image := _image_of_extension(path)) is None:
            verify_output(path, key, verdict, jobs=jobs)
            return verdict
        path = image
    fd = os.open(path, READ)
    try:
        _verify_file(fd, name or path.name, path, key, verdict, signature, jobs)
    finally:
        os.close(fd)
    return verdict


def _image_of_extension(out: Path) -> Path | None:
    """The image in the output folder of a sysext, confext, portable service or app: it contains its own signature, and
    the record beside it adds nothing. None if the folder is not one of these."""
    with suppress(ErofsEdgeError):
        record = read_release(out)
        if "kind" in record and "board" not in record:
            image = out / f"{Path(str(record.get('name'))).name}.raw"
            return image if image.is_file() else None
    return None


def _verify_file(
    fd: Source,
    name: str,
    path: Path | None,
    key: VerificationKey,
    verdict: Verdict,
    signature: Path | None,
    jobs: int | None,
) -> None:
    """Verify one file. `path` is None if it is not a file of this machine: it then has nothing beside it and is no
    record.
    """
    walk = Walk(fd, key, verdict, jobs)
    whole = Part(name, 0, file_size(fd))
    magic = read_exactly(fd, 4, 0)
    if magic == FDT_MAGIC.to_bytes(4, "big"):
        _refuse(signature, "a FIT")
        verify_fit_alone(walk, whole)
    elif magic[:2] == b"MZ":
        _refuse(signature, "a kernel image")
        with verdict.check(name, f"key '{key.name}'") as row:
            row.digest = verify_image(walk.read(whole, 0, FILE_MAX), key).hex()
    elif magic == avb.MAGIC:
        _refuse(signature, "a vbmeta")
        verify_vbmeta_slot(walk, whole, [], read_exactly(fd, avb.SIZE_MAX, 0))
    elif path is not None and path.name.endswith(".json"):
        with verdict.check(path.name, f"key '{key.name}'") as row:
            raw = path.read_bytes()
            row.digest = hashlib.sha256(raw).hexdigest()
            found = signature or _beside(path, path.name + ".p7s")
            if found is None:
                raise VerificationError(
                    "no signature beside it", hint=f"name it with --signature FILE; expected is {path.name}.p7s"
                )
            verify_detached(_read(found), raw, key)
    else:
        with verdict.check(name, "a partition table") as row:
            table = find_table(fd, whole.size)
            if table is not None:
                row.against = f"a partition table of {len(table.partitions)} partitions"
        if row.ok and table is None:
            verdict.checks.clear()
            _verify_partition(walk, path, whole, signature)
        elif row.ok and table is not None:
            _refuse(signature, "a disk")
            verify_disk(fd, table, walk)


def _refuse(signature: Path | None, what: str) -> None:
    """Raises UsageError if a signature was named that nothing would check."""
    if signature is not None:
        raise UsageError(
            f"{what} has its signatures inside: --signature does not apply", where=str(signature),
            hint="--signature is for a system image with its hash tree, or a release.json",
        )  # fmt: skip


def _check_sigstore(path: Path, policy: Policy, verdict: Verdict) -> None:
    """Check the bundle beside the record in a folder, or beside a record."""
    record = path / RELEASE if path.is_dir() else path
    bundle = record.with_name(record.name + BUNDLE)
    with verdict.check(bundle.name, f"{policy.identity}, {policy.issuer}") as row:
        if not bundle.is_file():
            raise VerificationError(
                "no Sigstore bundle", hint=f"of {RELEASE} in a build's folder: {RELEASE}{BUNDLE} beside it"
            )
        with bundle.open("rb") as handle:
            seen = check_bundle(handle.read(BUNDLE_MAX + 1), record.read_bytes(), policy)
        row.against += f", entry {seen.index} of the log, {seen.time:%Y-%m-%d %H:%M:%S} UTC"


def _verify_partition(walk: Walk, path: Path | None, whole: Part, signature: Path | None) -> None:
    """Verify a single image: with an AVB footer, or with a hash tree whose root hash is signed."""
    verdict, key = walk.verdict, walk.key
    at_end = whole.size - avb.FOOTER_SIZE
    if at_end >= 0 and walk.read(whole, at_end, 4) == avb.FOOTER_MAGIC:
        _refuse(signature, "a partition with AVB's footer")
        raw = b""
        with verdict.check(f"{whole.name}: footer", "AVB's rules"):
            raw = footer_vbmeta(walk, whole)
        if raw:
            names = [d.partition for d in _described(raw) if isinstance(d, avb.Hashtree | avb.Hash)]
            parts = [Part(name, 0, whole.size) for name in names]
            verify_vbmeta_slot(walk, whole, parts, raw)
        return
    place = path or Section(walk.fd, 0, whole.size)
    at = find_tree(place)
    with verdict.check(f"{whole.name}: root hash", f"key '{key.name}'") as row:
        if at is None:
            raise VerificationError(
                "nothing here that a signature could vouch for: no partition table, FIT, vbmeta or hash tree",
                hint="erofs-edge verify OUT, or an image that `verity format` made",
            )
        found = signature or (path and _beside_image(path))
        if found is None:
            raise VerificationError(
                "the root hash is not signed",
                hint="give its signature with --signature FILE, or sign it: erofs-edge sign IMAGE --key URI",
            )
        sb = read_superblock(place, at)
        row.against += f", {found.name}"
        if (raw := _read(found))[:1] == b"{":
            root, _, raw = parse_verity_signature(raw)
        else:
            # a PKCS#7 signature does not contain what it signs: the data is separate
            root = compute(sb, lambda offset, length: walk.read(whole, offset, length))
        row.digest = root.hex()
        verify_root_hash(raw, root, key)
    if not row.ok or at is None:
        return
    with verdict.check(f"{whole.name}: tree", "the signed root hash", root.hex()) as row:
        check_tree(walk.fd, 0, sb, sb.levels(at), root, jobs=walk.jobs)
    if row.ok:
        check_file_system(walk.fd, 0, sb.data_size, verdict, f"{whole.name}: file system", jobs=walk.jobs)


def _described(raw: bytes) -> list[avb.Descriptor]:
    try:
        return avb.parse_vbmeta(raw)[0].descriptors
    except ErofsEdgeError:
        return []  # verification will report it


def _read(path: Path) -> bytes:
    with path.open("rb") as handle:
        return handle.read(SIGNATURE_MAX)


def _beside_image(path: Path) -> Path | None:
    names = (path.name + ".p7s", path.name + ".verity-sig.json", ROOT_HASH_SIGNATURE, VERITY_SIGNATURE)
    return next((found for name in names if (found := _beside(path, name)) is not None), None)


def _beside(path: Path, name: str) -> Path | None:
    found = path.with_name(name)
    return found if found.is_file() else None
