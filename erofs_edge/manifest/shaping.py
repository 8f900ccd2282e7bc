# SPDX-License-Identifier: Apache-2.0
"""Typed values that shape what is in a system, beyond its packages and files: part of the vocabulary of model.py."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from erofs_edge.manifest.words import Line, Mode, Owner, UnitName

VariableName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Z][A-Z0-9_]*$",
        extra={"says": "the name of a variable: capital letters, digits and _"},
    ),
]
BudgetKey = Annotated[
    str,
    Meta(
        pattern=r"^(partition|/(?!(.*/)?\.\.(/|$))[^\x00]*)$",
        extra={"says": "'partition' or an absolute path on the device"},
    ),
]
LinkName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        extra={"says": "a name of lower-case letters, digits, _ and -"},
    ),
]
Address = Annotated[
    str,
    Meta(
        pattern=r"^[0-9A-Fa-f:.]+/[0-9]{1,3}$",
        extra={"says": "an address with the length of its network, as in 192.0.2.7/24"},
    ),
]
Gateway = Annotated[
    str,
    Meta(pattern=r"^[0-9A-Fa-f:.]+$", extra={"says": "an address, as in 192.0.2.1"}),
]

EtcPath = Annotated[
    str,
    Meta(
        pattern=r"^/etc(/(?!\.\.?(/|$))[A-Za-z0-9._@+-]+)+$",
        extra={"says": "a path below /etc, of letters, digits and . _ @ + -"},
    ),
]

Droppable = Literal["doc", "info", "lintian", "locale", "man"]


class OverlayRule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Owner, mode and attributes of the files and directories of an overlay whose path matches."""

    match: Annotated[str, Meta(min_length=1)]
    """a glob below `to` of the overlay; '**' crosses directories"""
    owner: Owner | None = None
    """default: the overlay's"""
    mode: Mode | None = None
    """default: the overlay's"""
    xattrs: dict[str, str] = {}
    """extended attributes by full name (user.x, security.capability); text, 0x… or 0s… as getfattr writes them"""


class Link(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of network interface: which ones, and their addresses."""

    match: list[Line]
    """interface names, or globs such as en*"""
    dhcp: Literal["yes", "no", "ipv4", "ipv6"] = "yes"
    """which addresses DHCP supplies; 'no' if `addresses` has them"""
    addresses: list[Address] = []
    """fixed addresses, such as 192.0.2.7/24"""
    gateway: Gateway | None = None
    """the default gateway, if DHCP does not supply it"""
    dns: list[Gateway] = []
    """name servers in addition to those from DHCP"""


class Network(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Network settings, written for the program that manages the network, which is enabled."""

    manager: Literal["systemd-networkd", "NetworkManager"] = "systemd-networkd"
    """the managing program; its package must be among the system's"""
    links: dict[LinkName, Link] = {}
    """settings by a name that you choose, which also orders them"""


class Smoke(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `boot --smoke` must see of this system in addition to a verified boot. Checked in the running system."""

    units: list[UnitName] = []
    """systemd units that must become active"""
    commands: dict[LinkName, Line] = {}
    """shell commands by name; each must end with exit code 0"""
    console: list[Annotated[str, Meta(min_length=1)]] = []
    """regular expressions; each must match a line of the console"""
    seconds: Annotated[int, Meta(ge=1, le=3600)] = 120
    """how long to wait for units and commands, once the system has started them"""
    graphics: bool = False
    """give the emulated machine a graphics card"""
    watchdog: bool = False
    """give the emulated machine a watchdog"""
