# SPDX-License-Identifier: Apache-2.0
"""From a FileTree to a list of nodes: what each inode will be, before any content is read.

The order is essential: nodes are in the order in which they will be numbered and, as far as packing allows, placed: all
entries of a directory together, sorted, then those of its subdirectories. It depends only on names.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from erofs_edge.erofs.attributes import Attribute, count_attributes
from erofs_edge.erofs.directory import Entries, Names, block_bytes, split_blocks
from erofs_edge.erofs.ondisk import (
    COMPACT_SIZE,
    EXTENDED_SIZE,
    FILE_TYPES,
    LAYOUT_FLAT_INLINE,
    LAYOUT_FLAT_PLAIN,
    MAP_HEADER,
    NAME_MAX,
    NULL_ADDR,
    SLOT_SIZE,
    epoch_parts,
)
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.errors import SourceError
from erofs_edge.tree import FileTree, Inode

NO_BLOCK = -1
TARGET_MAX = 4095
SIZE_END = 1 << 63  # kernels refuse larger files: their i_size is signed
UINT16, UINT32 = 0xFFFF, 0xFFFFFFFF
_NO_NAMES = frozenset((b".", b".."))
SLASH = 0x2F  # searching bytes for a number is many times faster than for other bytes
MAJOR_MAX, MINOR_MAX = 0xFFF, 0xFFFFF
MTIME_MIN, MTIME_END = -(10**9 << 63), 10**9 << 63  # nanoseconds; seconds are signed 64-bit numbers
KINDS = {
    stat.S_IFREG: "files",
    stat.S_IFDIR: "directories",
    stat.S_IFLNK: "symlinks",
    stat.S_IFCHR: "devices",
    stat.S_IFBLK: "devices",
    stat.S_IFIFO: "fifos",
    stat.S_IFSOCK: "sockets",
}
PACKED_PATH = b"(packed inode)"  # not a path in a tree: those start with '/'


class Node:
    """An inode of the image.

    size         bytes: content, symlink target, or directory blocks in use
    xattrs       the area after the inode
    layout       data layout; files get theirs when their content has been stored
    since        seconds after the image's own time, for compact inodes of 48-bit images
    i_u          first block (NO_BLOCK for none), device number or number of compressed blocks
    tail_size    bytes stored inline after the inode; `tail` holds them (for directories, only at the end)
    index        map header and index of a compressed file, or the table of a chunk-based one; it starts at a multiple
                 of `index_align` bytes
    body         inode, attributes, index and tail, if already encoded; then there is no `tail`
    names        a directory's names, block by block; `entries`: the blocks, if already made; `children`: the entries'
                 nodes in order, except "." and ".."
    nid          number and place at once; -1 until placed
    ino          i_ino, which kernels ignore; 0: the same as `number`
    lent         its data already is on an extra device, see loans.py
    """

    __slots__ = (
        "body", "children", "entries", "extended", "gid", "i_u", "index", "index_align", "ino", "inode", "layout",
        "lent", "links", "names", "nanoseconds", "nid", "number", "parent", "path", "seconds", "since", "size",
        "tail", "tail_size", "uid", "xattrs",
    )  # fmt: skip

    def __init__(
        self,
        inode: Inode,
        path: bytes,
        number: int,
        parent: Node | None,
        *,
        size: int = 0,
        links: int = 1,
        seconds: int = 0,
        nanoseconds: int = 0,
        extended: bool = False,
        xattrs: bytes = b"",
        i_u: int = NO_BLOCK,
        ino: int = 0,
    ) -> None:
        self.inode, self.path, self.number, self.parent = inode, path, number, parent
        self.size, self.links, self.seconds, self.nanoseconds = size, links, seconds, nanoseconds
        self.extended, self.xattrs, self.i_u, self.ino = extended, xattrs, i_u, ino
        self.uid = self.gid = self.since = self.tail_size = 0
        self.layout, self.nid, self.index_align, self.lent = LAYOUT_FLAT_PLAIN, -1, 8, False
        self.tail = self.index = self.body = b""
        self.names: Sequence[Names] = ()
        self.entries: Sequence[Entries] = ()
        self.children: Sequence[Node] = ()

    @property
    def head_size(self) -> int:
        """Bytes of inode and attributes."""
        return (EXTENDED_SIZE if self.extended else COMPACT_SIZE) + len(self.xattrs)

    @property
    def inline(self) -> bytes:
        """For a file, the bytes stored inline after the inode."""
        return self.tail or self.body[len(self.body) - self.tail_size :]

    @property
    def where(self) -> str:
        """Path and origin, for messages."""
        origin = f" (from {self.inode.origin})" if self.inode.origin else ""
        return self.path.decode("utf-8", "backslashreplace") + origin


class Plan:
    """All nodes, root first; the image's own time (`built_after`: seconds from then until it was made); how often each
    attribute is used; incompatible feature bits that the contents turned out to need; the packed inode, the last node
    if there is one; the byte of the image where the table of long attribute prefixes starts, and the table of `devices`
    devices, with room for `slots`.

    hot    nodes used first, according to a profile
    apart  paths of files of which a profile names parts
    kinds  number of files, directories and so on, as in ErofsInfo
    """

    def __init__(
        self,
        nodes: list[Node],
        epoch: int,
        epoch_ns: int,
        attributes: Counter[Attribute],
        *,
        built_after: int = 0,
        kinds: dict[str, int] | None = None,
    ) -> None:
        self.nodes, self.epoch, self.epoch_ns, self.attributes = nodes, epoch, epoch_ns, attributes
        self.built_after, self.kinds = built_after, kinds or {}
        self.incompat = self.prefixes_at = self.devices_at = self.devices = self.slots = 0
        self.packed: Node | None = None
        self.hot: list[Node] = []
        self.apart: frozenset[bytes] = frozenset()

    @property
    def files(self) -> Iterator[Node]:
        """Regular files with content, in the order in which they are stored."""
        every: Iterable[Node] = self.nodes
        if self.hot:
            first = dict.fromkeys(self.hot)
            every = chain(first, (node for node in self.nodes if node not in first))
        packed = self.packed
        return (
            n for n in every if n.size and n.inode.mode & 0o170000 == stat.S_IFREG and n is not packed and not n.lent
        )


def make_plan(tree: FileTree, options: WriteOptions, epoch: tuple[int, int] | None = None) -> Plan:
    """Plan an image. `epoch` is its own time, in seconds and nanoseconds, if options and tree are not to determine it.
    Raises SourceError, naming the path, for what no EROFS image can hold."""
    nodes = _collect(tree, options.block_size)
    _describe(nodes, options)
    seconds, nanoseconds = epoch if epoch is not None and options.epoch is None else _epoch(nodes, options)
    made = seconds
    if options.wide:
        seconds = _earliest(nodes, made, nanoseconds)
    _choose_form(nodes, (seconds, nanoseconds), options)
    root, *others = nodes
    if root.names[1:] and sum(-(-n.size // options.block_size) + 1 for n in others) > NULL_ADDR:
        root.extended = True  # its entries may end up after all data, but it is placed first
    sets = [node.inode.xattrs for node in nodes if node.inode.xattrs] if options.xattr_tolerance >= 0 else []
    attributes = count_attributes(sets)
    return Plan(nodes, seconds, nanoseconds, attributes, built_after=made - seconds, kinds=_kinds(nodes))


def _kinds(nodes: list[Node]) -> dict[str, int]:
    modes = [node.inode.mode >> 12 for node in nodes]
    kinds: Counter[str] = Counter()
    for mode in set(modes):
        kinds[KINDS[mode << 12]] += modes.count(mode)
    return dict(sorted(kinds.items()))


def reach(node: Node, block: int, options: WriteOptions) -> None:
    """Give an inode a form that can name a block: beyond 32 bits, compact ones can only if they have one link.

    Raises SourceError if that is not allowed.
    """
    if block < NULL_ADDR or node.extended or (node.links == 1 and not node.inode.is_dir):
        return
    if options.inode_form == "compact":
        raise SourceError(f"a compact inode cannot name block {block} and its links", where=node.where)
    node.extended = True


def is_tiny(node: Node, room: int) -> bool:
    """Whether the content fits into slots that the inode would need for the header of a fragment anyway.

    `room` is the space that inode and content may take together.
    """
    header = (node.head_size + 7 & ~7) + MAP_HEADER.size
    beside = node.head_size + node.size
    return beside <= room and -(-beside // SLOT_SIZE) <= -(-header // SLOT_SIZE)


def choose_flat_layout(node: Node, block_size: int, room: int) -> int:
    """Set layout and tail of an uncompressed node. Return the number of whole blocks that it takes elsewhere.

    An inline tail must not cross a block boundary: `room` is the space left for it in the inode's block, in bytes.
    """
    blocks, rest = divmod(node.size, block_size)
    node.i_u = NO_BLOCK
    if rest and rest <= room:
        node.layout, node.tail_size = LAYOUT_FLAT_INLINE, rest
        return blocks
    node.layout, node.tail_size = LAYOUT_FLAT_PLAIN, 0
    return blocks + bool(rest)


def _collect(tree: FileTree, block_size: int) -> list[Node]:
    """Return all nodes in order, with links counted and directories with their names. Hard links are one node, at the
    first of their names."""
    root = Node(tree.root, b"/", 1, None, links=2)
    root.parent = root
    nodes, known, number = [root], {id(tree.root): root}, 1
    stack, every = [root], [b"-"]  # a valid one, in case there are no others
    while stack:
        directory = stack.pop()
        if not directory.inode.is_dir:
            raise SourceError("the root of an image must be a directory", where=directory.where)
        prefix = directory.path if directory.path == b"/" else directory.path + b"/"
        children = directory.inode.children
        names = sorted(children)
        every += names
        named: list[Node] = []
        below = []
        for name in names:
            inode = children[name]
            node = known.get(id(inode))
            if node is None:
                number += 1
                node = known[id(inode)] = Node(inode, prefix + name, number, directory)
                nodes.append(node)
                if inode.mode & 0o170000 == stat.S_IFDIR:
                    below.append(node)
            elif inode.is_dir:
                raise SourceError(f"the same directory is also at {node.where}", where=_text(prefix + name))
            else:
                node.links += 1
            named.append(node)
        for node in below:
            node.links = 2
        directory.links += len(below)
        directory.children = named
        directory.names = split_blocks(names, block_size)
        directory.size = block_size * (len(directory.names) - 1) + block_bytes(directory.names[-1])
        below.reverse()
        stack += below
    _check_names(nodes, every)
    return nodes


def _check_names(nodes: list[Node], names: list[bytes]) -> None:
    """Raises SourceError for an invalid file name. `names` are all names in the directories among the nodes."""
    together = b"".join(names)
    lengths = set(map(len, names))
    is_odd = 0 in together or SLASH in together or min(lengths) < 1 or max(lengths) > NAME_MAX
    if not is_odd and _NO_NAMES.isdisjoint(names):
        return
    for node in nodes:
        for name in node.inode.children:
            if not 1 <= len(name) <= NAME_MAX or SLASH in name or 0 in name or name in _NO_NAMES:
                raise SourceError(f"bad file name {name!r}", where=_text(node.path.rstrip(b"/") + b"/" + name))


def _describe(nodes: list[Node], options: WriteOptions) -> None:
    """Set owner, time and size of each node as requested. Raises SourceError for what an inode cannot hold."""
    keeps_owners, epoch = not options.all_root, options.epoch or 0
    is_fixed = options.epoch is not None and options.times == "fixed"
    latest = MTIME_END if options.epoch is None or options.times == "keep" else epoch * 10**9
    for node in nodes:
        inode = node.inode
        mtime, kind = inode.mtime_ns, inode.mode & ~0o7777
        is_file = kind == stat.S_IFREG
        content = inode.content
        if is_file and content is not None:
            node.size = content.size
        if (
            not (is_file or kind == stat.S_IFDIR)
            or (inode.uid | inode.gid) >> 16
            or not 0 <= mtime < MTIME_END
            or node.size >= SIZE_END
        ):
            _check(node)  # skipped for most, where it could not find anything wrong
            _describe_other(node)
        if keeps_owners:
            node.uid, node.gid = inode.uid, inode.gid
        if is_fixed or mtime > latest:
            node.seconds = epoch
        else:
            node.seconds, node.nanoseconds = epoch_parts(mtime)


def _describe_other(node: Node) -> None:
    inode = node.inode
    kind = inode.mode & 0o170000
    if kind == stat.S_IFLNK:
        node.size = len(inode.target)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        major, minor = inode.rdev
        node.i_u = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
    elif kind not in (stat.S_IFREG, stat.S_IFDIR):
        node.i_u = 0


def _check(node: Node) -> None:
    inode = node.inode
    mode = inode.mode
    if mode & 0o170000 not in FILE_TYPES or mode > UINT16:
        raise SourceError(f"unknown kind of file, mode {mode:o}", where=node.where)
    if inode.is_symlink and (not 1 <= len(inode.target) <= TARGET_MAX or b"\0" in inode.target):
        raise SourceError(f"symlink target of {len(inode.target)} bytes, or with a NUL", where=node.where)
    if inode.is_file and inode.size >= SIZE_END:
        raise SourceError(f"file of {inode.size} bytes, which is more than an inode can store", where=node.where)
    major, minor = inode.rdev
    if not 0 <= major <= MAJOR_MAX or not 0 <= minor <= MINOR_MAX:
        raise SourceError(f"device number {major}:{minor} out of range", where=node.where)
    if not 0 <= inode.uid <= UINT32 or not 0 <= inode.gid <= UINT32:
        raise SourceError(f"owner {inode.uid}:{inode.gid} out of range", where=node.where)
    if not MTIME_MIN <= inode.mtime_ns < MTIME_END:
        raise SourceError(f"mtime {inode.mtime_ns} out of range", where=node.where)


def _epoch(nodes: list[Node], options: WriteOptions) -> tuple[int, int]:
    """Return the time shared by compact inodes: the requested one, or the most frequent, the earliest of equals."""
    if options.epoch is not None:
        return options.epoch, 0
    times = Counter((n.seconds, n.nanoseconds) for n in nodes if n.seconds >= 0)
    return min(times, key=lambda t: (-times[t], t), default=(0, 0))


def _earliest(nodes: list[Node], made: int, nanoseconds: int) -> int:
    """Return the time in seconds from which compact inodes of 48-bit images count: that of the earliest node, or the
    image's own if earlier, but not so early that the image's own time could not be expressed."""
    first = max(0, made - UINT32)
    return min([made, *(n.seconds for n in nodes if n.nanoseconds == nanoseconds and n.seconds >= first)])


def _choose_form(nodes: list[Node], epoch: tuple[int, int], options: WriteOptions) -> None:
    """Decide which inodes are extended. Raises SourceError if one has to be but must not."""
    seconds, nanoseconds = epoch
    form, wide = options.inode_form, options.wide
    for node in nodes:
        own_time = node.seconds != seconds or node.nanoseconds != nanoseconds
        if wide and node.nanoseconds == nanoseconds:
            own_time = not 0 <= node.seconds - seconds <= UINT32
        if own_time or node.size > UINT32 or node.uid | node.gid | node.links > UINT16:
            if form == "compact":
                hint = "mostly it is a time of its own: -T, or --ignore-mtime, give all files the same"
                raise SourceError(
                    "a compact inode cannot hold its size, owner, links or time", where=node.where, hint=hint
                )
            node.extended = True
        elif form == "extended":
            node.extended = True
        elif wide:
            node.since = node.seconds - seconds


def _text(path: bytes) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
