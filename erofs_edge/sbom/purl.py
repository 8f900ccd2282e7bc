# SPDX-License-Identifier: Apache-2.0
"""The package URL of a Debian package (purl-spec, type deb)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packageurl import PackageURL


def purl_of(name: str, package: dict[str, Any], suite: str) -> PackageURL:
    """pkg:deb/debian/NAME@VERSION?arch=…&distro=…; `package` as in contents.json."""
    from packageurl import PackageURL

    qualifiers = {"arch": package["arch"], "distro": f"debian-{suite}"}
    return PackageURL("deb", "debian", name, package["version"], qualifiers)
