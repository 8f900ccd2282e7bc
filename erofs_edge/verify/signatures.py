# SPDX-License-Identifier: Apache-2.0
"""Check the signatures in a disk image, and what they cover, with the key of the build in whose folder it lies."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from erofs_edge.boot.contents import init_values
from erofs_edge.boot.fdt import MAGIC as FDT_MAGIC
from erofs_edge.boot.fit import verify_fit
from erofs_edge.build.record import RELEASE, read_release
from erofs_edge.build.signing import PUBLIC_KEY, RELEASE_SIGNATURE
from erofs_edge.disk import gpt
from erofs_edge.errors import FormatError, VerificationError
from erofs_edge.trust import avb
from erofs_edge.trust.key import read_public_key, rsa_key
from erofs_edge.trust.root_hash import verify_detached
from erofs_edge.verify.checks import Verdict
from erofs_edge.verify.unsigned import HINT
from erofs_edge.verify.walk import FIT_MAX, Part, Walk, verity_of
from erofs_edge.verity.blocks import hash_blocks


def check_built(fd: int, table: gpt.Table, image: Path) -> None:
    """Check an opened disk in the folder of its build. Raises VerificationError for anything that the build's key did
    not sign or that has changed since."""
    folder, verdict = image.parent, Verdict()
    record: dict[str, Any] = {}
    key = read_public_key(folder / PUBLIC_KEY, "sign")
    with verdict.check(RELEASE, f"key '{key.name}'"):
        record = read_release(folder)
        if not (folder / RELEASE_SIGNATURE).is_file():
            raise VerificationError("the release record is not signed")
        verify_detached((folder / RELEASE_SIGNATURE).read_bytes(), (folder / RELEASE).read_bytes(), key)
    walk = Walk(fd, key, verdict)
    parts = _parts(table)
    known: tuple[bytes, dict[str, str]] = b"", {}  # both slots of a new image are equal
    for part in parts:
        magic = walk.read(part, 0, 4)
        if magic == FDT_MAGIC.to_bytes(4, "big"):
            raw = walk.read(part, 0, min(int.from_bytes(walk.read(part, 4, 4), "big"), part.size, FIT_MAX))
            if raw != known[0]:
                known = raw, _values(walk, part, raw)
            if known[1]:
                _check_system(walk, part, parts, known[1], record)
        elif magic == avb.MAGIC and part.name.startswith("vbmeta"):
            with verdict.check(f"{part.name}: vbmeta", f"key '{key.name}'"):
                avb.verify_vbmeta(walk.read(part, 0, avb.SIZE_MAX), key, 0)
        elif walk.read(part, 510, 2) == b"\x55\xaa":
            _check_esp(walk, part)
    _tell(verdict, image)


def _check_esp(walk: Walk, part: Part) -> None:
    """Check what starts with the signature of a FAT volume."""
    from erofs_edge.verify.esp import is_esp, verify_esp  # imported late: few disks have one, and it is slow to load

    read = functools.partial(walk.read, part)
    if is_esp(read, part.size):
        for _ in verify_esp(read, part.size, part.name, walk.key, walk.verdict):
            pass


def _values(walk: Walk, part: Part, fit: bytes) -> dict[str, str]:
    """The values that a FIT's initramfs boots with, once the FIT is verified; none if it is wrong."""
    with walk.verdict.check(f"{part.name}: FIT", f"key '{walk.key.name}'"):
        return init_values(verify_fit(fit, rsa_key(walk.key, "a FIT")))
    return {}


def _check_system(
    walk: Walk, part: Part, parts: list[Part], values: dict[str, str], record: dict[str, Any]
) -> None:  # fmt: skip
    """Check, by the top of its tree, that the system beside a FIT is the one that it opens."""
    with walk.verdict.check(f"{part.name}: root hash", "the release record and the top of the tree") as row:
        sb, first, root_hash = verity_of(values)
        row.digest = root_hash.hex()
        named = record.get("system")
        if not isinstance(named, dict) or named.get("root_hash") != root_hash.hex():
            raise VerificationError("the release record names another root hash")
        name = values.get("SYSTEM", "") + (f"_{part.slot}" if values.get("SLOTS") else "")
        system = next((p for p in parts if p.name == name), None)
        if system is None:
            raise FormatError(f"the initramfs of {part.name} opens '{name}', which is not there")
        levels = sb.levels_from(first)
        at = levels[-1].start if levels else 0  # a single block has no tree
        block = walk.read(system, at * sb.hash_block_size, sb.hash_block_size)
        if hash_blocks(block, sb.hash_block_size, sb)[: sb.digest_size] != root_hash:
            raise VerificationError(f"{name} is not the system that {part.name} opens")


def _parts(table: gpt.Table) -> list[Part]:
    size = table.sector_size
    return [Part(p.name, p.first_lba * size, (p.last_lba - p.first_lba + 1) * size) for p in table.partitions]


def _tell(verdict: Verdict, image: Path) -> None:
    for check in verdict.failed:
        raise VerificationError(f"{check.what}: {check.error}", where=str(image), hint=check.hint or HINT)
