# SPDX-License-Identifier: Apache-2.0
"""An archive of made packages: a fake apt that resolves them, a file: mirror that has them."""

from __future__ import annotations

import contextlib
import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sources.samples import control_text, deb_bytes, entry

from erofs_edge.errors import MirrorError, SourceError
from erofs_edge.manifest.model import LockedPackage
from erofs_edge.sources.debian.mirror import Mirror

PASSWD = b"root:*:0:0:root:/root:/bin/bash\n"
GROUP = b"root:*:0:\nshadow:*:42:\n"
USERS_OF_SSH = b'u sshd - "sshd user" /run/sshd\n'
FILES = {
    "base-files": [entry("./", kind=tarfile.DIRTYPE), entry("./bin", kind=tarfile.SYMTYPE, linkname="usr/bin")],
    "base-passwd": [
        entry("./usr/share/base-passwd/passwd.master", PASSWD),
        entry("./usr/share/base-passwd/group.master", GROUP),
    ],
    "openssh-server": [entry("./usr/lib/sysusers.d/sshd.conf", USERS_OF_SSH)],
}
DEPENDS = {
    "openssh-server": ["libc6"],
    "dmsetup": ["libc6"],
    "e2fsprogs": ["libc6"],
    "linux-image-arm64": ["linux-image-6.12.1-arm64", "initramfs-tools"],
    "linux-image-6.12.1-arm64": ["initramfs-tools", "kmod"],
}
NAMES = [
    *FILES, *DEPENDS, "libc6", "busybox-static", "initramfs-tools", "kmod", "linux-image-6.12.1-arm64", "u-boot-qemu",
    "firmware-x",
]  # fmt: skip


@dataclass
class FakeArchive:
    """Resolves like `Apt`; counts how often it was opened."""

    folder: Path
    date: int = 1_700_000_000
    opened: list[tuple[str, str]] = field(default_factory=list)
    packages: dict[str, LockedPackage] = field(default_factory=dict)
    local_names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in NAMES:
            self.add(name)

    @property
    def mirror(self) -> Mirror:
        return Mirror({"debian": f"file://{self.folder}"}, Path("/none"))

    def add(self, name: str, version: str = "1.0") -> None:
        data = deb_bytes(FILES.get(name, []), control=control_text(name, version))
        path = f"pool/{name}_{version}.deb"
        (self.folder / "pool").mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(data)
        self.packages[name] = LockedPackage(
            name=name, version=version, arch="arm64", archive="debian", path=path, size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )  # fmt: skip

    def describe(self, names: Iterable[str]) -> list[LockedPackage]:
        if missing := [name for name in names if name not in self.packages]:
            raise SourceError(
                f"no such package: {' '.join(missing)}", hint="check the name of the package and the suite"
            )
        return [self.packages[name] for name in sorted(names)]

    def closure(self, names: Iterable[str]) -> list[LockedPackage]:
        todo, seen = list(names), set()
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += DEPENDS.get(name, [])
        return self.describe(seen)

    def release_date(self) -> int:
        return self.date

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand in for apt and for the host's mirror."""

        @contextlib.contextmanager
        def open_apt(mirror: Mirror, suite: str, arch: str, **_: object) -> Iterator[FakeArchive]:
            if suite == "down":
                raise MirrorError("the package index cannot be fetched")
            self.opened.append((suite, arch))
            yield self

        monkeypatch.setattr("erofs_edge.sources.debian.apt.open_apt", open_apt)
        monkeypatch.setattr("erofs_edge.sources.debian.mirror.host_mirror", lambda: self.mirror)


MANIFEST = """\
system: edge
packages:
  - base-files
  - base-passwd
  - openssh-server
"""
BOARD = """\
board: demo
disk:
  partitions:
    firmware: {size: 64M, content: firmware}
    boot: {size: 64M, slots: [a, b], content: fit}
    system: {size: 512M, slots: [a, b], content: edge.yaml}
    misc: {size: 1M, content: slot-state}
boot:
  u_boot: {package: u-boot-qemu, path: /usr/lib/u-boot.bin}
  firmware:
    - {package: firmware-x, path: /x}
    - {package: firmware-x, path: /y}
"""
