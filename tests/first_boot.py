# SPDX-License-Identifier: Apache-2.0
"""One start of the stock board in real QEMU for all tests that need a good one, and its console for replaying."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erofs_edge.toolbox.emulator import find_qemu

PATIENCE = "800"
"""seconds for a start on a machine that is busy with other tests"""


@dataclass(frozen=True)
class FirstBoot:
    """The output of `boot --smoke --json`, the file with the console, and the output folder that was started."""

    record: dict[str, Any]
    console: Path
    out: Path


def boot(edge: str, repository: Path, out: Path, log: Path) -> FirstBoot:
    """Boot the build in `out`; the image must not change."""
    before = (out / "disk.img").stat()
    command = [edge, "boot", "boards/qemu-aarch64.yaml", "-o", str(out), "--smoke", "--json", "--timeout", PATIENCE]
    command += ["--log", str(log)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    console = log.read_text(errors="replace")[-6000:] if log.exists() else ""
    assert done.returncode == 0, f"{done.stderr}\n{console}"
    after = (out / "disk.img").stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
    return FirstBoot(json.loads(done.stdout), log, out)


def replay(first: FirstBoot, program: Path) -> None:
    """Write a fake QEMU that prints the first boot's console at once."""
    asked = f'case "$*" in --version | *dumpdtb=*) exec {find_qemu().program} "$@" ;; esac'
    program.write_text(f"#!/bin/sh\n{asked}\nexec cat {first.console}\n")
    program.chmod(0o755)
