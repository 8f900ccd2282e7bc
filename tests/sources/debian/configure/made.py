# SPDX-License-Identifier: Apache-2.0
"""Small trees and packages for the tests of configuration."""

from __future__ import annotations

import stat

from erofs_edge.sources.debian.configure.accounts import Account, Accounts, Group
from erofs_edge.sources.debian.deb import Package
from erofs_edge.tree import BytesContent, FileTree, Inode

PASSWD = "root:*:0:0:root:/root:/bin/bash\nsync:*:4:65534:sync:/bin:/bin/sync\nnobody:*:65534:65534:nobody:/x:/y\n"
GROUP = "root:*:0:\nmail:*:8:\nshadow:*:42:\nutmp:*:43:\nstaff:*:50:root\nusers:*:100:\nnogroup:*:65534:\n"
MASTERS = {"usr/share/base-passwd/passwd.master": PASSWD, "usr/share/base-passwd/group.master": GROUP}


def tree_with(files: dict[str, str | bytes]) -> FileTree:
    """Files by path; a value that starts with '->' makes a symlink, a path that ends in '/' a directory."""
    tree = FileTree()
    for path, value in files.items():
        data = value if isinstance(value, bytes) else value.encode()
        if path.endswith("/"):
            tree.directory(path)
        elif data.startswith(b"->"):
            tree.add(path, Inode(stat.S_IFLNK | 0o777, target=data[2:]))
        else:
            tree.add(path, Inode(stat.S_IFREG | 0o644, content=BytesContent(data)))
    return tree


def text_of(tree: FileTree, path: str) -> str:
    node = tree.get(path)
    assert node is not None and node.is_file, path
    return node.read().decode()


def link_of(tree: FileTree, path: str) -> str | None:
    node = tree.get(path)
    return node.target.decode() if node is not None and node.is_symlink else None


def package(name: str, version: str = "1", **scripts: str) -> Package:
    return Package(name, version, "arm64", scripts={key: text.encode() for key, text in scripts.items()})


def some_accounts() -> Accounts:
    return Accounts(
        {"root": Account("root", 0, 0), "web": Account("web", 33, 34)},
        {"root": Group("root", 0), "mail": Group("mail", 8), "web": Group("web", 34)},
    )
