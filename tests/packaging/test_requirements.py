# SPDX-License-Identifier: Apache-2.0
"""requirements.lock: every library by hash, and all of those that pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def locked(text: str) -> dict[str, tuple[str, list[str]]]:
    """Name → version and hashes; what is no requirement with hashes fails."""
    found: dict[str, tuple[str, list[str]]] = {}
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    for line in lines:
        words = line.split(" --hash=")
        match = re.fullmatch(r"([a-z0-9-]+)==([\w.!+]+)( ; .+)?", words[0].strip())
        assert match, line
        assert match[1] not in found, f"{match[1]} twice"
        hashes = [word.strip() for word in words[1:]]
        assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", word) for word in hashes), match[1]
        found[match[1]] = match[2], hashes
    return found


def test_every_library_is_pinned_by_hash(repository: Path) -> None:
    text = (repository / "requirements.lock").read_text()
    pins = locked(text)
    assert "://" not in text, "an index is the host's to name"
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    for one in map(Requirement, wanted):
        name = canonicalize_name(one.name)
        assert name in pins, f"{name} is not locked: pip-compile, as the file says"
        assert one.specifier.contains(pins[name][0]), f"{name} {pins[name][0]} is not {one.specifier}"


def test_what_is_loaded_into_the_process_has_files_for_both_processors(repository: Path) -> None:
    """One hash a file: libraries with compiled parts have many."""
    pins = locked((repository / "requirements.lock").read_text())
    for name in ("cryptography", "lz4", "deflate", "zstandard", "msgspec", "numpy"):
        assert len(pins[name][1]) > 8, name
