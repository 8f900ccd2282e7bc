# SPDX-License-Identifier: Apache-2.0
"""Find what a release's device keeps writable and unsigned although it can lead to code running as root."""

from __future__ import annotations

from erofs_edge.manifest.model import Board, System

STARTERS = ("/etc", "/etc/systemd", "/etc/init.d", "/etc/cron.d", "/etc/udev", "/etc/ld.so.preload", "/etc/pam.d")
"""paths, and everything below them, whose files name programs that are started automatically"""


def exposed_notes(board: Board, system: System) -> list[str]:
    """A note if someone who can write to the medium can make programs start: a part of /etc on an open data partition.

    Nothing if no partition keeps data, or if it is encrypted with a key that is not on the medium.
    """
    name = next((name for name, one in board.disk.partitions.items() if one.filesystem is not None), None)
    if name is None or board.disk.partitions[name].encrypt is not None:
        return []
    starting = [path for path in system.writable_etc or ["/etc"] if starts_programs(path)]
    if not starting:
        return []
    return [
        f"{', '.join(starting)} can be changed on the partition '{name}', which nothing signs: whoever writes the"
        " medium can add services there that run as root; name in `writable_etc` what the device may change, or encrypt"
        " the partition (docs/threat-model.md)"
    ]


def starts_programs(path: str) -> bool:
    """Whether a path of /etc is, contains or lies below one of STARTERS."""
    inside = any(path == one or path.startswith(f"{one}/") for one in STARTERS[1:])
    return inside or any(one == path or one.startswith(f"{path}/") for one in STARTERS)
