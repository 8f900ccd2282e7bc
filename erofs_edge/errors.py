# SPDX-License-Identifier: Apache-2.0
"""The one exception tree, and the exit code that each branch of it means.

A message says what failed; `where` says where (``boards/x.yaml:14:9`` for manifests, ``offset 0x4a0`` for
formats); `hint` is the next step. The command line prints these three and nothing else: no traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class ErofsEdgeError(Exception):
    """Anything that the user can be told about and act on. Exit code 1 unless a subclass says otherwise."""

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UsageError(ErofsEdgeError):
    """The command line itself makes no sense."""

    exit_code = 2


class ManifestError(ErofsEdgeError):
    """A board, a manifest or a lock file is wrong; `where` is ``file:line:column``."""

    exit_code = 3


class SourceError(ErofsEdgeError):
    """An input (deb, tar, directory, mirror) cannot be read or is malformed."""


class MirrorError(SourceError):
    """A package mirror cannot be reached or no longer has what a lock names."""


class PackagesGoneError(MirrorError):
    """The mirror no longer has these packages: `packages` names all of them, as 'name version'."""

    def __init__(self, packages: Sequence[str], *, where: str | None = None, hint: str | None = None) -> None:
        plural = "s" if len(packages) > 1 else ""
        super().__init__(
            f"the mirror no longer has {len(packages)} package{plural} of the lock: {', '.join(packages)}",
            where=where,
            hint=hint,
        )
        self.packages = tuple(packages)


class FormatError(ErofsEdgeError):
    """Bytes of an on-disk format break its rules; `where` names the offset in bytes."""


class ErofsFormatError(FormatError):
    """An EROFS image breaks the format."""


class CapacityError(ErofsEdgeError):
    """Content does not fit: a partition, a disk or the host's free space is too small."""


class VerificationError(ErofsEdgeError):
    """A hash, a hash tree or a signature does not match."""

    exit_code = 4


class ReproducibilityError(ErofsEdgeError):
    """Two builds of the same inputs differ."""

    exit_code = 5


class DeviceError(ErofsEdgeError):
    """A device is missing or was lost."""

    exit_code = 6


class ProtocolError(DeviceError):
    """The other side of a connection breaks the rules of its protocol."""


class DeviceRefusedError(ErofsEdgeError):
    """A device (or we, on its behalf: mounted, system disk) refuses the operation."""

    exit_code = 7


class PartialWriteError(ErofsEdgeError):
    """A write stopped in between and can be resumed."""

    exit_code = 8


class BootCheckError(ErofsEdgeError):
    """A machine did not reach the stage that was asked for."""

    exit_code = 9


class ToolError(ErofsEdgeError):
    """A program that is needed (QEMU, apt) is missing, too old or failed."""


def place_within(error: ErofsEdgeError, file: Path | str) -> None:
    """Say which file an error is about: its `where`, an offset, stands behind the name from now on."""
    error.where = f"{file}: {error.where}" if error.where else str(file)
