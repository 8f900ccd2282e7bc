# SPDX-License-Identifier: Apache-2.0
"""Network defaults of a manifest, as files for the program that manages the network.

They are in /usr/lib, so files that a device keeps in /etc take precedence: systemd.network(5), nm-settings-keyfile(5).
"""

from __future__ import annotations

import ipaddress
import stat

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.shaping import Link, Network
from erofs_edge.sources.debian.configure.ids import Position
from erofs_edge.sources.debian.configure.units import enable, find_unit
from erofs_edge.tree import BytesContent, FileTree, Inode

UNITS = {"systemd-networkd": "systemd-networkd.service", "NetworkManager": "NetworkManager.service"}
PACKAGES = {"systemd-networkd": "systemd", "NetworkManager": "network-manager"}


def apply_network(tree: FileTree, network: Network, position: Position = str) -> None:
    """Write the manager's files and enable its unit. Raises ManifestError if it is not in the system."""
    unit = UNITS[network.manager]
    if find_unit(tree, unit) is None:
        raise ManifestError(
            f"{network.manager} is not in the system",
            where=position("network.manager"),
            hint=f"add {PACKAGES[network.manager]} to `packages`",
        )
    for name, link in network.links.items():
        _check(link, lambda key, name=name: position(f"network.links.{name}.{key}"))  # type: ignore[misc]
        if network.manager == "systemd-networkd":
            _add(tree, f"usr/lib/systemd/network/70-{name}.network", networkd_text(link), 0o644)
        else:
            text = network_manager_text(name, link)
            _add(tree, f"usr/lib/NetworkManager/system-connections/{name}.nmconnection", text, 0o600)
    enable(tree, unit)


def networkd_text(link: Link) -> str:
    """A .network file."""
    lines = ["[Match]", f"Name={' '.join(link.match)}", "", "[Network]", f"DHCP={link.dhcp}"]
    lines += [f"Address={address}" for address in link.addresses]
    lines += [f"Gateway={link.gateway}"] if link.gateway else []
    lines += [f"DNS={server}" for server in link.dns]
    return "\n".join(lines) + "\n"


def network_manager_text(name: str, link: Link) -> str:
    """A connection profile for every matching wired interface."""
    lines = ["[connection]", f"id={name}", "type=ethernet", "multi-connect=3", "", "[match]"]
    lines += [f"interface-name={';'.join(link.match)};"]
    for family, version in (("ipv4", 4), ("ipv6", 6)):
        fixed = [a for a in link.addresses if ipaddress.ip_interface(a).version == version]
        servers = [s for s in link.dns if ipaddress.ip_address(s).version == version]
        dynamic = link.dhcp in ("yes", family)
        quiet = "link-local" if version == 6 else "disabled"
        lines += ["", f"[{family}]", f"method={'auto' if dynamic else 'manual' if fixed else quiet}"]
        lines += [f"address{index}={address}" for index, address in enumerate(fixed, 1)]
        if link.gateway and ipaddress.ip_address(link.gateway).version == version:
            lines += [f"gateway={link.gateway}"]
        lines += [f"dns={''.join(f'{server};' for server in servers)}"] if servers else []
    return "\n".join(lines) + "\n"


def _check(link: Link, position: Position) -> None:
    """Raises ManifestError for an invalid address."""
    try:
        for index, address in enumerate(link.addresses):
            key = f"addresses.{index}"
            ipaddress.ip_interface(address)
        for index, server in enumerate(link.dns):
            key = f"dns.{index}"
            ipaddress.ip_address(server)
        key = "gateway"
        if link.gateway is not None:
            ipaddress.ip_address(link.gateway)
    except ValueError as error:
        raise ManifestError(str(error), where=position(key)) from error


def _add(tree: FileTree, path: str, text: str, mode: int) -> None:
    content = BytesContent(text.encode())
    tree.add(path, Inode(stat.S_IFREG | mode, content=content, origin="network of the manifest"))
