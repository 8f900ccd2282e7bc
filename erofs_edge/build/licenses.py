# SPDX-License-Identifier: Apache-2.0
"""Licences that a Debian package declares in its machine-readable copyright file, as SPDX names where known.

Source: Debian's copyright-format 1.0 (``License:`` of the header and of Files paragraphs).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from erofs_edge.sources.debian.deb import Package
from erofs_edge.sources.tar import tree_of
from erofs_edge.tree import FileTree

SIZE_MAX = 8 << 20
_FORMAT = re.compile(r"^Format(-Specification)?:", re.IGNORECASE)
_LICENSE = re.compile(r"^License:[ \t]*(\S.*)$", re.IGNORECASE | re.MULTILINE)
_VERSIONED = re.compile(r"(AGPL|GPL|LGPL|GFDL)-(\d)(?:\.(\d))?(\+)?", re.IGNORECASE)
_SPDX = {
    name.lower(): spdx
    for name, spdx in {
        "Expat": "MIT", "MIT": "MIT", "X11": "X11", "ISC": "ISC", "Zlib": "Zlib", "Apache-2": "Apache-2.0",
        "Apache-2.0": "Apache-2.0", "BSD-2-clause": "BSD-2-Clause", "BSD-3-clause": "BSD-3-Clause",
        "BSD-4-clause": "BSD-4-Clause", "BSL-1.0": "BSL-1.0", "CC0": "CC0-1.0", "CC0-1.0": "CC0-1.0",
        "CC-BY-4.0": "CC-BY-4.0", "MPL-1.1": "MPL-1.1", "MPL-2": "MPL-2.0", "MPL-2.0": "MPL-2.0",
        "OpenSSL": "OpenSSL", "PSF-2": "PSF-2.0", "Unlicense": "Unlicense", "0BSD": "0BSD", "Artistic": "Artistic-1.0",
        "Artistic-2": "Artistic-2.0", "Artistic-2.0": "Artistic-2.0", "curl": "curl",
    }.items()
}  # fmt: skip
"""Debian's short name → SPDX's identifier"""


def declared_licenses(package: Package, others: Mapping[str, Package]) -> list[str]:
    """Short names, as SPDX identifiers where known, sorted; [] if the package declares none in machine-readable form.

    `others`: packages by name; a package may refer to another one's copyright file by a symlink.
    """
    text = _copyright(package, others)
    if not _FORMAT.match(text):
        return []
    found = {spdx_name(one) for line in _LICENSE.findall(text) for one in _names(line)}
    return sorted(found)


def _copyright(package: Package, others: Mapping[str, Package]) -> str:
    tree = _documents(package)
    folder = tree.get(f"usr/share/doc/{package.name}")
    if folder is not None and folder.is_symlink:
        other = others.get(folder.target.decode("utf-8", "replace").rpartition("/")[2])
        if other is None or other is package:
            return ""
        package, tree = other, _documents(other)
    node = tree.get(f"usr/share/doc/{package.name}/copyright")
    if node is None or not node.is_file or node.content is None or node.size > SIZE_MAX:
        return ""
    return node.read().decode("utf-8", "replace").lstrip("\ufeff\n ")


def _documents(package: Package) -> FileTree:
    """The part of a package below its folder in /usr/share/doc."""
    top = f"usr/share/doc/{package.name}".encode()
    members = [member for member in package.members if member.path == top or member.path == top + b"/copyright"]
    return tree_of(members, package.archive, package.name, origin=package.name)


def _names(line: str) -> list[str]:
    """The names in 'GPL-2+ and (MIT or Expat), and BSD-3-clause with X exception'."""
    words = re.sub(r"\s+with\s+\S+\s+exception", lambda m: m[0].replace(" ", "\0"), line, flags=re.IGNORECASE)
    parts = re.split(r"\s+(?:and/or|and|or)\s+|,|\(|\)", words)
    return [part.replace("\0", " ").strip() for part in parts if part.strip()]


def spdx_name(name: str) -> str:
    """'GPL-2+' → 'GPL-2.0-or-later', 'Expat' → 'MIT'; a name unknown to SPDX is returned unchanged."""
    versioned = _VERSIONED.fullmatch(name)
    if versioned:
        family, major, minor, later = versioned.groups()
        return f"{family.upper()}-{major}.{minor or 0}-{'or-later' if later else 'only'}"
    return _SPDX.get(name.lower(), name)


def is_spdx(name: str) -> bool:
    """Whether `spdx_name` returned an identifier of SPDX's list."""
    return name in _KNOWN or re.fullmatch(r"(AGPL|GPL|LGPL|GFDL)-\d\.\d-(only|or-later)", name) is not None


def license_reference(name: str) -> str:
    """How SPDX documents refer to it: SPDX's own identifier, or a reference to a licence described in the document."""
    return name if is_spdx(name) else "LicenseRef-Debian-" + re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")


_KNOWN = frozenset(_SPDX.values())
