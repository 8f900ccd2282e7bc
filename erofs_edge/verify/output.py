# SPDX-License-Identifier: Apache-2.0
"""A build's output folder: the signed record, every file in it, and the disk image composed of these files."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from erofs_edge.build.record import RELEASE, read_release
from erofs_edge.build.signing import CERTIFICATE, PUBLIC_KEY, RELEASE_SIGNATURE, ROOT_HASH_SIGNATURE, VERITY_SIGNATURE
from erofs_edge.disk import gpt
from erofs_edge.disk.sparse import data_extents
from erofs_edge.errors import ErofsEdgeError, FormatError, VerificationError
from erofs_edge.positions import READ
from erofs_edge.threads import processors
from erofs_edge.trust.certificate import load_certificate
from erofs_edge.trust.dsse import SIZE_MAX, unseal
from erofs_edge.trust.key import VerificationKey, public_key_der, read_public_key
from erofs_edge.trust.root_hash import verify_detached, verify_root_hash, verify_verity_signature
from erofs_edge.trust.sigstore import BUNDLE
from erofs_edge.verify.checks import Verdict
from erofs_edge.verify.disk import find_table, verify_disk
from erofs_edge.verify.system import check_file_system, check_tree
from erofs_edge.verify.walk import Part, Walk
from erofs_edge.verity.blocks import SLICE, read_exactly
from erofs_edge.verity.superblock import Superblock

DISK = "disk.img"
SYSTEM = "system.img"
PROVENANCE = "provenance.intoto.jsonl"
"""of releases: in-toto in a DSSE envelope"""
LISTED_MAX = 1000
COMPARED = 256 << 10  # bytes at once, small enough for a processor's cache
HEAD = 4096  # bytes by which the file in a partition is recognized


def verify_output(out: Path, key: VerificationKey, verdict: Verdict, *, jobs: int | None = None) -> None:
    """Check a whole output folder with a public key."""
    record: dict[str, Any] = {}
    with verdict.check(RELEASE, f"key '{key.name}'") as row:
        raw = (out / RELEASE).read_bytes()
        row.digest = hashlib.sha256(raw).hexdigest()
        record = read_release(out)
        if not (out / RELEASE_SIGNATURE).exists():
            raise VerificationError("the release record is not signed")
        verify_detached((out / RELEASE_SIGNATURE).read_bytes(), raw, key)
    if not record:
        return
    with verdict.check(f"{PUBLIC_KEY}, {CERTIFICATE}", f"key '{key.name}'"):
        certificate = load_certificate((out / CERTIFICATE).read_bytes(), key.name)
        for found in (read_public_key(out / PUBLIC_KEY, key.name), certificate.key):
            if public_key_der(found) != public_key_der(key):
                raise VerificationError("not the public key that was given")
    try:
        root_hash = bytes.fromhex(record["system"]["root_hash"])
        files = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in record["files"].items()}
        sb = _superblock(record["system"])
        first = sb.start_block(int(record["system"]["hash_offset"]))
    except (KeyError, TypeError, ValueError, AttributeError, ErofsEdgeError) as error:
        with verdict.check(RELEASE, "what a release record holds"):
            raise FormatError(f"the release record is unusable: {error}") from None
        return
    _check_files(out, files, verdict, jobs)
    if PROVENANCE in files:
        _check_release(out, files, verdict, key)
    with verdict.check(ROOT_HASH_SIGNATURE, f"key '{key.name}'", root_hash.hex()):
        verify_root_hash((out / ROOT_HASH_SIGNATURE).read_bytes(), root_hash, key)
    with verdict.check(VERITY_SIGNATURE, f"key '{key.name}'", root_hash.hex()):
        verify_verity_signature((out / VERITY_SIGNATURE).read_bytes(), root_hash, key)
    proved = _check_system(out / SYSTEM, sb, first, root_hash, verdict, jobs)
    _check_disk(
        out, files, record, Walk(-1, key, verdict, jobs, proved=proved, tree=(sb, first, root_hash) if proved else None)
    )


def _superblock(system: dict[str, Any]) -> Superblock:
    size = int(system["block_size"])
    return Superblock(bytes(16), bytes.fromhex(system["salt"]), int(system["data_blocks"]), "sha256", size, size)


def _check_files(out: Path, files: dict[str, tuple[int, str]], verdict: Verdict, jobs: int | None) -> None:
    """Check sizes and digests; those of the disk image follow from its parts, see `_check_disk`."""

    def digest(name: str) -> tuple[int, str] | OSError:
        try:
            with (out / name).open("rb") as handle:
                return os.fstat(handle.fileno()).st_size, hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            return error

    names = [name for name in sorted(files)[:LISTED_MAX] if name != DISK and "/" not in name]
    with ThreadPoolExecutor(jobs or processors()) as pool:
        for name, found in zip(names, pool.map(digest, names), strict=True):
            with verdict.check(name, RELEASE, files[name][1]):
                if isinstance(found, OSError):
                    raise found
                if found != files[name]:
                    raise VerificationError(f"{found[0]} bytes with sha256 {found[1][:16]}…, not what the record lists")


def _check_release(out: Path, files: dict[str, tuple[int, str]], verdict: Verdict, key: VerificationKey) -> None:
    """Check that a release's provenance describes exactly the files that are there."""
    with verdict.check(f"{PROVENANCE}: statement", f"key '{key.name}'") as row:
        with (out / PROVENANCE).open("rb") as handle:
            statement = unseal(handle.read(SIZE_MAX + 1), key)
        row.against += f", {len(statement.subjects)} subjects"
        for name, sha256 in statement.subjects.items():
            if name not in files or files[name][1] != sha256:
                raise VerificationError(f"it names another {name} than {RELEASE} lists")
    known = {*files, RELEASE, RELEASE_SIGNATURE, RELEASE + BUNDLE}
    for path in sorted(out.iterdir()):
        if path.name not in known and not path.name.startswith("."):
            with verdict.check(path.name, RELEASE):
                raise VerificationError("not part of the release", hint="remove it from the folder of the release")


