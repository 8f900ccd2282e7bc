# SPDX-License-Identifier: Apache-2.0
"""What has changed since an earlier build, small enough to be kept.

A release keeps it, for those who make its page again have no earlier release.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from erofs_edge.errors import VerificationError

SINCE = "since.json"
PATHS_MAX = 200
"""names of added and of removed paths that are kept; the numbers are of all"""


@dataclass(frozen=True, slots=True)
class Since:
    """An earlier build beside a new one.

    root_hash         of the earlier one, in hex
    files             its files → bytes
    stored, versions  packages and other origins of it → bytes in its image; packages of it → version
    added, removed    the first paths that only the new, only the earlier build has, in byte order
    added_count, removed_count  how many there are
    """

    root_hash: str
    files: dict[str, int]
    stored: dict[str, int]
    versions: dict[str, str]
    added: list[str]
    removed: list[str]
    added_count: int
    removed_count: int

    def record(self) -> dict[str, Any]:
        """The value of since.json."""
        return asdict(self)


_MAPS = {"files": int, "stored": int, "versions": str}
_LISTS = ("added", "removed")
_COUNTS = ("added_count", "removed_count")


def since_of(record: dict[str, Any], where: str) -> Since:
    """The value of since.json as what it means. Raises VerificationError for one that `Since.record` did not make."""
    try:
        good = isinstance(record["root_hash"], str) and all(type(record[name]) is int for name in _COUNTS)
        for name, kind in _MAPS.items():
            good &= all(type(value) is kind for value in record[name].values())
        good &= all(isinstance(record[name], list) and all(type(one) is str for one in record[name]) for name in _LISTS)
        if not good:
            raise TypeError("a value of the wrong type")
        return Since(**record)
    except (KeyError, TypeError, AttributeError) as error:
        raise VerificationError(f"{SINCE} is damaged: {error}", where=where) from error
