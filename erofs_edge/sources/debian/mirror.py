# SPDX-License-Identifier: Apache-2.0
"""Where Debian packages come from: the mirror in the host's own configuration, or EROFS_EDGE_MIRROR.

This project names no mirror. The host's configuration is read (deb822 ``*.sources`` and one-line ``*.list`` files),
never changed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.errors import MirrorError

VARIABLE = "EROFS_EDGE_MIRROR"
KEYRINGS = (
    "usr/share/keyrings/debian-archive-keyring.gpg",
    "usr/share/keyrings/debian-archive-keyring.pgp",
    "etc/apt/trusted.gpg.d/debian-archive-keyring.gpg",
)
RELEASES = "bookworm|trixie|forky|duke|sid|stable|testing|unstable|oldstable"
# compared exactly, since other repositories have similar names: bookworm-pgdg, bookworm with a component "stable"
SUITE = re.compile(rf"(?:{RELEASES})(?:(?P<security>-security|/updates)|-updates|-backports|-proposed-updates)?")


@dataclass(frozen=True, slots=True)
class Mirror:
    """archives: 'debian' and, if there is one, 'debian-security' → base URI without a trailing slash.

    keyring verifies both; pinned says that the user named the archive (it may be an old snapshot, so an expired release
    file is accepted).
    """

    archives: Mapping[str, str]
    keyring: Path
    pinned: bool = False

    def uri(self, archive: str, path: str) -> str:
        """The URI of a file below an archive. Raises MirrorError if the mirror lacks that archive."""
        try:
            return f"{self.archives[archive]}/{path}"
        except KeyError:
            raise MirrorError(
                f"no mirror of the archive {archive!r} is configured",
                hint=f"name one in {VARIABLE}: 'URI-of-debian URI-of-debian-security'",
            ) from None


def host_mirror(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Mirror:
    """The mirror to use. Raises MirrorError if the host is not Debian-like and no variable names one."""
    if named := environ.get(VARIABLE, "").replace(",", " ").split():
        return Mirror(_named(named), _keyring(root, None), pinned=True)
    archives: dict[str, str] = {}
    signed_by = None
    for uri, suite, components, key in _entries(root):
        match = SUITE.fullmatch(suite)
        if not match or "main" not in components:
            continue
        archive = "debian-security" if match["security"] else "debian"
        if archive not in archives:
            archives[archive] = _plain(uri, root).rstrip("/")
            signed_by = signed_by or key
    if "debian" not in archives:
        raise MirrorError(
            "no Debian mirror is configured on this host",
            where=str(root / "etc/apt"),
            hint=f"run on Debian 12 or newer, or set {VARIABLE} to the URI of a Debian archive",
        )
    return Mirror(archives, _keyring(root, signed_by))


def _named(uris: list[str]) -> dict[str, str]:
    """One URI names both archives if its path has a component 'debian' (…/debian → …/debian-security)."""
    for uri in uris:
        if not re.match(r"(https?://|file:/)[^/\s]|file:///[^/\s]", uri):
            raise MirrorError(
                f"'{uri}' is no URI of a package archive",
                where=VARIABLE,
                hint="http://, https:// or file:/, as in file:/srv/mirror/debian",
            )
    main = uris[0].rstrip("/")
    if len(uris) > 1:
        return {"debian": main, "debian-security": uris[1].rstrip("/")}
    twin, found = re.subn(r"/debian(?=/|$)", "/debian-security", main)
    return {"debian": main, "debian-security": twin} if found else {"debian": main}


def _keyring(root: Path, signed_by: str | None) -> Path:
    candidates = [Path(signed_by)] if signed_by else []
    candidates += [root / name for name in KEYRINGS]
    for path in candidates:
        if path.exists():
            return path
    raise MirrorError(
        "the Debian archive key is not on this host",
        where=str(candidates[0]),
        hint="install it: apt-get install debian-archive-keyring",
    )


def _plain(uri: str, root: Path) -> str:
    """Replace `mirror+file:LIST` (used by cloud images) by the first mirror in the list."""
    if not uri.startswith("mirror+file:"):
        return uri
    path = root / uri.removeprefix("mirror+file:").lstrip("/")
    try:
        lines = path.read_text().split("\n")
    except OSError as error:
        raise MirrorError(f"cannot read: {error.strerror}", where=str(path)) from error
    for line in lines:
        if words := line.split("#")[0].split():
            return words[0]
    raise MirrorError("the list of mirrors is empty", where=str(path))


def _entries(root: Path) -> Iterator[tuple[str, str, list[str], str | None]]:
    """(URI, suite, components, keyring path or None) of each enabled binary source, in apt's own reading order."""
    apt = root / "etc/apt"
    lists = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    for path in lists:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        yield from _deb822(text) if path.suffix == ".sources" else _one_line(text)


def _deb822(text: str) -> Iterator[tuple[str, str, list[str], str | None]]:
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in block.split("\n"):
            if line.startswith("#"):
                continue
            if line[:1].isspace() and key:
                fields[key] += "\n" + line.strip()
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                fields[key] = value.strip()
        if fields.get("enabled", "yes").lower() == "no" or "deb" not in fields.get("types", "").split():
            continue
        signed = fields.get("signed-by", "")
        for uri in fields.get("uris", "").split()[:1]:
            for suite in fields.get("suites", "").split():
                yield uri, suite, fields.get("components", "").split(), signed if signed.startswith("/") else None


def _one_line(text: str) -> Iterator[tuple[str, str, list[str], str | None]]:
    for line in text.split("\n"):
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*)", line.split("#")[0].strip())
        if match:
            options = dict(word.split("=", 1) for word in (match[1] or "").split() if "=" in word)
            yield match[2], match[3], match[4].split(), options.get("signed-by")
