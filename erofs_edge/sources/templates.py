# SPDX-License-Identifier: Apache-2.0
"""Overlay files in which @NAME@ stands for a variable of the manifest. Nothing else is replaced, nothing is evaluated,
and an undefined name is an error: a typing mistake never reaches a device."""

from __future__ import annotations

import re
from collections.abc import Mapping

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.model import System

REFERENCE = re.compile(rb"@([A-Z][A-Z0-9_]*)@")
LARGEST = 1 << 20
"""bytes; larger files are not hand-written text"""


def variables(system: System) -> dict[str, str]:
    """What templates may name: HOSTNAME, SYSTEM, SUITE, ARCH, and the manifest's `variables`, which take precedence.

    A build for a board has added BOARD and COMPATIBLE to these.
    """
    known = {"HOSTNAME": system.hostname, "SYSTEM": system.system, "SUITE": system.suite, "ARCH": system.arch}
    return known | system.variables


def expand(text: bytes, values: Mapping[str, str], file: str) -> bytes:
    """The text with every @NAME@ replaced. Raises ManifestError at file:line:column of a name without a value."""
    if len(text) > LARGEST:
        raise ManifestError(f"a template of {len(text)} bytes, at most {LARGEST} are allowed", where=file)

    def value(found: re.Match[bytes]) -> bytes:
        name = found[1].decode()
        if name not in values:
            line = text.count(b"\n", 0, found.start()) + 1
            column = found.start() - text.rfind(b"\n", 0, found.start())
            raise ManifestError(
                f"the template names @{name}@, which has no value",
                where=f"{file}:{line}:{column}",
                hint=f"set it under `variables:`; there are: {', '.join(sorted(values))}",
            )
        return values[name].encode()

    return REFERENCE.sub(value, text)
