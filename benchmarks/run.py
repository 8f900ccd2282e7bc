# SPDX-License-Identifier: Apache-2.0
"""Run all benchmarks, one after the other (`make bench`), which takes hours.

usage: python benchmarks/run.py [--only SCRIPT …] [--runs N] [--tree DIR] [--update DIR] [--out FOLDER] [--scratch DIR]

Copy their tables into docs/benchmarks.md by hand. A script that fails does not stop the others. All options but --only
are handed to each script. repair_kernel.py is left out: its emulated kernel corrects each bad block again, which takes
long.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from common import arguments

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
    parser = arguments(__doc__, runs=5, trees=2, board=True)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, metavar="SCRIPT", default=SCRIPTS, help="default: all")
    options = parser.parse_args()
    given = {"runs": options.runs, "tree": options.tree, "update": options.update, "out": options.out}
    given["scratch"] = options.scratch
    words = [f"--{name}={value}" for name, value in given.items() if value != parser.get_default(name)]
    print(f"{platform.platform()}, {os.cpu_count()} processors, Python {platform.python_version()}\n", flush=True)
    failed = []
    for script in options.only:
        print(f"## {script}\n", flush=True)
        if subprocess.run([sys.executable, Path(__file__).with_name(script), *words], check=False).returncode:
            failed.append(script)
        print(flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
