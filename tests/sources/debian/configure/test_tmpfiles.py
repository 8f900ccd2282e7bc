# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import stat

import pytest
from sources.debian.configure.made import link_of, some_accounts, text_of, tree_with

from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.configure.tmpfiles import apply_tmpfiles, read_tmpfiles
from erofs_edge.tree import FileTree


def applied(lines: str, **files: str) -> tuple[FileTree, list[str]]:
    tree = tree_with({"usr/lib/tmpfiles.d/x.conf": lines, **{k.replace("__", "/"): v for k, v in files.items()}})
    return tree, apply_tmpfiles(tree, some_accounts())


def rights(tree: FileTree, path: str) -> tuple[int, int, int]:
    node = tree.get(path)
    assert node is not None, path
    return stat.S_IMODE(node.mode), node.uid, node.gid


def test_what_belongs_to_the_running_system_is_left_alone() -> None:
    tree, left = applied(
        "d /run/x\nd /var/lib/x\nf /tmp/x\nz /dev/null 0600\nL /var/lock - - - - ../run/lock\nd /varnish\n"
    )
    assert [tree.get(p) for p in ("run", "var", "tmp", "dev")] == [None] * 4
    assert tree.get("varnish").is_dir and left == []


def test_directories_and_their_rights() -> None:
    tree, _ = applied(
        "d /etc/credstore 0700 root root\nQ /home 0755 - - -\nd /srv/www 2775 web mail 10d\ne /etc/none 0700\n",
        etc__credstore__a="",
    )
    assert rights(tree, "etc/credstore") == (0o700, 0, 0)
    assert rights(tree, "home") == (0o755, 0, 0)
    assert rights(tree, "srv/www") == (0o2775, 33, 8)
    assert tree.get("etc/none") is None


def test_links_with_and_without_plus() -> None:
    tree, _ = applied(
        "L+ /etc/mtab - - - - ../proc/self/mounts\n"
        "L! /etc/resolv.conf - - - - ../run/stub\n"
        "L /etc/kept - - - - /new\n"
        "L+ /etc/replaced - - - - /new\n"
        "L? /etc/absent - - - - /nowhere\n"
        "L? /etc/present - - - - kept\n"
        "L /etc/from-factory\n",
        etc__kept="old",
        etc__replaced="old",
    )
    assert link_of(tree, "etc/mtab") == "../proc/self/mounts"
    assert link_of(tree, "etc/resolv.conf") == "../run/stub"
    assert text_of(tree, "etc/kept") == "old"
    assert link_of(tree, "etc/replaced") == "/new"
    assert tree.get("etc/absent") is None and link_of(tree, "etc/present") == "kept"
    assert link_of(tree, "etc/from-factory") == "/usr/share/factory/etc/from-factory"


def test_files_copies_pipes_and_devices() -> None:
    tree, _ = applied(
        'f /etc/new 0600 web - - a \\x41 "quoted"\\n\n'
        "f /etc/old - - - - unwanted\n"
        "f+ /etc/truncated - - - - fresh\n"
        "w /etc/old - - - - written\n"
        "w /etc/missing - - - - nothing\n"
        "C /etc/skel2 - - - - /usr/share/skel\n"
        "p /etc/fifo 0620\n"
        "c /etc/zero 0666 - - - 1:5\n",
        etc__old="old",
        etc__truncated="old",
        usr__share__skel__sub__file="deep",
    )
    assert text_of(tree, "etc/new") == 'a A "quoted"\n' and rights(tree, "etc/new") == (0o600, 33, 0)
    assert text_of(tree, "etc/old") == "written" and text_of(tree, "etc/truncated") == "fresh"
    assert tree.get("etc/missing") is None
    assert text_of(tree, "etc/skel2/sub/file") == "deep"
    assert tree.get("etc/skel2/sub/file") is not tree.get("usr/share/skel/sub/file")
    assert stat.S_ISFIFO(tree.get("etc/fifo").mode) and rights(tree, "etc/fifo")[0] == 0o620
    assert stat.S_ISCHR(tree.get("etc/zero").mode) and tree.get("etc/zero").rdev == (1, 5)


def test_globs_recursion_and_masked_modes() -> None:
    tree, _ = applied(
        "Z /etc/deep ~0750 web web\nd /etc/deep/made\n",
        etc__deep__sub__plain="",
    )
    tree2, _ = applied(
        "z /etc/*/a.key 0640 - mail\n", **{"etc/keys/a.key": "", "etc/keys/b.txt": "", "etc/x/y/a.key": ""}
    )
    assert rights(tree2, "etc/keys/a.key") == (0o640, 0, 8)
    assert rights(tree2, "etc/keys/b.txt") == rights(tree2, "etc/x/y/a.key") == (0o644, 0, 0)
    assert rights(tree, "etc/deep") == (0o750, 33, 34)
    assert rights(tree, "etc/deep/sub/plain") == (0o640, 33, 34)
    assert rights(tree, "etc/deep/made") == (0o750, 33, 34)


def test_lines_that_only_a_running_system_can_try_are_named() -> None:
    tree, left = applied(
        "f^ /etc/motd.d/x - - - - login.motd\nd /etc/%m\na+ /etc/x - - - - d:group:adm:r-x\n"
        "r! /etc/passwd.lock\nx /etc/y\nR /etc/%b\n"
    )
    assert tree.get("etc") is None
    assert sorted(left) == [
        "/usr/lib/tmpfiles.d/x.conf:2: d /etc/%m",
        "/usr/lib/tmpfiles.d/x.conf:3: a+ /etc/x",
    ]


@pytest.mark.parametrize("line", ["d", "d relative", "? /etc/x", "c /etc/x - - - - one", "d /etc/x 0755 nobody-knows"])
def test_bad_lines_have_their_place(line: str) -> None:
    with pytest.raises(SourceError) as caught:
        applied(f"d /etc/fine\n{line}\n")
    assert caught.value.where == "/usr/lib/tmpfiles.d/x.conf:2"


def test_overriding_files() -> None:
    tree = tree_with({"usr/lib/tmpfiles.d/a.conf": "d /etc/a\n", "etc/tmpfiles.d/a.conf": "d /etc/b\n"})
    assert [entry.path for entry in read_tmpfiles(tree)] == ["/etc/b"]
