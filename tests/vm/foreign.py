# SPDX-License-Identifier: Apache-2.0
"""Runs a command where the kernel starts programs of arm64 with an emulator, without a change to the host.

usage: python foreign.py EMULATOR COMMAND…    (as root)

A user namespace with root's own numbers, so that files get the owners that they should, and in it a binfmt_misc of its
own (Linux 6.7: Documentation/admin-guide/binfmt-misc.rst; "F" keeps the emulator open, so that it works in a chroot).
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000  # linux/sched.h
MACHINE = 183  # EM_AARCH64 of linux/elf-em.h
BINFMT = Path("/proc/sys/fs/binfmt_misc")


def registration(emulator: str) -> bytes:
    """The line for programs and shared objects, ELF of 64 bits, little endian."""
    magic = b"\x7fELF\2\1\1" + bytes(9) + (2).to_bytes(2, "little") + MACHINE.to_bytes(2, "little")
    mask = b"\xff" * 7 + b"\0" + b"\xff" * 8 + b"\xfe\xff\xff\xff"
    quoted = ("".join(f"\\x{byte:02x}" for byte in part) for part in (magic, mask))
    return f":aarch64:M::{':'.join(quoted)}:{emulator}:F".encode()


def main() -> int:
    """Run the command; its exit status."""
    emulator, *command = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    (ready_out, ready_in), (mapped_out, mapped_in) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        _checked(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
        os.write(ready_in, b"x")
        os.read(mapped_out, 1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        _checked(libc.mount(b"none", bytes(BINFMT), b"binfmt_misc", 0, None))
        (BINFMT / "register").write_bytes(registration(emulator))
        os.execvp(command[0], command)
    os.close(ready_in)
    if os.read(ready_out, 1):
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{kind}").write_text("0 0 65536")
        os.write(mapped_in, b"x")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _checked(result: int) -> None:
    if result:
        print(f"foreign: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
