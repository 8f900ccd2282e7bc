# SPDX-License-Identifier: Apache-2.0
"""What new files already have is not set again by processes: the result is the same wherever it is written."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from treediff import diff, scan

from erofs_edge.erofs import extract as extraction
from erofs_edge.erofs.extract import extract
from erofs_edge.erofs.extracted import Allowance, Batch, ExtractReport, Writer, owner_of_new_files
from erofs_edge.erofs.folders import Folders, opened
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.write import write_image
from erofs_edge.tree import BytesContent, FileTree, Inode

US = os.geteuid(), os.getegid()
FILE_MODES = (0o000, 0o400, 0o600, 0o640, 0o644, 0o666, 0o755, 0o777, 0o1644, 0o2755, 0o4755, 0o7777)
FOLDER_MODES = (0o000, 0o500, 0o555, 0o700, 0o755, 0o1777, 0o2775, 0o7777)


def made_tree() -> FileTree:
    """Folders with and without folders and hard links in them; modes, owners and times of all kinds."""
    tree = FileTree(Inode(stat.S_IFDIR | 0o751, *US, 5))
    for number, mode in enumerate(FILE_MODES):
        for owner in (US, (US[0], 12), (7, 8)):
            content = BytesContent(b"%o" % mode * number) if number else None
            tree.add(f"f{mode:04o}-{owner[1]}", Inode(stat.S_IFREG | mode, *owner, number * 10**9 + 7, content=content))
    for number, mode in enumerate(FOLDER_MODES):
        for owner in (US, (7, 8)):
            for kind in ("empty", "leaf", "many", "parent", "linked"):
                name = f"{kind}{mode:04o}-{owner[1]}"
                tree.add(name, Inode(stat.S_IFDIR | mode, *owner, number * 10**9 + 3))
                for at in range({"empty": 0, "many": 40}.get(kind, 2)):
                    tree.add(f"{name}/{at}", Inode(stat.S_IFREG | 0o644, *US, 11, content=BytesContent(b"content")))
                if kind == "parent":
                    tree.add(f"{name}/below", Inode(stat.S_IFDIR | 0o755, *US, 12))
                if kind == "linked":
                    twice = Inode(stat.S_IFREG | 0o644, *US, 11)
                    tree.add(f"{name}/first", twice)
                    tree.add(f"{name}/again", twice)
                    tree.add(f"{name}/link", Inode(stat.S_IFLNK | 0o777, *owner, 13, target=b"0"))
    return tree


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("images") / "image"
    write_image(made_tree(), out, WriteOptions(compression="none"))
    return out


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def restrict(folder: Path) -> None:
    """Give a folder a default ACL that leaves others, and a group's writing, out of everything created in it."""
    entries = [(1, 7), (4, 5), (32, 0)]  # owner, group, others
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, perm, 0xFFFFFFFF) for tag, perm in entries)
    os.setxattr(folder, "system.posix_acl_default", acl)


def inherit_group(folder: Path) -> None:
    """Let everything created in a folder belong to its group."""
    os.chown(folder, -1, 12)
    folder.chmod(0o2777)


RULES = {"none": lambda _: None, "ACL": restrict, "group": inherit_group}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("owners", [True, False])
def test_a_destination_with_rules_of_its_own(
    rule: str, exists: bool, owners: bool, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_WORTH_FORKING", 0)
    monkeypatch.setattr(extraction, "may_fork", lambda: True)
    RULES[rule](tmp_path)
    if exists:
        (tmp_path / "forked").mkdir()
        (tmp_path / "here").mkdir()
    with Image(path) as image:
        forked = extract(image, tmp_path / "forked", owners=owners, jobs=2)
        here = extract(image, tmp_path / "here", owners=owners, jobs=1)
        have = scan(tmp_path / "forked")
        assert diff(have, scan(tmp_path / "here")) == []
        if rule != "ACL":  # the others inherit it
            assert diff(have, image.tree(), owners=owners) == []
    assert forked == here and not forked.skipped
    assert forked.hard_links == 2 * len(FOLDER_MODES)


def opened_owner(folder: Path) -> tuple[int, int] | None:
    with opened(folder) as fd:
        assert isinstance(fd, int)
        return owner_of_new_files(fd)


def test_what_new_files_have_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened_owner(tmp_path) is None  # there is a umask
    os.umask(0)
    for name, rule in RULES.items():
        (tmp_path / name).mkdir()
        rule(tmp_path / name)
    assert opened_owner(tmp_path / "none") == US
    assert opened_owner(tmp_path / "ACL") is None
    assert opened_owner(tmp_path / "group") == (US[0], 12)
    assert all(os.listdir(tmp_path / name) == [] for name in RULES)
    plain = os.open

    def without(name: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return plain(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", without)
    assert opened_owner(tmp_path / "none") is None


def test_only_what_differs_is_set(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, object]] = []
    monkeypatch.setattr(os, "chown", lambda target, *ids: calls.append(("chown", ids)))
    monkeypatch.setattr(os, "fchmod", lambda target, mode: calls.append(("fchmod", mode)))
    with Image(path) as image, opened(tmp_path) as root:
        writer = Writer(image, Folders(root), True, Allowance(1 << 20, 0))
        writer.be_alone()
        entries = [entry for entry in image.listdir(image.inode(image.root_nid)) if entry.name.startswith(b"f")]
        report = ExtractReport()
        writer.write(Batch(b"", [entry[:] for entry in entries]), report)
    special = [mode for mode in FILE_MODES if mode > 0o777]
    assert report.files == len(entries) == 3 * len(FILE_MODES)
    assert sorted(mode for name, mode in calls if name == "fchmod") == sorted(special + 2 * list(FILE_MODES))
    assert [ids for name, ids in calls if name == "chown"] == [ids for _ in FILE_MODES for ids in ((US[0], 12), (7, 8))]
