# SPDX-License-Identifier: Apache-2.0
"""The exception hierarchy, and the exit code of each branch.

A message says what failed; `where` says where (``boards/x.yaml:14:9`` for manifests, ``offset 0x4a0`` for formats);
`hint` is the next step. The command line prints these three and nothing else: no traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class ErofsEdgeError(Exception):
    """Base class of all errors meant for the user. Exit code 1 unless a subclass sets another."""

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UsageError(ErofsEdgeError):
    """The command line or the arguments are invalid."""

    exit_code = 2


class ManifestError(ErofsEdgeError):
    """A board, manifest or lock file is invalid; `where` is ``file:line:column``."""

    exit_code = 3


class SourceError(ErofsEdgeError):
    """An input (deb, tar, directory, mirror) cannot be read or is malformed."""


class MirrorError(SourceError):
    """A package mirror cannot be reached or no longer has a package named by a lock."""


class PackagesGoneError(MirrorError):
    """The mirror no longer has some packages of a lock; `packages` lists all of them as 'name version'."""

    def __init__(self, packages: Sequence[str], *, where: str | None = None, hint: str | None = None) -> None:
        plural = "s" if len(packages) > 1 else ""
        super().__init__(
            f"the mirror no longer has {len(packages)} package{plural} of the lock: {', '.join(packages)}",
            where=where,
            hint=hint,
        )
        self.packages = tuple(packages)


class FormatError(ErofsEdgeError):
    """Data violates its on-disk format; `where` is the byte offset."""


class ErofsFormatError(FormatError):
    """An EROFS image violates the format."""


class CapacityError(ErofsEdgeError):
    """Content does not fit: a partition, a disk or the host's free space is too small."""


class VerificationError(ErofsEdgeError):
    """A hash, a hash tree or a signature does not match."""

    exit_code = 4


class ReproducibilityError(ErofsEdgeError):
    """Two builds of the same inputs differ."""

    exit_code = 5


class DeviceError(ErofsEdgeError):
    """A device is missing or has disconnected."""

    exit_code = 6


class ProtocolError(DeviceError):
    """The other side of a connection violates the protocol."""


class DeviceRefusedError(ErofsEdgeError):
    """A device refuses the operation, or we refuse on its behalf (mounted, system disk)."""

    exit_code = 7


class PartialWriteError(ErofsEdgeError):
    """A write stopped halfway and can be resumed."""

    exit_code = 8


class BootCheckError(ErofsEdgeError):
    """A machine did not reach the requested stage."""

    exit_code = 9


class ToolError(ErofsEdgeError):
    """A required program (QEMU, apt) is missing, too old or has failed."""


def place_within(error: ErofsEdgeError, file: Path | str) -> None:
    """Prefix the error's `where` (an offset) with the name of the file it is about."""
    error.where = f"{file}: {error.where}" if error.where else str(file)
