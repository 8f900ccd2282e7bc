# SPDX-License-Identifier: Apache-2.0
"""Run all benchmarks, one after the other (`make bench`). Copy their tables into docs/benchmarks.md by hand.

repair_kernel.py is left out: its emulated kernel corrects each bad block again, which takes long.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "command.py",
    "fs_build.py",
    "reader.py",
    "noise.py",
    "stable_layout.py",
    "update.py",
    "right.py",
    "diff.py",
    "nbd.py",
    "fec.py",
    "repair.py",
    "verity.py",
    "unpack.py",
    "layers.py",
    "kernel_readers.py",
    "kernel_readers_guest.py",
    "registry.py",
    "boot.py",
    "serial.py",
    "serial_emulated.py",
    "fastboot.py",
    "diskless.py",
)


def main() -> None:
    print(f"{platform.platform()}, {os.cpu_count()} processors, Python {platform.python_version()}\n", flush=True)
    for script in SCRIPTS:
        print(f"## {script}\n", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).with_name(script)), *sys.argv[1:]], check=True)
        print(flush=True)


if __name__ == "__main__":
    main()
