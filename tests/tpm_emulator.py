# SPDX-License-Identifier: Apache-2.0
"""swtpm beside a machine: started, given to QEMU, and read over its own control channel when the machine is gone."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SET_DATA_CHANNEL = 0x10
"""swtpm's CMD_SET_DATAFD (swtpm_ioctls(3))"""
PCR_READ, NO_SESSIONS, SHA256 = 0x17E, 0x8001, 0x000B
"""TPM 2.0 Library, part 2: TPM_CC_PCR_Read, TPM_ST_NO_SESSIONS, TPM_ALG_SHA256"""


@contextmanager
def tpm(program: str, folder: Path) -> Iterator[Path]:
    """A TPM 2.0; the socket that QEMU's `-tpmdev emulator` takes."""
    state, path = folder / "tpm", folder / "tpm.sock"
    state.mkdir()
    # listening before it is started: nothing to wait for
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.set_inheritable(True)
        command = [program, "socket", "--tpm2", "--tpmstate", f"dir={state}"]
        command += ["--ctrl", f"type=unixio,fd={listening.fileno()}"]
        process = subprocess.Popen(command, pass_fds=[listening.fileno()])
    try:
        yield path
    finally:
        process.terminate()
        process.wait()


def machine_arguments(path: Path) -> tuple[str, ...]:
    """QEMU's arguments for a TPM behind that socket, for the machine virt."""
    return (
        "-chardev", f"socket,id=tpmc,path={path}", "-tpmdev", "emulator,id=tpm0,chardev=tpmc",
        "-device", "tpm-tis-device,tpmdev=tpm0",
    )  # fmt: skip


def read_pcrs(path: Path, numbers: tuple[int, ...]) -> dict[int, str]:
    """PCRs of the SHA-256 bank, in hex, as the machine left them."""
    found = {}
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(path))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            socket.send_fds(control, [struct.pack(">I", SET_DATA_CHANNEL)], [theirs.fileno()])
            assert control.recv(4) == bytes(4)
            for number in numbers:
                body = struct.pack(">IHB", 1, SHA256, 3) + (1 << number).to_bytes(3, "little")
                ours.sendall(struct.pack(">HII", NO_SESSIONS, 10 + len(body), PCR_READ) + body)
                answer = ours.recv(4096)
                assert struct.unpack_from(">I", answer, 6) == (0,), answer.hex()
                found[number] = answer[-32:].hex()
    return found
