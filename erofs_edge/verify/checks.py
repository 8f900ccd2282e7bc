# SPDX-License-Identifier: Apache-2.0
"""One row of the verdict for each thing that was checked against something; a row that fails does not end the walk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from erofs_edge.errors import ErofsEdgeError


@dataclass(slots=True)
class Check:
    """What was checked, against what, the digest that both have, and what was wrong with it (None: nothing)."""

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
    """All checks, in the order in which they were made. A walk that checked nothing has proved nothing."""

    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.ok]

    @contextmanager
    def check(self, what: str, against: str, digest: str | None = None) -> Iterator[Check]:
        """A check; an ErofsEdgeError inside is its failure, and is told in its row."""
        row = Check(what, against, digest)
        self.checks.append(row)
        try:
            yield row
        except ErofsEdgeError as error:
            row.error, row.hint = str(error), error.hint
        except OSError as error:
            row.error = f"cannot read: {error.strerror}"