def _check_system(
    path: Path, sb: Superblock, first: int, root_hash: bytes, verdict: Verdict, jobs: int | None
) -> set[bytes]:
    try:
        fd = os.open(path, READ)
    except OSError:
        return set()  # the file's own row reports it
    try:
        with verdict.check(f"{SYSTEM}: tree", f"root hash of {RELEASE}", root_hash.hex()) as row:
            check_tree(fd, 0, sb, sb.levels_from(first), root_hash, jobs=jobs)
        if not row.ok:
            return set()
        check_file_system(fd, 0, sb.data_size, verdict, f"{SYSTEM}: file system", jobs=jobs)
        return {root_hash}
    finally:
        os.close(fd)


def _check_disk(out: Path, files: dict[str, tuple[int, str]], record: dict[str, Any], walk: Walk) -> None:
    """Check the disk image: its table, the contents of its partitions, and that there is nothing else."""
    if DISK not in files:
        return
    table: gpt.Table | None = None
    fd = -1
    with walk.verdict.check(DISK, "the files of this folder, byte for byte", files[DISK][1]) as row:
        walk.fd = fd = os.open(out / DISK, READ)
        size = os.fstat(fd).st_size
        table = find_table(fd, size) if size == files[DISK][0] else None
        if table is None:
            raise VerificationError(f"{size} bytes without a partition table, the record lists {files[DISK][0]}")
        held = _check_contents(out, walk, fd, table, files, record)
        # whatever is neither FIT nor system is covered by the record's signature
        walk.covered |= {name for name, file in held.items() if file not in (None, "boot.fit", SYSTEM)}
        walk.equal = {name for name, file in held.items() if file == SYSTEM}
    try:
        if row.ok and table is not None:
            verify_disk(fd, table, walk)
    finally:
        if fd >= 0:
            os.close(fd)


def _check_contents(
    out: Path, walk: Walk, fd: int, table: gpt.Table, files: dict[str, tuple[int, str]], record: dict[str, Any]
) -> dict[str, str | None]:
    """Check that each partition is where the record says, starts with one of the files or is blank, and is zero
    otherwise.

    Returns the file in each partition.
    """
    head, tail = gpt.encode(table)
    heads = {name: _head(out / name) for name, (size, _) in files.items() if name != DISK and size >= HEAD}
    position, listed = len(head), record.get("partitions")
    held: dict[str, str | None] = {}
    for p in sorted(table.partitions, key=lambda p: p.first_lba):
        part = _part(table, p)
        expected = {"start": part.start, "size": part.size, "guid": str(p.guid)}
        if not isinstance(listed, dict) or listed.get(p.name) != expected:
            raise VerificationError(f"partition '{p.name}' is not as the record lists it")
        _check_zero(fd, position, part.start)
        held[p.name] = name = _content(out, walk, part, files, heads)
        position = part.start + (files[name][0] if name else 0)
    _check_zero(fd, position, table.sectors * table.sector_size - len(tail))
    return held


def _content(
    out: Path, walk: Walk, part: Part, files: dict[str, tuple[int, str]], heads: dict[str, bytes]
) -> str | None:
    """The file that a partition starts with; None for a blank one. Raises VerificationError if it is neither.

    Bytes are compared with the file's, whose digest has its own row: that takes a fifth of the time of another digest.
    """
    start = walk.read(part, 0, HEAD)
    for name, head in heads.items():
        size = files[name][0]
        if head == start and size <= part.size and _equal(walk, part, out / name, size):
            return name
    if any(start):
        raise VerificationError(f"partition '{part.name}' holds none of the files")
    return None  # that all of it is zero is checked with the gaps between the contents


def _equal(walk: Walk, part: Part, path: Path, size: int) -> bool:
    with path.open("rb", buffering=0) as handle:
        fd = handle.fileno()
        return os.fstat(fd).st_size == size and all(
            walk.read(part, offset, min(COMPARED, size - offset))
            == read_exactly(fd, min(COMPARED, size - offset), offset)
            for offset in range(0, size, COMPARED)
        )


def _head(path: Path) -> bytes:
    """The first bytes of a file; none if it cannot be read, which its own row reports."""
    try:
        with path.open("rb") as handle:
            return handle.read(HEAD)
    except OSError:
        return b""


def _part(table: gpt.Table, p: gpt.Partition) -> Part:
    return Part(p.name, p.first_lba * table.sector_size, (p.last_lba - p.first_lba + 1) * table.sector_size)


def _check_zero(fd: int, start: int, end: int) -> None:
    """Raises VerificationError unless bytes [start, end) are all zero; holes take no time."""
    for first, last in data_extents(fd, end, start):
        for offset in range(first, last, SLICE):
            block = read_exactly(fd, min(SLICE, last - offset), offset)
            if block.count(0) != len(block):
                raise VerificationError("bytes that belong to no file", where=f"offset {offset:#x} or behind")
