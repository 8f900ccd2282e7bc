# SPDX-License-Identifier: Apache-2.0
"""References to images in registries: registry[:port]/name[:tag][@sha256:…], as in docker and podman."""

from __future__ import annotations

import re
from dataclasses import dataclass

from erofs_edge.errors import SourceError

_SHAPE = re.compile(
    r"(?P<registry>[A-Za-z0-9.-]+(:[0-9]{1,5})?)/(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@sha256:(?P<digest>[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """digest  sha256 in hex, None if only a tag is known; it takes precedence over the tag."""

    registry: str
    name: str
    tag: str = "latest"
    digest: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this machine."""
        host = self.registry.rpartition(":")[0] or self.registry
        return host in ("localhost", "127.0.0.1")

    def __str__(self) -> str:
        return f"{self.registry}/{self.name}" + (f"@sha256:{self.digest}" if self.digest else f":{self.tag}")


def parse_reference(text: str) -> Reference:
    """Parse a reference. Raises SourceError if it is invalid or names no registry."""
    match = _match(text)
    if match is None:
        raise SourceError(f"not a reference to an image: {text}", hint=_hint(text))
    return Reference(match["registry"], match["name"], match["tag"] or "latest", match["digest"])


def _match(text: str) -> re.Match[str] | None:
    """Match a reference. As in docker, a first part without dot or port is not a host, unless it is localhost."""
    match = _SHAPE.fullmatch(text)
    return match if match and re.search(r"[.:]|^localhost$", match["registry"]) else None


def _hint(text: str) -> str:
    registry, _, rest = text.partition("/")
    name = re.split("[:@]", rest, maxsplit=1)[0]
    if name != name.lower() and _match(f"{registry}/{name.lower()}{rest.removeprefix(name)}"):
        return "names of images are in lower case"
    if "@" in text:
        return "a digest is sha256: and 64 hexadecimal digits"
    return "name the registry too, as in registry.example/library/debian:13"
