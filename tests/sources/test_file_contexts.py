# SPDX-License-Identifier: Apache-2.0
"""SELinux labels by selabel's rules: the same as mkfs.erofs with libselinux gives."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.erofs.read import Image
from erofs_edge.errors import SourceError
from erofs_edge.sources.directory import scan
from erofs_edge.sources.file_contexts import SELINUX, FileContexts, apply_file_contexts, read_file_contexts
from erofs_edge.tree import FileTree, Inode

RULES = """\
# comment

/.*                    u:r:default
/etc(/.*)?             u:r:etc
/etc/passwd            u:r:literal
/etc/pass.*            u:r:regex_after_a_literal
/usr/.*        -d      u:r:directory
/usr/bin/.*    --      u:r:bin
/usr/.*        -l      u:r:link
/usr/bin/sh            u:r:shell
/usr/bin/\\[            u:r:bracket
/usr/lib/.*\\.so        u:r:lib
/usr/.*so              u:r:later_though_shorter
/usr/pipe      -p      <<none>>
/a\\.b                  u:r:escaped
/a.b                   u:r:any
/usr/[[:lower:]]+/x    u:r:class
/usr/s[^[:digit:]]r    u:r:negated
/o+ptional?            u:r:count
/(left)|(right)        u:r:either
/left|/other           u:r:top_level
/system/.*             u:r:system
/system                u:r:system_root
/system/usr/bin/.*     u:r:system_bin
"""
REGULAR = stat.S_IFREG | 0o644


def make_source(root: Path) -> None:
    for folder in ("etc/conf.d", "usr/bin", "usr/lib/x", "usr/s1r"):
        (root / folder).mkdir(parents=True)
    for name in ("etc/passwd", "etc/passwd-", "etc/conf.d/a", "usr/bin/sh", "usr/bin/[", "usr/lib/x/z.so", "a.b", "axb",
                 "usr/sbr", "ooptiona", "optional", "left", "right", "other", "usr/lib/x/with space", "é"):  # fmt: skip
        (root / name).touch()
    (root / "usr/bin/bash").symlink_to("sh")
    import os

    os.mkfifo(root / "usr/pipe")
    os.link(root / "usr/bin/sh", root / "zz-linked")


@pytest.mark.oracle
@pytest.mark.parametrize("mount_point", ["/", "/system", "system/"])
def test_the_same_labels_as_mkfs(oracle: Callable[[str], str], tmp_path: Path, mount_point: str) -> None:
    make_source(tmp_path / "src")
    (tmp_path / "fc").write_text(RULES)
    argv = [oracle("mkfs.erofs-1.9"), f"--file-contexts={tmp_path / 'fc'}", f"--mount-point={mount_point}", "--quiet"]
    subprocess.run([*argv, str(tmp_path / "i"), str(tmp_path / "src")], check=True)
    ours = scan(tmp_path / "src")
    labelled = apply_file_contexts(ours, read_file_contexts(tmp_path / "fc"), mount_point)
    with Image(tmp_path / "i") as image:
        theirs = {path: inode.xattrs for path, inode in image.tree().walk()}
    assert {path: inode.xattrs for path, inode in ours.walk()} == theirs
    assert labelled == len(theirs) - 1 - (mount_point == "/")  # the linked name, and the fifo where it has no label


def test_what_the_source_was_labelled_goes() -> None:
    tree = FileTree()
    tree.add("kept", Inode(REGULAR, xattrs={SELINUX: b"old\0", b"user.k": b"v"}))
    tree.add("none", Inode(REGULAR, xattrs={SELINUX: b"old\0"}))
    shared = {SELINUX: b"old"}
    tree.add("x", Inode(REGULAR, xattrs=shared))
    assert apply_file_contexts(tree, FileContexts("/kept a:b:c\n/none <<none>>", "fc")) == 1
    assert {p: i.xattrs for p, i in tree.walk() if i.is_file} == {
        b"/kept": {SELINUX: b"a:b:c", b"user.k": b"v"},
        b"/none": {},
        b"/x": {},
    }
    assert shared == {SELINUX: b"old"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/alone", "1 fields"),
        ("/a -- u:r:x more", "4 fields"),
        ("/a -x u:r:x", "unknown type of file '-x'"),
        ("/a(b u:r:x", "bad regular expression"),
        ("/a[b u:r:x", "bad regular expression"),
        ("/*{9,1} u:r:x", "bad regular expression"),
        ("/[[:word:]] u:r:x", "unknown character class"),
        ("/a\\ u:r:x", "bad regular expression"),
    ],
)
def test_bad_lines_are_named(line: str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        FileContexts(f"# first\n\n{line}\n", "dir/fc")
    assert caught.value.where == "dir/fc:3"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        read_file_contexts(tmp_path / "none")


names = st.lists(st.sampled_from(["a", "b", "ab", "a.b", "x[", "(", "é"]), min_size=1, max_size=4)
atoms = st.sampled_from(["/a", "/b", "a", "b", ".", ".*", "(/.*)?", "a?", "[ab]", r"\.", "(a|b)", "|/a", "+"])


@given(
    paths=st.lists(names, max_size=6), rules=st.lists(st.tuples(st.lists(atoms, min_size=1, max_size=5)), max_size=8)
)
def test_looking_up_by_prefix_changes_no_answer(paths: list[list[str]], rules: list[tuple[list[str]]]) -> None:
    """Against the plain way: every rule tried on every path."""
    import re

    lines, plain = [], []
    for number, (parts,) in enumerate(rules):
        regex = "/" + "".join(parts).lstrip("+?")
        try:
            pattern = re.compile(f"^{regex}$".encode(), re.S)
        except re.error:
            continue
        literal = not set(regex.replace(r"\.", "")) & set(".^$?*+|[({")
        lines.append(f"{regex} label{number}")
        plain.append((literal, number, pattern))
    contexts = FileContexts("\n".join(lines), "fc")
    for parts in paths:
        path = ("/" + "/".join(parts)).encode()
        matching = [(literal, number) for literal, number, pattern in plain if pattern.search(path)]
        expected = b"label%d" % max(matching)[1] if matching else None
        assert contexts.label(path, REGULAR) == expected
