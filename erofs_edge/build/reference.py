# SPDX-License-Identifier: Apache-2.0
"""Reference values of a build: what a verifier elsewhere compares a device's evidence with.

They are in release.json, and so under its signature.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from erofs_edge.boot.fdt import parse
from erofs_edge.trust.measure import expected_pcr11, uki_sections

UKI_SUFFIX = ".efi"


def reference_values(work: Path, root_hash: bytes) -> dict[str, Any]:
    """SHA-256, in hex, of what boots: the root hash as the kernel reports it, each image in the FIT, and PCR 11 of each
    unified kernel image in the folder by phase. Raises FormatError where one of them is malformed.
    """
    found: dict[str, Any] = {"root_hash": root_hash.hex()}
    fit = work / "boot.fit"
    if fit.exists():
        images = parse(fit.read_bytes()).root.at("/images")
        found["fit"] = {
            name: hashlib.sha256(node.props.get("data", b"")).hexdigest()
            for name, node in (images.children.items() if images else ())
        }
    ukis = {path.name: expected_pcr11(uki_sections(path.read_bytes())) for path in sorted(work.glob(f"*{UKI_SUFFIX}"))}
    if ukis:
        found["pcr11_sha256"] = ukis
    return found
