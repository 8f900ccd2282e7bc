# SPDX-License-Identifier: Apache-2.0
"""`smoke:` of a manifest: the system checks itself when a test requests it.

A test requests it with an empty disk that has a certain serial number: it needs no network, login or kernel argument,
and works with every boot chain. Otherwise the unit ends at once, and its checks never change anything.
"""

from __future__ import annotations

import shlex
import stat

from erofs_edge.manifest.shaping import Smoke
from erofs_edge.sources.debian.configure.units import enable
from erofs_edge.tree import BytesContent, FileTree, Inode

SCRIPT = "usr/lib/erofs-edge/smoke"
UNIT = "edge-smoke.service"
SERIAL = "erofs-edge-smoke"
UNIT_TEXT = f"""\
[Unit]
Description=Check this system for a test that has asked for it
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=exec
ExecCondition=grep -qsx {SERIAL} /sys/block/vda/serial /sys/block/vdb/serial /sys/block/vdc/serial
ExecStart=/{SCRIPT}

[Install]
WantedBy=multi-user.target
"""
HEAD = """\
#!/bin/bash
# Made by the build from the manifest's `smoke`: each check is tried once a second until it passes or time is up.

check() {
	name=$1
	shift
	until said=$("$@" 2>&1); do
		if [ "$SECONDS" -gt "$limit" ]; then
			said=$(echo "${said:-no success within $limit s}" | tail -n 1)
			printf '\\nerofs-edge: smoke FAILED %s: %s\\n' "$name" "$said" >/dev/console
			exit 1
		fi
		sleep 1
	done
	printf '\\nerofs-edge: smoke ok %s\\n' "$name" >/dev/console
}

"""
TAIL = "printf '\\nerofs-edge: smoke passed\\n' >/dev/console\n"


def apply_smoke(tree: FileTree, smoke: Smoke) -> None:
    """Write the checks and the unit that runs them; nothing if there is nothing to check."""
    if not smoke.units and not smoke.commands:
        return
    lines = [f"limit={smoke.seconds}\n"]
    lines += [f"check {unit} systemctl is-active {shlex.quote(unit)}\n" for unit in smoke.units]
    lines += [f"check {name} bash -c {shlex.quote(command)}\n" for name, command in smoke.commands.items()]
    _add(tree, SCRIPT, HEAD + "".join(lines) + TAIL, 0o755)
    _add(tree, f"usr/lib/systemd/system/{UNIT}", UNIT_TEXT, 0o644)
    enable(tree, UNIT)


def _add(tree: FileTree, path: str, text: str, mode: int) -> None:
    content = BytesContent(text.encode())
    tree.add(path, Inode(stat.S_IFREG | mode, content=content, origin="smoke of the manifest"))
