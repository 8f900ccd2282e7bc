# SPDX-License-Identifier: Apache-2.0
"""One row of the verdict per check; a failed row does not end the verification."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from erofs_edge.errors import ErofsEdgeError


@dataclass(slots=True)
class Check:
    """What was checked, against what, the digest common to both, and what was wrong (None: nothing)."""

    what: str
    against: str
    digest: str | None = None
    error: str | None = None
    hint: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(slots=True)
class Verdict:
    """All checks, in the order in which they were made. A verdict without checks proves nothing."""

    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.ok]

    @contextmanager
    def check(self, what: str, against: str, digest: str | None = None) -> Iterator[Check]:
        """The context of one check; an ErofsEdgeError inside is recorded as its failure."""
        row = Check(what, against, digest)
        self.checks.append(row)
        try:
            yield row
        except ErofsEdgeError as error:
            row.error, row.hint = str(error), error.hint
        except OSError as error:
            row.error = f"cannot read: {error.strerror}"
