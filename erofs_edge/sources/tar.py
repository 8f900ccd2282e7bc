# SPDX-License-Identifier: Apache-2.0
"""tar archives (plain, gzip, xz, zstd, bzip2) as a FileTree whose contents stay in the archive.

A plain archive is referenced in place; a compressed one is unpacked into the cache once, under its own hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from erofs_edge.errors import SourceError, VerificationError
from erofs_edge.names import fsdecode
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.decompress import codec_of_file, decompressed, reader
from erofs_edge.sources.tarball import Member, read_members
from erofs_edge.tree import Content, FileContent, FileTree, Inode, SparseContent

INDEX = "tar-index-1"
DATA = "tar-data"


class Unpacked(msgspec.Struct, array_like=True):
    """The cache's record of an unpacked archive: its hash and its members."""

    sha256: str
    members: list[Member]


def read_tar(path: Path, cache: Cache, *, sha256: str | None = None) -> FileTree:
    """The tree of an archive. Owners are the numeric ids of its headers; times have nanoseconds.

    With `sha256` (hex) the archive must have that hash, else VerificationError. Raises SourceError naming file and
    member if the archive is damaged or hostile.
    """
    where = str(path)
    key = cache.digest(path) if sha256 is not None else ""
    if sha256 is not None and key != sha256.lower():
        raise VerificationError(f"sha256 is {key}, the manifest says {sha256}", where=where)
    archive, kept = open_archive(path, cache, where, key)
    return tree_of(kept.members, archive, where)


def open_archive(path: Path, cache: Cache, where: str, key: str = "") -> tuple[Path, Unpacked]:
    """The uncompressed form of an archive (in place, or in the cache) and its members.

    `key` is the file's sha256 if known. The hash of an uncompressed archive is left empty. Raises SourceError.
    """
    codec = codec_of_file(path, where)
    if codec == "none":
        return path, Unpacked("", read_members(path, where))
    key = key or cache.digest(path)
    unpacked = cache.derived_path(DATA, key)
    kept = cache.load_record(INDEX, key, Unpacked)
    if kept is None or cache.proved(unpacked, kept.sha256) is None:
        kept = unpack_archive(cache, unpacked, path, start=0, size=path.stat().st_size, codec=codec, where=where)
        cache.store_record(INDEX, key, kept)
    return unpacked, kept


def tree_of(members: Iterable[Member], archive: Path, where: str, origin: str = "") -> FileTree:
    """Members as a tree. A directory may occur twice (the later metadata counts), nothing else may.

    Raises SourceError for a member that occurs twice, has a path through a file or a dangling link, or is a hard link
    to something that does not exist.
    """
    tree = FileTree()
    seen: dict[bytes, Inode] = {}
    folder: bytes | None = None  # members of one directory are usually adjacent
    parent = tree.root
    for member in members:
        try:
            if member.mode:
                inode = inode_of(member, archive, origin or where)
            elif (earlier := seen.get(member.link)) is None or earlier.is_dir:
                raise SourceError(f"hard link to {fsdecode(member.link)!r}, which is no earlier file")
            else:
                inode = earlier
            if not member.path:
                tree.add(b"", inode)
                folder = None
                continue
            head, _, name = member.path.rpartition(b"/")
            if head != folder:
                folder, parent = head, directory_of(tree, member.path, inode.origin)
            before = parent.children.get(name)
            if before is not None and not (before.is_dir and inode.is_dir):
                raise SourceError("comes twice")
            if before is not None:
                inode.children = before.children
            parent.children[name] = seen[member.path] = inode
        except SourceError as error:
            raise SourceError(f"member {fsdecode(member.path)!r}: {error}", where=where) from error
    return tree


def directory_of(tree: FileTree, path: bytes, origin: str) -> Inode:
    """The parent directory of `path`; missing ones are created.

    Symlinks in the path are followed inside the tree. Raises SourceError for a dangling one.
    """
    node = tree.root
    here = b""
    for part in path.split(b"/")[:-1]:
        here += b"/" + part
        child = node.children.get(part)
        if child is None:
            child = node.children[part] = Inode(0o40755, origin=origin)
        elif not child.is_dir:
            followed = tree.get(here, follow=True) if child.is_symlink else None
            if followed is None or not followed.is_dir:
                raise SourceError(f"{fsdecode(here)} is no directory")
            child = followed
        node = child
    return node


def inode_of(member: Member, archive: Path, origin: str) -> Inode:
    """The inode of a member that is not a hard link."""
    content: Content | None = None
    if member.extents is not None:
        starts, total = [], 0
        for _, length in member.extents:
            starts.append(total)
            total += length
        stored = FileContent(archive, total, member.start)
        content = SparseContent(stored, member.size, tuple(member.extents), tuple(starts))
    elif member.size:
        content = FileContent(archive, member.size, member.start)
    return Inode(
        member.mode,
        member.uid,
        member.gid,
        member.mtime_ns,
        member.rdev,
        member.link,
        content,
        dict(member.xattrs) if member.xattrs else {},  # a copy: labels are added to the inode's own
        origin=origin,
    )


def unpack_archive(cache: Cache, final: Path, path: Path, *, start: int, size: int, codec: str, where: str) -> Unpacked:
    """Unpack a compressed archive (`size` bytes at `start` of a file) to `final` in the cache; list its members."""
    digest = hashlib.sha256()
    with cache.writing(final) as out, path.open("rb", buffering=0) as file:
        file.seek(start)
        for piece in decompressed(reader(file, size), codec, where):
            digest.update(piece)
            out.write(piece)
    try:
        return Unpacked(digest.hexdigest(), read_members(final, where))
    except SourceError:
        cache.drop(final)
        raise
