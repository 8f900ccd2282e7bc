# SPDX-License-Identifier: Apache-2.0
"""A valid board and a valid manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

BOARD = """\
board: demo
disk:
  size: 2G
  partitions:
    boot:   {size: 64M, slots: [a, b], content: fit}
    system: {size: 512M, slots: [a, b], content: demo-system.yaml}
    misc:   {size: 1M, content: slot-state}
    data:   {size: rest, filesystem: ext4}
boot:
  u_boot: {package: u-boot-qemu, path: /usr/lib/u-boot/u-boot.bin}
  cmdline: [console=ttyAMA0]
"""

SYSTEM = """\
system: demo-system
packages: [systemd, udev]
hostname: demo
overlay:
  - from: files
    file_mode: 0640
sources:
  - directory: files
    to: /opt
users:
  pi: {uid: 1000, home: /home/pi}
units:
  enable: [ssh.service]
entries:
  - {path: /etc/motd, text: hello}
erofs: {level: 12}
"""

Write = Callable[..., Path]
"""the fixture `variant`"""
