# SPDX-License-Identifier: Apache-2.0
"""A generated tree and successive updates of it: files changed, grown, shrunk, added, removed and renamed."""

from __future__ import annotations

import random
import stat
from dataclasses import dataclass, replace
from functools import cached_property

from writer_trees import file, mixed, noise, text

from erofs_edge.tree import FileTree, Inode

SIZES = [0, 40, 700, 3000, 4096, 9000, 20_000, 50_000]
KINDS = {"text": text, "mixed": mixed, "noise": noise}


@dataclass(frozen=True)
class File:
    """Content is generated from the seed; `patch` changes a byte in the middle."""

    kind: str
    size: int
    seed: int
    patch: int = 0

    @cached_property
    def content(self) -> bytes:
        data = bytearray(KINDS[self.kind](self.size, self.seed))
        if self.patch and data:
            data[len(data) // 2] ^= self.patch
        return bytes(data)


Files = dict[str, File]


def first_files(seed: int, count: int) -> Files:
    rng = random.Random(seed)
    folders = ["", *(f"d{i}/" for i in range(8)), *(f"d{i % 8}/e{i}/" for i in range(count // 20))]
    return {f"{rng.choice(folders)}f{i}": _new(rng) for i in range(count)}


def update(files: Files, seed: int) -> Files:
    """Update about a tenth of the files."""
    rng = random.Random(seed)
    files = dict(files)
    names = sorted(files)
    for name in rng.sample(names, len(names) // 20):
        files[name] = _new(rng)
    for name in rng.sample(names, len(names) // 50):
        files[name] = replace(files[name], patch=rng.randrange(1, 256))
    for name in rng.sample(names, len(names) // 50):
        if name in files:
            files[name + "-renamed"] = files.pop(name)
    for name in rng.sample(names, len(names) // 50):
        files.pop(name, None)
    for i in range(len(names) // 50):
        files[f"{rng.choice(names).rpartition('/')[0]}/new-{seed}-{i}"] = _new(rng)
    return files


def tree_of(files: Files) -> FileTree:
    tree = FileTree()
    labels = [{b"security.selinux": b"system_u:object_r:t%d_t:s0\0" % i} for i in range(12)]
    for number, (name, one) in enumerate(sorted(files.items())):
        label = labels[one.seed % len(labels)]
        tree.add(name, file(one.content, xattrs=label))
        if number % 25 == 0:
            tree.add(f"links/{one.seed}", Inode(stat.S_IFLNK | 0o777, target=b"../" + name.encode()))
    for number in range(130):  # a directory with blocks of its own
        tree.add(f"many/{number}-{'n' * 60}", file(b"%d" % number))
    return tree


def _new(rng: random.Random) -> File:
    size = rng.choice(SIZES)
    return File(rng.choice(list(KINDS)), size + rng.randrange(max(1, size // 3)), rng.randrange(1 << 30))
