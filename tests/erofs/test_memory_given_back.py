# SPDX-License-Identifier: Apache-2.0
"""Freed memory between blocks in use is returned to the system when a step asks for it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from erofs_edge.erofs.malloc import give_back_free_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def filled(size):
    return b"x" * size

pairs = [(filled(60_000), filled(2_000)) for _ in range(2_000)]
used = [small for _, small in pairs]
del pairs
before = resident()
give_back_free_memory()
print(before - resident(), len(used))
"""


def test_what_lies_between_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) > 50_000_000
