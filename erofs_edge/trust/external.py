# SPDX-License-Identifier: Apache-2.0
"""`command:`: any program that takes a digest on standard input and writes a signature to standard output.

Input: the 32 bytes of a SHA-256 digest. Output: for RSA the PKCS#1 v1.5 signature, as long as the modulus; for ECDSA
the DER form. EROFS_EDGE_ALGORITHM tells the program which one ('rsa2048', …). The result is checked with the public key
before it is used.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erofs_edge.errors import ErofsEdgeError, ToolError, UsageError
from erofs_edge.trust.key import algorithm, read_public_key
from erofs_edge.trust.uri import parameters

if TYPE_CHECKING:
    from erofs_edge.trust.key import AnyPublicKey

SECONDS = 300  # someone may have to touch a token
LONGEST = 8192  # bytes of output that are read


@dataclass(frozen=True, slots=True)
class CommandSigner:
    """A key used through a program that signs."""

    name: str
    public_key: AnyPublicKey
    command: tuple[str, ...]
    development: bool = False

    def sign_digest(self, digest: bytes) -> bytes:
        shown = self.command[0]
        environment = {**os.environ, "EROFS_EDGE_ALGORITHM": algorithm(self.public_key)}
        try:
            done = subprocess.run(
                self.command, input=digest, capture_output=True, timeout=SECONDS, env=environment, check=False
            )
        except OSError as error:
            raise ToolError(f"cannot run the signer: {error.strerror}", where=shown) from error
        except subprocess.TimeoutExpired:
            raise ToolError(f"the signer gave no signature within {SECONDS} s", where=shown) from None
        if done.returncode:
            said = done.stderr[-LONGEST:].decode(errors="replace").strip().splitlines()
            raise ToolError(
                f"the signer failed with exit code {done.returncode}",
                where=shown,
                hint=said[-1][:200] if said else None,
            )
        if not 0 < len(done.stdout) <= LONGEST:
            raise ErofsEdgeError(
                f"the signer returned {len(done.stdout)} bytes, which are not a signature", where=shown
            )
        return done.stdout


def open_command(rest: str) -> CommandSigner:
    """Open the signer of `command:PROGRAM ARGUMENTS?public-key=FILE&name=NAME`. Raises UsageError, ErofsEdgeError."""
    text, query = parameters("command", rest, {"public-key", "name"})
    try:
        command = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"command: {error}") from None
    if not command or "public-key" not in query:
        raise UsageError(
            "a command: key must name a program and its public key",
            hint="command:PROGRAM ARGUMENTS?public-key=PUB.pem",
        )
    key = read_public_key(Path(query["public-key"]), query.get("name"))
    return CommandSigner(key.name, key.public_key, command)
