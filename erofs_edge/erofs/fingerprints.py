# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of file contents: with them, the kernel shares pages of equal files of several images.

The mount option is inode_share, since Linux 7.0. The value is an attribute without a namespace, which no system call
shows: "sha256:" and the 32 bytes of the hash. Its full name is in the table of long prefixes, where the superblock
refers to it (ishare_xattr_prefix_id).

Source: ``fs/erofs/xattr.c`` (erofs_xattr_fill_inode_fingerprint); images by mkfs.erofs 1.9.4 --xattr-inode-digest.
"""

from __future__ import annotations

from erofs_edge.erofs.contents import digest
from erofs_edge.erofs.ondisk import FINGERPRINT
from erofs_edge.tree import FileTree, Inode

PREFIX = b"sha256:"


def with_fingerprints(tree: FileTree) -> FileTree:
    """Return a copy of the tree in which every non-empty file has its fingerprint. The original is not changed.

    Raises SourceError if a file cannot be read.
    """
    copies: dict[int, Inode] = {}
    made = FileTree(_copy(tree.root, b"/"))
    for path, inode in tree.walk():
        if path == b"/":
            continue
        if id(inode) not in copies:
            copies[id(inode)] = _copy(inode, path)
        made.add(path, copies[id(inode)])
    return made


def _copy(inode: Inode, path: bytes) -> Inode:
    xattrs = dict(inode.xattrs)
    if inode.is_file and inode.size and inode.content is not None:
        xattrs[FINGERPRINT] = PREFIX + digest(inode.content, path.decode("utf-8", "backslashreplace"))
    return inode.replaced(xattrs=xattrs, children={})
