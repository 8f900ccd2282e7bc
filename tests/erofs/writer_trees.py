# SPDX-License-Identifier: Apache-2.0
"""Trees for the writer's tests: one with everything in it, and hypothesis strategies for the rest."""

from __future__ import annotations

import random
import stat
import struct
from dataclasses import dataclass

from hypothesis import strategies as st

from erofs_edge.tree import BytesContent, Content, FileTree, Inode

NS = 1_000_000_000
BORDERS = sorted({b + d for b in (0, 512, 1024, 4096, 8192, 16384, 65536, 131072) for d in (-1, 0, 1) if b + d >= 0})
# group::r-x and one named user, mask r-x: with it, the group bits of the mode are the mask
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *e)
    for e in [(1, 7, 0xFFFFFFFF), (2, 4, 1000), (4, 5, 0xFFFFFFFF), (16, 5, 0xFFFFFFFF), (32, 5, 0xFFFFFFFF)]
)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


@dataclass(frozen=True)
class Repeated:
    """`size` bytes of repeated `unit`, with `noise` random bytes at the front: large files at no cost."""

    size: int
    unit: bytes = b"\0"
    noise: int = 0

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        unit = self.unit * (1 + (length + len(self.unit)) // len(self.unit))
        data = unit[offset % len(self.unit) :][:length]
        front = random.Random(self.noise).randbytes(self.noise)[offset : offset + length]
        return front + data[len(front) :]


def text(size: int, seed: int = 0) -> bytes:
    """Compressible bytes."""
    rng = random.Random(seed)
    words = [b"%x" % rng.getrandbits(rng.choice([8, 16, 32])) for _ in range(200)]
    lines = b" ".join(rng.choices(words, k=max(1, min(size, 60_000) // 4)))
    return (lines * (size // len(lines) + 1))[:size]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def mixed(size: int, seed: int = 0) -> bytes:
    """Compressible and incompressible stretches of odd lengths."""
    rng = random.Random(seed)
    out = bytearray()
    while len(out) < size:
        n = rng.choice([300, 4096, 5000, 20_000, 70_000])
        out += rng.choice([text, noise])(n, rng.randrange(1000)) + bytes(rng.choice([0, 100, 9000]))
    return bytes(out[:size])


def file(data: bytes | Content, mode: int = 0o644, **fields: object) -> Inode:
    content = BytesContent(data) if isinstance(data, bytes) else data
    return Inode(stat.S_IFREG | mode, content=content, **fields)  # type: ignore[arg-type]


def rich_tree() -> FileTree:
    """Return a tree with every kind of inode and every feature of the writer, a few megabytes."""
    tree = FileTree(Inode(stat.S_IFDIR | 0o755, 7, 8, 1_600_000_000 * NS + 5))
    label = {b"security.selinux": b"system_u:object_r:bin_t:s0\0"}
    for i, size in enumerate(BORDERS):
        tree.add(f"sizes/text-{size}", file(text(size, i), mtime_ns=NS * i))
        tree.add(f"sizes/noise-{size}", file(noise(size, i), 0o4755, xattrs=label))
        tree.add(f"sizes/mixed-{size}", file(mixed(size, i), 0o600))
    twin = mixed(300_000, 99)
    for name in ("a", "b"):
        tree.add(f"twins/{name}", file(twin))
        tree.add(f"twins/flat-{name}", file(noise(10_000, 5)))
        tree.add(f"twins/inline-{name}", file(noise(10_000, 5), xattrs={b"user.long": b"v" * 3500}))
    tree.add("twins/extended", file(twin, mtime_ns=-NS, xattrs={b"user.other": b"1"}))
    tree.add("large/zeros", file(Repeated(34 << 20)))
    tree.add("large/words", file(Repeated((16 << 20) + 4097, text(5000))))
    tree.add("large/raw-front", file(Repeated((16 << 20) + 100_000, b"ab", noise=3_000_001)))
    linked = file(text(9000), uid=70_000, gid=1 << 31, mtime_ns=-(1 << 31) * NS + NS + 1)
    for i in range(5):
        tree.add(f"links/{i}/name", linked)
    tree.add("kinds/char", Inode(stat.S_IFCHR | 0o666, rdev=(1, 3)))
    tree.add("kinds/block", Inode(stat.S_IFBLK | 0o660, 0, 6, rdev=(300, 70_000)))
    tree.add("kinds/fifo", Inode(stat.S_IFIFO | 0o644))
    tree.add("kinds/socket", Inode(stat.S_IFSOCK | 0o755, mtime_ns=(1 << 33) * NS + 999_999_999))
    tree.add("kinds/short", Inode(stat.S_IFLNK | 0o777, target=b"x"))
    tree.add("kinds/long", Inode(stat.S_IFLNK | 0o777, target=b"t/" * 2047 + b"e"))
    tree.add("kinds/linked-symlink", link := Inode(stat.S_IFLNK | 0o777, target=b"../\xff", xattrs=label))
    tree.add("kinds/linked-symlink-too", link)
    tree.add("names/\udcff\udcfe", file(b"not utf-8"))
    for name in (b"!", b"-", b"..a", b".a", b"n" * 255, b"new\nline", b" "):
        tree.add(b"names/" + name, file(name))
    tree.add("attributes/acl", file(b"acl", 0o754, xattrs={b"system.posix_acl_access": ACL}))
    tree.add("attributes/default", Inode(stat.S_IFDIR | 0o755, xattrs={b"system.posix_acl_default": ACL}))
    tree.add("attributes/capability", file(text(5000), 0o755, xattrs={b"security.capability": CAPABILITY}))
    tree.add("attributes/many", file(b"", xattrs={b"user.%03d" % i: b"v" * (i + 1) for i in range(40)}))
    tree.add("attributes/names", file(b"n", xattrs={b"user." + b"n" * 250: b"1", b"trusted.t": b"\0\1"}))
    tree.add("empty", Inode(stat.S_IFDIR | 0o1777, mtime_ns=-1))
    return tree


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    size = draw(st.one_of(st.sampled_from(BORDERS), st.integers(0, 200_000)))
    kind = draw(
        st.sampled_from([text, noise, mixed, lambda n, _s: bytes(n), lambda n, s: (b"\xfd7zXZ\0" + noise(n, s))[:n]])
    )
    return kind(size, draw(st.integers(0, 50)))


NAMES = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.binary(min_size=250, max_size=255),
    st.text(min_size=1, max_size=20).map(lambda t: t.encode()),
).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b".."))
TIMES = st.one_of(st.sampled_from([0, 1, -1, 1_700_000_000 * NS]), st.integers(-(1 << 31) * NS + NS, (1 << 33) * NS))
IDS = st.one_of(st.integers(0, 65_535), st.integers(65_536, 0xFFFFFFFE))
PERMISSIONS = st.integers(0, 0o7777)
XATTRS = st.one_of(
    st.just({}),
    st.dictionaries(
        st.sampled_from([b"user.a", b"user.b" * 20, b"security.test", b"trusted.x"]),
        st.one_of(st.sampled_from([b"", b"common", b"v" * 4000]), st.binary(max_size=300)),
        max_size=4,
    ),
)


@st.composite
def inodes(draw: st.DrawFn) -> Inode:
    kind = draw(st.sampled_from([stat.S_IFREG] * 6 + [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO]))
    permissions = 0o777 if kind == stat.S_IFLNK else draw(PERMISSIONS)
    inode = Inode(kind | permissions, draw(IDS), draw(IDS), draw(TIMES))
    if kind == stat.S_IFREG:
        inode.content = BytesContent(draw(contents()))
        inode.xattrs = draw(XATTRS)
    elif kind == stat.S_IFLNK:
        inode.target = draw(st.binary(min_size=1, max_size=300).filter(lambda t: b"\0" not in t))
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        inode.rdev = draw(st.tuples(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF)))
    return inode


@st.composite
def trees(draw: st.DrawFn) -> FileTree:
    """Draw some directories, some inodes in them, some of those under several names."""
    tree = FileTree(Inode(stat.S_IFDIR | 0o755, draw(IDS), draw(IDS), draw(TIMES), xattrs=draw(XATTRS)))
    directories = [tree.root]
    for _ in range(draw(st.integers(0, 5))):
        parent = draw(st.sampled_from(directories))
        child = Inode(stat.S_IFDIR | draw(PERMISSIONS), draw(IDS), draw(IDS), draw(TIMES), xattrs=draw(XATTRS))
        name = draw(NAMES)
        if name not in parent.children:
            parent.children[name] = child
            directories.append(child)
    made = draw(st.lists(inodes(), max_size=8))
    for inode in made:
        for name in draw(st.lists(NAMES, min_size=1, max_size=2, unique=True)):
            draw(st.sampled_from(directories)).children.setdefault(name, inode)
    parent = draw(st.sampled_from(directories))
    for i in range(draw(st.sampled_from([0, 0, 3, 150]))):
        parent.children.setdefault(b"%d" % i + b"n" * (i * 7 % 90), file(b"%d" % i))
    return tree
