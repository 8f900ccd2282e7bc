# SPDX-License-Identifier: Apache-2.0
"""Find which part of a system a path comes from, and why that part is there."""

from __future__ import annotations

import posixpath
from collections import deque
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from erofs_edge.errors import ErofsEdgeError

_MERGED = ("/bin/", "/sbin/", "/lib/")
"""symlinks into /usr in every Debian system; contents.json lists the files below their targets"""


@dataclass(frozen=True, slots=True)
class Answer:
    """path  as in the system; origin  'package NAME', 'manifest FILE:LINE', 'step WORDS'
    version  of the package, '' for others
    chain  package names from one that a manifest requests down to the owner; [] for others
    """

    path: str
    origin: str
    version: str = ""
    chain: tuple[str, ...] = ()


def which(contents: dict[str, Any], path: str) -> list[Answer]:
    """The origins of paths; `path` may be a pattern ('*.so.3') or lack its leading '/'.

    Raises ErofsEdgeError if nothing matches.
    """
    wanted = path if path.startswith(("/", "*")) else "/" + path
    found = _matching(contents, wanted)
    if not found and wanted.startswith(_MERGED):
        found = _matching(contents, "/usr" + wanted)
    if not found:
        everything = [one for paths in contents["paths"].values() for one in paths]
        last = wanted.rstrip("/").rpartition("/")[2]
        near = min((one for one in everything if one.endswith(wanted)), default=None)
        near = near or min((one for one in everything if last and last in one.rpartition("/")[2]), default=None)
        raise ErofsEdgeError(f"{wanted} is not in the system", hint=f"did you mean {near}?" if near else None)
    return sorted(found, key=lambda answer: answer.path)


def _matching(contents: dict[str, Any], wanted: str) -> list[Answer]:
    pattern = any(mark in wanted for mark in "*?[")
    exact = posixpath.normpath(wanted)
    return [
        _answer(contents, one, origin)
        for origin, paths in contents["paths"].items()
        for one in paths
        if (fnmatchcase(one, wanted) if pattern else one == exact)
    ]


def _answer(contents: dict[str, Any], path: str, origin: str) -> Answer:
    name = origin.removeprefix("package ")
    package = contents["packages"].get(name) if name != origin else None
    if package is None:
        return Answer(path, origin)
    return Answer(path, origin, package["version"], tuple(chain_to(contents, name)))


def chain_to(contents: dict[str, Any], name: str) -> list[str]:
    """The shortest chain of dependencies from a requested package to `name`; just `name` if it is requested itself, or
    if no dependency leads to it."""
    packages: dict[str, dict[str, Any]] = contents["packages"]
    starts = sorted(one for one, package in packages.items() if package["requested"])
    before: dict[str, str | None] = dict.fromkeys(starts)
    queue = deque(starts)
    while queue and name not in before:
        here = queue.popleft()
        for other in packages[here]["depends"]:
            if other in packages and other not in before:
                before[other] = here
                queue.append(other)
    chain = [name]
    while (previous := before.get(chain[-1])) is not None:
        chain.append(previous)
    return chain[::-1]
