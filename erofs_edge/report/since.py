# SPDX-License-Identifier: Apache-2.0
"""Changes since an earlier build, small enough to be stored.

A release stores them because those who make its page again do not have the earlier release.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from erofs_edge.errors import VerificationError

SINCE = "since.json"
PATHS_MAX = 200
"""names of added and of removed paths that are stored; the counts cover all"""


@dataclass(frozen=True, slots=True)
class Since:
    """An earlier build compared with a new one.

    root_hash         of the earlier one, in hex
    files             its files → bytes
    stored, versions  its packages and other origins → bytes in its image; its packages → version
    added, removed    the first paths that only the new, or only the earlier build has, in byte order
    added_count, removed_count  their total numbers
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
    """Parse the value of since.json. Raises VerificationError for one that `Since.record` did not make."""
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
