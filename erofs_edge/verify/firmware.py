# SPDX-License-Identifier: Apache-2.0
"""A firmware partition: its files against the digest in a signed FIT, and a boot image against its own signature."""

from __future__ import annotations

from collections.abc import Mapping

from erofs_edge.boot.signed_boot import IMAGE, SIGNATURE, files_digest, verify_boot_signature
from erofs_edge.disk.fat_read import Volume
from erofs_edge.errors import FormatError, VerificationError
from erofs_edge.trust.key import VerificationKey
from erofs_edge.verify.checks import Verdict

FILES_MAX = 256 << 20
"""total bytes"""


def verify_firmware(
    name: str, volume: Volume, known: Mapping[str, str], key: VerificationKey, verdict: Verdict
) -> None:
    """Check the files of the partition `name`.

    known  digest of a firmware partition's files → the FIT with that digest, each already verified
    """
    files: dict[str, bytes] = {}
    with verdict.check(f"{name}: files", f"the FIT in {', '.join(sorted(set(known.values())))}") as row:
        total = 0
        for entry in volume.files():
            total += entry.size
            if total > FILES_MAX or entry.path in files:
                raise FormatError(f"more than {FILES_MAX} bytes of files, or two of one name", where=entry.path)
            files[entry.path] = volume.content(entry.clusters, entry.size)
        row.digest = files_digest(files)
        if row.digest not in known:
            raise VerificationError("these are not the firmware's files that the signed FIT names")
        row.against = f"the FIT in {known[row.digest]}"
    if row.ok and IMAGE in files and SIGNATURE in files:
        with verdict.check(f"{name}: {IMAGE}", f"key '{key.name}', {SIGNATURE}"):
            verify_boot_signature(files[SIGNATURE], files[IMAGE], key)
