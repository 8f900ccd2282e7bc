# SPDX-License-Identifier: Apache-2.0
"""Random trees, options and changes from a seed: combinations of several features that nobody would think of."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path
from typing import Any

from treediff import diff
from writer_check import fsck_differences, kernel_differences
from writer_trees import ACL, NS, file, mixed, noise, text

from erofs_edge.erofs.check import check
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.profile import Use
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.rules import CompressionRule
from erofs_edge.erofs.write import write_image
from erofs_edge.errors import UsageError
from erofs_edge.toolbox.prefix import find
from erofs_edge.tree import FileTree, Inode

SIZES = (0, 1, 40, 511, 513, 1023, 2500, 4050, 4095, 4097, 5000, 8100, 16_000, 16_385, 30_000, 40_960)
LEVELS: dict[str, list[int | None]] = {
    "none": [None],
    "lz4": [None],
    "lz4hc": [None, 3, 9, 12],
    "zstd": [None, 1],
    "deflate": [1],
    "lzma": [0],
}
RULES = (
    CompressionRule(match="*.so", compression="zstd", level=1),
    CompressionRule(match="*.gz", compression="none"),
    CompressionRule(match="*.ko", compression="deflate", level=1),
    CompressionRule(match="*.py", compression="lz4hc", level=3),
)


def random_tree(rng: random.Random) -> tuple[FileTree, list[str]]:
    """Return (a tree, the paths of its files): equal files, parts of others, every kind of inode."""
    tree, paths = FileTree(Inode(stat.S_IFDIR | 0o755, mtime_ns=1_600_000_000 * NS)), []
    common = mixed(rng.choice([5000, 50_000, 90_000]), rng.randrange(99))
    for number in range(rng.choice([3, 8, 14])):
        data = _content(rng, number, common)
        xattrs = {b"user.own": b"v" * rng.choice([0, 30, 300, 3000])} if rng.random() < 0.3 else {}
        if rng.random() < 0.3:
            xattrs[b"security.selinux"] = b"system_u:object_r:t%d_t:s0" % rng.randrange(2)
        inode = file(
            data, rng.choice([0o644, 0o4755]), mtime_ns=rng.choice([0, number, 1_600_000_000]) * NS, xattrs=xattrs
        )
        inode.uid = rng.choice([0, 1000, 70_000])
        folder = "/".join(rng.choice("ab") for _ in range(rng.randrange(3)))
        path = f"{folder}/f{number}{rng.choice(['', '.so', '.gz', '.ko', '.py', '.dtb'])}".lstrip("/")
        names = [path, f"{path}-link"] if rng.random() < 0.1 else [path]
        for name in names:
            tree.add(name, inode)
        paths += names
    tree.add("kinds/symlink", Inode(stat.S_IFLNK | 0o777, target=b"t" * rng.choice([1, 100, 4000])))
    tree.add("kinds/device", Inode(stat.S_IFBLK | 0o660, rdev=(8, 70_000)))
    tree.add("kinds/pipe", Inode(stat.S_IFIFO | 0o644))
    for number in range(rng.choice([0, 0, 60])):
        tree.add(f"many/{'n' * rng.randrange(90)}{number}", file(b"%d" % (number % 5)))
    if rng.random() < 0.5:
        tree.root.children[b"kinds"].xattrs = {b"system.posix_acl_default": ACL}
    return tree, paths


def _content(rng: random.Random, number: int, common: bytes) -> bytes:
    size = rng.choice(SIZES)
    kind = rng.choice(["text", "noise", "mixed", "common", "part", "holes", "twin", "twin", "dtb", "ends"])
    if kind == "common":
        return common
    if kind == "part":
        return noise(rng.randrange(9000), number) + common[rng.randrange(len(common)) :]
    if kind == "holes":
        return b"a" * rng.randrange(5000) + bytes(rng.randrange(90_000)) + text(rng.randrange(3000), 3)
    if kind == "dtb":
        return b"\xd0\x0d\xfe\xed" + text(size, number)
    if kind == "ends":
        return bytes(20_000) + noise(rng.randrange(440, 500, 4), 1) + noise(rng.randrange(440, 500, 4), 2) + bytes(6000)
    if kind == "twin":
        return rng.choice([noise, text, mixed])(size, 3)
    return {"text": text, "noise": noise, "mixed": mixed}[kind](size, number % 7)


def random_options(rng: random.Random, paths: list[str]) -> dict[str, Any]:
    """Return keyword arguments of WriteOptions, which itself rejects invalid combinations."""
    block = rng.choice([512, 1024, 4096, 4096, 4096, 8192, 16_384, 65_536])
    codec = rng.choice(list(LEVELS))
    options: dict[str, Any] = {"block_size": block, "compression": codec, "level": rng.choice(LEVELS[codec])}
    if rng.random() < 0.7:
        options["pcluster"] = min(1 << 20, block * rng.choice([1, 2, 4, 5, 16]))
    if rng.random() < 0.3:
        options["rules"] = tuple(rng.sample(RULES, rng.randrange(1, 4)))
    packed = rng.choice(["none", "none", "tails", "all"]) if codec != "none" else "none"
    options["fragments"] = packed
    if packed != "none" and rng.random() < 0.4:
        options["packed_pcluster"] = block * rng.choice([1, 2, 4])
    if packed == "none" and rng.random() < 0.25:
        options |= {"chunk_size": block * rng.choice([1, 2]), "chunk_indexes": rng.random() < 0.5}
    if packed == "none" and rng.random() < 0.3:
        some = rng.sample(paths, min(len(paths), 4))
        parts = [Use(os.fsencode(f"/{path}"), rng.randrange(0, 30_000, 4096), 90_000) for path in some]
        options["profile"] = tuple(rng.choice([part, part.path]) for part in parts)
    for name, share in (("ztailpacking", 0.4 * (codec != "none")), ("dedupe", 0.5), ("full_index", 0.2), ("wide", 0.2)):
        options[name] = rng.random() < share
    options["inline_tails"] = rng.random() < 0.8
    options["inode_form"] = rng.choice(["auto", "auto", "auto", "extended"])
    options["xattr_tolerance"] = rng.choice([2, 0, 100])
    options["xattr_filter"] = rng.random() < 0.7
    options["xattr_prefixes"] = rng.choice([(), (b"user.o", b"security.sel")])
    options["fingerprints"] = rng.random() < 0.15
    return options


def change(rng: random.Random, tree: FileTree, paths: list[str]) -> None:
    """Apply a typical update: files are removed, changed in the middle, or renamed."""
    for path in rng.sample(paths, min(len(paths), 4)):
        folder = tree.root
        *parents, name = os.fsencode(path).split(b"/")
        for parent in parents:
            folder = folder.children[parent]
        inode = folder.children.pop(name)
        way = rng.choice(["gone", "changed", "changed", "renamed"])
        if way == "renamed":
            folder.children[name + b"-renamed"] = inode
        elif way == "changed":
            data = inode.content.read(0, inode.size) if inode.content else b""
            at = rng.randrange(len(data) + 1)
            data = data[:at] + noise(rng.randrange(1, 3000), at) + data[at + rng.choice([0, 100]) :]
            folder.children[name] = file(data, mtime_ns=inode.mtime_ns, xattrs=dict(inode.xattrs))
    tree.add("new", file(mixed(rng.randrange(40_000), rng.randrange(99))))


def wrong(seed: int, folder: Path) -> list[str]:
    """Return what is wrong with the images of this seed: a first one and, where possible, an update of it. They must
    have the expected content, be clean, and have the same bytes when made by several threads or with themselves as
    baseline."""
    rng = random.Random(seed)
    tree, paths = random_tree(rng)
    options = random_options(rng, paths)
    try:
        WriteOptions(**options)
    except UsageError:
        return []
    first, again, new = folder / "first", folder / "again", folder / "new"
    write_image(tree, first, WriteOptions(jobs=1, **options))
    found = _unlike(first, tree, "first")
    write_image(tree, again, WriteOptions(jobs=3, **options))
    found += ["jobs: other bytes"] * (again.read_bytes() != first.read_bytes())
    if options["wide"]:
        return found
    write_image(tree, again, WriteOptions(baseline=first, **options))
    found += ["the same again: other bytes"] * (again.read_bytes() != first.read_bytes())
    change(rng, tree, paths)
    write_image(tree, new, WriteOptions(baseline=first, compact=rng.random() < 0.2, **options))
    found += _unlike(new, tree, "update")
    write_image(tree, again, WriteOptions(baseline=new, **options))
    return found + ["the same update again: other bytes"] * (again.read_bytes() != new.read_bytes())


def peers_see(seed: int, folder: Path) -> list[str]:
    """Return what fsck.erofs 1.9 and the kernel read differently in the first image of this seed; needs root."""
    rng = random.Random(seed)
    tree, paths = random_tree(rng)
    options = random_options(rng, paths)
    if options["block_size"] > 4096:
        return []
    try:
        write_image(tree, folder / "first", WriteOptions(jobs=1, **options))
    except UsageError:
        return []
    found = fsck_differences(lambda name: str(find(name, host=False)), folder / "first", tree)
    # the tool omits a hole at the end of a chunk-based file, also in images by mkfs.erofs
    found = [f"fsck.erofs: {line}" for line in found if ": size is" not in line]
    return found + [f"kernel: {line}" for line in kernel_differences(folder / "first", tree)]


def _unlike(path: Path, tree: FileTree, what: str) -> list[str]:
    with Image(path) as image:
        found = [str(line) for line in diff(image.tree(), tree)]
    found += [str(finding) for finding in check(path).findings]
    return [f"{what}: {line}" for line in found]
