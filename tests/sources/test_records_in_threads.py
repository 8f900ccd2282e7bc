# SPDX-License-Identifier: Apache-2.0
"""Threads that read the first records of a shape at once: in a process of its own, since what went wrong ended it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import faulthandler, sys, threading
from pathlib import Path
import msgspec
from erofs_edge.sources.cache import Cache

faulthandler.enable()
sys.setswitchinterval(1e-6)
cache = Cache(Path(sys.argv[1]))


def attempt(number):
    class Inner(msgspec.Struct, array_like=True):
        size: int
        name: str

    class Outer(msgspec.Struct, array_like=True):
        info: dict[str, bytes]
        members: list[Inner]

    record = Outer({"a": b"x"}, [Inner(1, "one")])
    cache.store_record("kind", "k" * 64, record)
    start, found = threading.Barrier(4), []

    def read():
        start.wait()
        found.append(cache.load_record("kind", "k" * 64, Outer))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [record] * 4, found


for number in range(100):
    attempt(number)
"""


def test_first_records_of_a_shape(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
