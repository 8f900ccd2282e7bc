# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from shutil import which

import pytest
from sources.debian.configure.made import link_of, text_of
from sources.samples import control_text, deb_bytes, entry

from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.configure.database import ADMIN, stanza, write_database
from erofs_edge.sources.debian.deb import Package, read_deb
from erofs_edge.sources.debian.unpack import unpack

CONF = b"setting\n"
FILES = [
    entry("./", kind=b"5"),
    entry("./etc/", kind=b"5"),
    entry("./etc/tiny.conf", CONF),
    entry("./usr/", kind=b"5"),
    entry("./usr/bin/", kind=b"5"),
    entry("./usr/bin/tiny", b"program"),
    entry("./usr/share/man/tiny.1", b"manual"),
]
MD5 = {name: hashlib.md5(data).hexdigest() for name, data in (("conf", CONF), ("tiny", b"program"), ("man", b"manual"))}
SUMS = f"{MD5['tiny']}  usr/bin/tiny\n{MD5['man']}  usr/share/man/tiny.1\n".encode()


@pytest.fixture
def packages(tmp_path: Path, cache: Cache) -> list[Package]:
    made = []
    for name, fields in (("tiny", {}), ("libtiny", {"Multi_Arch": "same", "Depends": "tiny"})):
        info = {"conffiles": b"/etc/tiny.conf\n", "md5sums": SUMS} if name == "tiny" else {}
        path = tmp_path / f"{name}.deb"
        entries = FILES if name == "tiny" else FILES[:1]
        path.write_bytes(deb_bytes(entries, control=control_text(name, "1.5-2", **fields), info=info))
        made.append(read_deb(path, cache))
    return made


def test_a_stanza_has_status_and_conffiles(packages: list[Package]) -> None:
    assert stanza(packages[0]) == (
        "Package: tiny\nStatus: install ok installed\nMaintainer: A <a@b.c>\nArchitecture: arm64\nVersion: 1.5-2\n"
        f"Conffiles:\n /etc/tiny.conf {MD5['conf']}\nDescription: a test\n of packages\n"
    )


def test_files_that_the_image_lacks_are_not_listed(packages: list[Package]) -> None:
    tree = unpack(packages)
    tree.remove("usr/share/man/tiny.1")
    tree.directory("var/lib/dpkg")
    write_database(tree, packages, "arm64")
    assert link_of(tree, "var/lib/dpkg") == f"../../{ADMIN}"
    assert text_of(tree, f"{ADMIN}/info/tiny.list") == "/.\n/etc\n/etc/tiny.conf\n/usr\n/usr/bin\n/usr/bin/tiny\n"
    assert text_of(tree, f"{ADMIN}/info/tiny.md5sums") == f"{MD5['tiny']}  usr/bin/tiny\n"
    assert text_of(tree, f"{ADMIN}/info/tiny.conffiles") == "/etc/tiny.conf\n"
    assert text_of(tree, f"{ADMIN}/info/libtiny:arm64.list") == "/.\n"
    assert text_of(tree, f"{ADMIN}/info/format") == "1\n"
    assert text_of(tree, f"{ADMIN}/arch-native") == "arm64\n"


def test_dpkg_reads_it(packages: list[Package], tmp_path: Path) -> None:
    program = which("dpkg-query")
    if program is None:
        assert "CI" not in os.environ, "in CI a missing reference tool is a failure"
        pytest.skip("the host has no dpkg-query to ask")
    tree = unpack(packages)
    write_database(tree, packages, "arm64")
    for path, node in tree.walk():
        if path.startswith(f"/{ADMIN}/".encode()) and node.is_file:
            host = tmp_path / path.decode().lstrip("/")
            host.parent.mkdir(parents=True, exist_ok=True)
            host.write_bytes(node.read())
    (tmp_path / ADMIN / "updates").mkdir()

    def ask(*arguments: str) -> str:
        command = [program, f"--admindir={tmp_path / ADMIN}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert ask("-W", "-f", "${Package} ${Version} ${Architecture} ${db:Status-Status}\n") == (
        "libtiny 1.5-2 arm64 installed\ntiny 1.5-2 arm64 installed\n"
    )
    assert ask("-L", "tiny").splitlines()[-1] == "/usr/share/man/tiny.1"
