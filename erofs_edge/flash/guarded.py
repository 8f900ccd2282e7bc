# SPDX-License-Identifier: Apache-2.0
"""Errors for the user when a target fails: how far the work got, and how to continue."""

from __future__ import annotations

import errno
import os

from erofs_edge.errors import CapacityError, DeviceError, PartialWriteError
from erofs_edge.flash.target import Target
from erofs_edge.writing import NO_SPACE

RESUME_HINT = "run the same command with --resume (instead of --whole or --full): it keeps what is already right"
AGAIN_HINT = "run the same command again"


class Guarded:
    """Turns an OSError of the target into an error for the user; `offset` is how far the work got."""

    def __init__(self, target: Target, region: str, doing: str = "writing", *, resumes: bool = True) -> None:
        self.target, self.region, self.doing = target, region, doing
        # nothing was written yet, or the command has no --resume
        self.hint = RESUME_HINT if resumes and doing != "reading" else AGAIN_HINT
        self.offset = 0

    def __enter__(self) -> Guarded:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        where = f"{self.target.identity.path}: offset {self.offset:#x}"
        reason = error.strerror or os.strerror(error.errno or errno.EIO)
        if error.errno in NO_SPACE and self.target.identity.kind == "file":
            raise CapacityError(f"{self.doing} '{self.region}': {reason}", where=where) from error
        if error.errno in (errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM):
            raise DeviceError(
                f"{self.doing} '{self.region}': the device has disappeared", where=where, hint=self.hint
            ) from error
        raise PartialWriteError(
            f"{self.doing} '{self.region}' failed: {reason}", where=where, hint=self.hint
        ) from error
