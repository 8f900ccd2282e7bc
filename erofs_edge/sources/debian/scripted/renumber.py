# SPDX-License-Identifier: Apache-2.0
"""Give system accounts the numbers that the lock pins.

Scripts take the next free number, so one more package shifts the numbers of all others, and what the device keeps on
its data partition would then belong to someone else. passwd and group contain names, everything else numbers: owners of
files and entries of access control lists (include/uapi/linux/posix_acl_xattr.h) are translated.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.configure.accounts import Ids, base_accounts
from erofs_edge.sources.debian.configure.ids import SYSTEM_IDS
from erofs_edge.tree import BytesContent, FileTree

ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
ACL_VERSION = 2
ACL_USER, ACL_GROUP = 0x02, 0x08


def renumber(tree: FileTree, pinned: Ids) -> list[str]:
    """Give accounts their pinned numbers, in place; return the accounts made only by scripts and not pinned ('user x').

    A number pinned for another name is taken from its present holder, which gets the next free number. Raises
    SourceError if account files or an access control list are malformed.
    """
    accounts = base_accounts(tree, configured=True)
    uids = _translation({u.name: u.uid for u in accounts.users.values()}, pinned.users)
    gids = _translation({g.name: g.gid for g in accounts.groups.values()}, pinned.groups)
    for path, inode in tree.walk():
        inode.uid, inode.gid = uids.get(inode.uid, inode.uid), gids.get(inode.gid, inode.gid)
        for name in ACLS:
            if name in inode.xattrs:
                inode.xattrs[name] = _acl(inode.xattrs[name], uids, gids, path)
    _rewrite(tree, "etc/passwd", (uids, gids))
    _rewrite(tree, "etc/group", (gids,))
    masters = base_accounts(tree)
    return [
        *(f"user {n}" for n, u in accounts.users.items() if _loose(n, u.uid, pinned.users, masters.users)),
        *(f"group {n}" for n, g in accounts.groups.items() if _loose(n, g.gid, pinned.groups, masters.groups)),
    ]


def _loose(name: str, number: int, pinned: Mapping[str, int], fixed: Mapping[str, object]) -> bool:
    return number in SYSTEM_IDS and name not in pinned and name not in fixed


def _translation(have: Mapping[str, int], pinned: Mapping[str, int]) -> dict[int, int]:
    """Present number → new number, for those that change."""
    wanted = {number: pinned[name] for name, number in have.items() if name in pinned}
    taken = {*wanted.values(), *(number for number in have.values() if number not in wanted), *pinned.values()}
    free = (number for number in SYSTEM_IDS if number not in taken)
    for number in sorted(set(have.values()) - wanted.keys()):
        if number in pinned.values():
            wanted[number] = _next(free)
    return {old: new for old, new in wanted.items() if old != new}


def _next(free: Iterator[int]) -> int:
    number = next(free, None)
    if number is None:
        raise SourceError("no free id is left for an account that a maintainer script made")
    return number


def _rewrite(tree: FileTree, path: str, translations: tuple[dict[int, int], ...]) -> None:
    """Translate the numbers of passwd(5) or group(5), which begin at the third field."""
    node = tree.get(path)
    if node is None or not node.is_file:
        return
    lines = []
    for line in node.read().split(b"\n"):
        fields = line.split(b":")
        for at, numbers in enumerate(translations, 2):
            if len(fields) > at and fields[at].isdigit():
                fields[at] = b"%d" % numbers.get(int(fields[at]), int(fields[at]))
        lines.append(b":".join(fields))
    node.content = BytesContent(b"\n".join(lines))


def _acl(value: bytes, uids: Mapping[int, int], gids: Mapping[int, int], path: bytes) -> bytes:
    if len(value) < 4 or len(value) % 8 != 4 or struct.unpack_from("<I", value)[0] != ACL_VERSION:
        raise SourceError("malformed access control list", where=path.decode(errors="replace"))
    out = [value[:4]]
    for tag, rights, number in struct.iter_unpack("<HHI", value[4:]):
        numbers = uids if tag == ACL_USER else gids if tag == ACL_GROUP else {}
        out.append(struct.pack("<HHI", tag, rights, numbers.get(number, number)))
    return b"".join(out)
