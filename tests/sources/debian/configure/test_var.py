# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from shutil import which

import pytest
from sources.debian.configure.made import text_of, tree_with

from erofs_edge.sources.debian.configure.tmpfiles import read_tmpfiles
from erofs_edge.sources.debian.configure.var import LINES, move_var
from erofs_edge.tree import FileTree, Inode


def sample() -> FileTree:
    tree = tree_with(
        {
            "usr/lib/tmpfiles.d/var.conf": "q /var 0755\nd /var/log 0755 - - -\nL /var/run - - - - ../run\n",
            "var/log/": "",
            "var/run": "->/run",
            "var/lib/app/state.db": "content",
            "var/lib/app/empty": "",
            "var/lib/with space/": "",
            "var/lib/link": "->../50%/x",
        }
    )
    tree.get("var/lib/app").mode = stat.S_IFDIR | 0o2750
    tree.get("var/lib/app").uid, tree.get("var/lib/app").gid = 990, 8
    tree.add("var/lib/app/pipe", Inode(stat.S_IFIFO | 0o600))
    return tree


def test_var_becomes_lines_and_factory_files() -> None:
    tree = sample()
    move_var(tree)
    assert tree.get("var").children == {}
    assert text_of(tree, LINES).splitlines()[1:] == [
        "d /var/lib 0755 0 0 -",
        "d /var/lib/app 2750 990 8 -",
        "f /var/lib/app/empty 0644 0 0 -",
        "p /var/lib/app/pipe 0600 0 0 -",
        "C /var/lib/app/state.db 0644 0 0 -",
        "L /var/lib/link - - - - ../50%%/x",
        'd "/var/lib/with space" 0755 0 0 -',
    ]
    assert text_of(tree, "usr/share/factory/var/lib/app/state.db") == "content"
    assert [e.path for e in read_tmpfiles(tree) if "with" in e.path] == ["/var/lib/with space"]


def test_systemd_makes_the_same_var_again(tmp_path: Path, needs_root: None) -> None:
    program = which("systemd-tmpfiles")
    if program is None:
        assert "CI" not in os.environ, "in CI a missing reference tool is a failure"
        pytest.skip("the host has no systemd-tmpfiles to ask")
    tree = sample()
    wanted = {path: node for path, node in FileTree(tree.get("var")).walk() if path not in (b"/", b"/run")}
    wanted = {path: (node.mode, node.uid, node.gid, node.target, node.read()) for path, node in wanted.items()}
    move_var(tree)
    for path in (LINES, "usr/share/factory/var/lib/app/state.db"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text_of(tree, path))
    (tmp_path / "var/log").mkdir(parents=True)
    for path in ("var", "var/log", LINES, "usr/share/factory/var/lib/app/state.db"):  # whatever the umask
        (tmp_path / path).chmod(0o644 if (tmp_path / path).is_file() else 0o755)
    subprocess.run([program, f"--root={tmp_path}", "--create", "--prefix=/var"], check=True, capture_output=True)
    made = {}
    for host in (tmp_path / "var").rglob("*"):
        info = host.lstat()
        target = str(host.readlink()).encode() if host.is_symlink() else b""
        content = host.read_bytes() if host.is_file() and not host.is_symlink() else b""
        made[b"/" + str(host.relative_to(tmp_path / "var")).encode()] = (
            info.st_mode, info.st_uid, info.st_gid, target, content,
        )  # fmt: skip
    assert made == wanted
