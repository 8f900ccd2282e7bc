# SPDX-License-Identifier: Apache-2.0
"""A software token as tests see it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

PIN = "0815"


@dataclass(frozen=True)
class SoftToken:
    """`module` is what a pkcs11: URI names; `add` puts a PEM key in under a label."""

    module: Path
    command: list[str]

    def add(self, key: Path, label: str, number: str) -> None:
        command = [*self.command, "--import", str(key), "--token", "edge", "--label", label, "--id", number]
        subprocess.run([*command, "--pin", PIN], check=True, capture_output=True)

    def uri(self, selector: str, pin: str | None = PIN) -> str:
        end = f"&pin-value={pin}" if pin is not None else ""
        return f"pkcs11:token=edge;{selector}?module-path={self.module}{end}"
