# SPDX-License-Identifier: Apache-2.0
"""Where a diskless board finds its system, data or boot image: an export of an NBD server, or a file of an HTTP
server."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from erofs_edge.errors import UsageError

PORT = 10809
"""registered for NBD"""
HTTP_PORT = 80
CERTIFICATES = "/run/tls"
"""in the initramfs: nbdkit opens them again whenever it reconnects"""
_WORD = re.compile(r"[A-Za-z0-9._~:/%+-]*")
"""text that can be used unquoted in the init script's variables, as one word"""
_HINT = "nbd://HOST[:PORT]/EXPORT, nbds:// with TLS, http:// or https://"


@dataclass(frozen=True, slots=True)
class Place:
    """scheme: nbd, nbds, http or https. `export`: an NBD export's name. `uri`: as given."""

    scheme: str
    host: str
    port: int
    export: str
    uri: str

    @property
    def plugin(self) -> str:
        """nbdkit's plugin that reads it."""
        return "nbd" if self.scheme.startswith("nbd") else "curl"

    @property
    def arguments(self) -> list[str]:
        """nbdkit's plugin and its arguments (nbdkit-nbd-plugin(1), nbdkit-curl-plugin(1)); an export's name comes
        last.
        """
        if self.plugin == "curl":
            found = ["curl", f"url={self.uri}"]
            return [*found, f"cainfo={CERTIFICATES}/ca-cert.pem"] if self.scheme == "https" else found
        # an empty name is the default anyway, and an empty word would get lost
        found = ["nbd", f"hostname={self.host}", f"port={self.port}"]
        found += ["tls=require", f"tls-certificates={CERTIFICATES}"] if self.scheme == "nbds" else []
        return [*found, *([f"export={self.export}"] * bool(self.export))]


def parse_place(uri: str) -> Place:
    """Parse an address. Raises UsageError unless a board can reach it before it has name resolution."""
    try:
        split = urlsplit(uri)
        host, port = split.hostname or "", split.port
    except ValueError:  # an unmatched bracket, a port that is not a number
        raise UsageError(f"'{uri}' is not the address of a server's export or file", hint=_HINT) from None
    export = unquote(split.path.removeprefix("/"))
    if split.scheme not in ("nbd", "nbds", "http", "https") or not host or port == 0:
        raise UsageError(f"'{uri}' is not the address of a server's export or file", hint=_HINT)
    if not _WORD.fullmatch(uri.replace("[", "").replace("]", "")) or not _WORD.fullmatch(export):
        raise UsageError(f"'{uri}' has characters that the init script cannot hold", hint="letters, digits and ._~:/+-")
    if split.scheme.startswith("nbd") and (split.query or split.fragment or split.username):
        raise UsageError(f"'{uri}' has more than host, port and export", hint=_HINT)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(
            f"'{host}' is a name, not an address",
            hint="use an IP address: the board cannot look up names when it starts",
        ) from None
    return Place(split.scheme, host, port or PORT, export, uri)


def check_reachable(place: Place) -> None:
    """Raises UsageError for an address at which no board finds a server: loopback, unspecified, broadcast, or one that
    is only valid on a named link."""
    address = ipaddress.ip_address(place.host)
    on_a_link = address.version == 6 and address.is_link_local
    if address.is_loopback or address.is_unspecified or address.is_multicast or on_a_link:
        raise UsageError(
            f"'{place.uri}': the board cannot reach a server at {place.host}",
            hint="the server's address in the board's network, where it listens: serve --bind ADDRESS",
        )


def parse_boot_image(uri: str) -> Place:
    """Where U-Boot gets the boot image with its own wget: HTTP at an IPv4 address; `export` is the path with its slash.

    Raises UsageError for what that command cannot load (U-Boot 2025.01, net/wget.c, doc/usage/cmd/wget.rst).
    """
    place = parse_place(uri)
    if place.scheme != "http":
        raise UsageError(f"'{uri}': U-Boot gets boot images over plain HTTP; their signature is what counts")
    if not isinstance(ipaddress.ip_address(place.host), ipaddress.IPv4Address):
        raise UsageError(f"'{uri}': U-Boot's wget knows IPv4 only")
    split = urlsplit(uri)
    if not split.path.strip("/"):
        raise UsageError(f"'{uri}' names no file", hint="http://192.0.2.1:8000/diskless.fit")
    return Place("http", place.host, split.port or HTTP_PORT, split.path, uri)
