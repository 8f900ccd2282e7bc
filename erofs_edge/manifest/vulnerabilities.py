# SPDX-License-Identifier: Apache-2.0
"""What the maker of a system says of known vulnerabilities, in the words of VEX: part of the vocabulary of model.py.

Source: OpenVEX 0.2 (status labels and justifications).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

VulnerabilityId = Annotated[
    str,
    Meta(
        pattern=r"^[A-Z][A-Z0-9]*-[0-9A-Za-z][0-9A-Za-z-]*$",
        extra={"says": "the name of a vulnerability, as in CVE-2026-1234"},
    ),
]


class Vulnerability(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether a known vulnerability affects the system, and if not, why."""

    status: Literal["not_affected", "affected", "fixed", "under_investigation"]
    """what it means for this system"""
    justification: (
        Literal[
            "component_not_present",
            "vulnerable_code_not_present",
            "vulnerable_code_not_in_execute_path",
            "vulnerable_code_cannot_be_controlled_by_adversary",
            "inline_mitigations_already_exist",
        ]
        | None
    ) = None
    """why the system is not affected"""
    note: str = ""
    """for people"""

    @property
    def text(self) -> str:
        """Return a line such as 'not_affected: vulnerable_code_not_present, built without it'."""
        reasons = ", ".join(part for part in (self.justification, self.note) if part)
        return f"{self.status}: {reasons}" if reasons else self.status
