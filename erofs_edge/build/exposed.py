# SPDX-License-Identifier: Apache-2.0
"""What of a release's device is writable, signed by nobody, and can still lead to code that runs as root."""

from __future__ import annotations

from erofs_edge.manifest.model import Board, System

STARTERS = ("/etc", "/etc/systemd", "/etc/init.d", "/etc/cron.d", "/etc/udev", "/etc/ld.so.preload", "/etc/pam.d")
"""where files name programs that are started without anybody's doing; also what lies below"""


def exposed_notes(board: Board, system: System) -> list[str]:
    """A note where whoever writes the medium can add what starts programs: a part of /etc on an open data partition.

    Nothing where no partition keeps data, or where that is encrypted with a key that the medium does not hold.
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
    """Whether a path of /etc is, holds or lies below one of STARTERS."""
    inside = any(path == one or path.startswith(f"{one}/") for one in STARTERS[1:])
    return inside or any(one == path or one.startswith(f"{path}/") for one in STARTERS)
