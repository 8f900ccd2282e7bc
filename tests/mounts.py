# SPDX-License-Identifier: Apache-2.0
"""The kernel's mounts and loop devices in tests: gone when a test ends, and with its process, however that dies."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS, unshare(2)
_RECURSIVE, _SLAVE = 0x4000, 0x80000  # MS_REC, MS_SLAVE, mount(2)


def own_mounts() -> bool:
    """Give this thread, and all that it starts from now on, mounts of their own: the kernel takes away what they mount
    when the last of them is gone, killed or not. What others mount is still seen. Whether that could be had.

    To be called before there are other threads: they would keep the old mounts, and a working folder of their own.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    return not libc.unshare(_NEW_MOUNTS) and not libc.mount(b"none", b"/", None, _RECURSIVE | _SLAVE, None)


@contextmanager
def loop(path: Path, *options: str) -> Iterator[Path]:
    """A loop device of a file, with losetup's options.

    It is let go of at once, which the kernel does only when nobody has it open any more: we have, as long as we live.
    """
    words = ["losetup", "--find", "--show", *options, str(path)]
    device = Path(subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip())
    held = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        subprocess.run(["losetup", "--detach", str(device)], check=True)
        yield device
    finally:
        os.close(held)
