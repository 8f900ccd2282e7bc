# SPDX-License-Identifier: Apache-2.0
"""Reference values of a build, with which a remote verifier compares a device's evidence.

They are part of release.json, and so covered by its signature.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from erofs_edge.boot.fdt import parse
from erofs_edge.boot.uefi import LOADER, VARIABLES
from erofs_edge.boot.uefi_vars import read_store
from erofs_edge.trust.authenticode import digest
from erofs_edge.trust.measure import expected_pcr4, expected_pcr4_direct, expected_pcr7, expected_pcr11, uki_sections

UKI_SUFFIX = ".efi"


def reference_values(work: Path, root_hash: bytes) -> dict[str, Any]:
    """SHA-256 values, in hex, of what boots: the root hash as the kernel reports it, and each image in the FIT; for
    each unified kernel image in the folder, PCR 4 (when started by the boot loader, and by QEMU) and, by phase, PCR 11;
    and PCR 7 for the keys in the folder's firmware variables.

    Raises FormatError if one of them is malformed.
    """
    found: dict[str, Any] = {"root_hash": root_hash.hex()}
    fit = work / "boot.fit"
    if fit.exists():
        images = parse(fit.read_bytes()).root.at("/images")
        found["fit"] = {
            name: hashlib.sha256(node.props.get("data", b"")).hexdigest()
            for name, node in (images.children.items() if images else ())
        }
    loader = work / LOADER
    ukis = {path.name: path.read_bytes() for path in sorted(work.glob(f"*{UKI_SUFFIX}")) if path != loader}
    if ukis:
        found["pcr11_sha256"] = {name: expected_pcr11(uki_sections(image)) for name, image in ukis.items()}
    if ukis and loader.exists():
        first = digest(loader.read_bytes())
        found["pcr4_sha256"] = {name: expected_pcr4([first, digest(image)]) for name, image in ukis.items()}
        found["pcr4_direct_sha256"] = {name: expected_pcr4_direct(digest(image)) for name, image in ukis.items()}
    if (work / VARIABLES).exists():
        keys = {variable.name: variable.data for variable in read_store((work / VARIABLES).read_bytes())}
        found["pcr7_sha256"] = expected_pcr7(keys)
    return found
