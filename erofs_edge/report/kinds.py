# SPDX-License-Identifier: Apache-2.0
"""Classify files for people by path and mode alone: no content is read."""

from __future__ import annotations

import re
import stat

KINDS = (
    "programs", "libraries", "kernel modules", "firmware", "scripts and bytecode", "configuration", "documentation",
    "translations", "fonts and pictures", "archives", "package records", "other data", "no content", "of no file",
)  # fmt: skip
"""In the order of legends. 'no content': directories, links, devices, empty files; 'of no file': metadata of the image,
padding and the hash tree."""

_RULES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("kernel modules", r"\.ko(\.(xz|zst|gz))?$|/modules\.[\w.]+$"),
        ("firmware", r"/(firmware|ucode)/"),
        ("documentation", r"^/usr/share/(doc|man|info|doc-base|lintian)/"),
        ("translations", r"^/usr/share/(locale|i18n)/|^/usr/lib/locale/|\.mo$"),
        ("package records", r"^/var/lib/(dpkg|apt)/|^/usr/share/(bug|debianutils)/"),
        ("scripts and bytecode", r"\.(py|pyc|pl|pm|sh|js|lua|rb|awk|tcl|el)$"),
        ("fonts and pictures", r"\.(ttf|otf|pcf|png|svg|jpe?g|gif|webp|ico|woff2?)(\.gz)?$"),
        ("archives", r"\.(gz|xz|zst|bz2|zip|tar|deb|jar)$"),
        ("libraries", r"\.so(\.[\w.+-]+)*$|\.a$"),
        ("configuration", r"^/etc/|\.(conf|cfg|ini|ya?ml|toml|service|socket|timer|target|mount|rules|preset|policy)$"),
        ("programs", r"^/(usr/)?(local/)?(s?bin|libexec|games)/"),
    )
)


def kind_of(path: str, mode: int, size: int) -> str:
    """One of KINDS for a path with a leading '/', its st_mode and its size in bytes."""
    if not stat.S_ISREG(mode) or not size:
        return "no content"
    for kind, pattern in _RULES:
        if pattern.search(path):
            return kind
    return "programs" if mode & 0o111 else "other data"
