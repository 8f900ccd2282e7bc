# SPDX-License-Identifier: Apache-2.0
"""What a baseline keeps in place: `fs build --baseline` over real and over generated updates.

usage: python benchmarks/stable_layout.py [--tree DIR] [--update DIR] [--updates N] [--scratch DIR]

First the tree is updated to its newer version, then come N (20) generated updates in a row, each of which changes,
grows, removes and adds some percent of the files. Each image is compared with a fresh one, built without a baseline.

'in place' counts the blocks that differ from the old image's at the same place; 'floor' counts those of a fresh image
of the new tree whose content is nowhere in the old image: what would have to be sent if blocks could be anywhere.
Prints a markdown table.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from pathlib import Path

from common import arguments, blocks, heads, row, trees_of
from same import compare

from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.info import ErofsInfo
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.write import write_image
from erofs_edge.sources.directory import scan
from erofs_edge.tree import BytesContent, FileTree, Inode

SHARE = 50  # of the files are changed, one in so many; half as many grow, go and come
LARGEST = 4 << 20  # bytes of a file that generated updates touch


def show(name: str, old: Path, new: Path, fresh: Path, info: ErofsInfo, seconds: float) -> None:
    """Print the row of an update. Stop unless both new images have the same content."""
    compare(new, fresh)
    before, after = blocks(old), blocks(fresh)
    floor = len(set(after) - set(before))
    changed = info.changed_blocks or 0
    row(
        name,
        f"{changed} ({100 * changed / info.blocks:.2f} %)",
        f"{floor} ({100 * floor / len(after):.2f} %)",
        f"{changed / max(1, floor):.2f}x",
        f"{new.stat().st_size / fresh.stat().st_size:.4f}x",
        f"{100 * info.free_blocks / info.blocks:.2f} %",
        f"{seconds:.1f}",
    )


def updated(tree: FileTree, seed: int) -> FileTree:
    """Return the tree with some files changed in place, grown, removed, or added; directories stay."""
    rng = random.Random(seed)
    found = [(path, node) for path, node in tree.walk() if node.is_file and 0 < node.size <= LARGEST]
    few = len(found) // SHARE

    def content(node: Inode) -> bytearray:
        assert node.content is not None
        return bytearray(node.content.read(0, node.size))

    for path, node in rng.sample(found, few):
        data = content(node)
        for _ in range(1 + len(data) // 20_000):
            data[rng.randrange(len(data))] ^= 1 + rng.randrange(255)
        tree.add(path, node.replaced(content=BytesContent(bytes(data))))
    for path, node in rng.sample(found, few // 2):
        tree.add(path, node.replaced(content=BytesContent(bytes(content(node)) + rng.randbytes(node.size // 8 + 1))))
    for number, (path, node) in enumerate(rng.sample(found, few // 2)):
        tree.add(path + b".new-%d-%d" % (seed, number), node.replaced(content=BytesContent(bytes(content(node))[::-1])))
    for path, _ in rng.sample(found, few // 2):
        tree.remove(path)
    return tree


def generated(tree: FileTree, first: Path, count: int, folder: Path, options: WriteOptions) -> None:
    old = first
    for number in range(1, count + 1):
        tree = updated(tree, number)
        new, fresh = folder / f"update-{number}", folder / "fresh"
        start = time.monotonic()
        info = write_image(tree, new, options.replaced(baseline=old))
        seconds = time.monotonic() - start
        write_image(tree, fresh, options)
        show(f"generated {number}", old, new, fresh, info, seconds)
        if old != first:
            old.unlink()
        old = new


def main() -> None:
    parser = arguments(__doc__, trees=2)
    parser.add_argument("--updates", type=int, default=20, help="generated ones (default: 20)")
    given = parser.parse_args()
    tree, newer = trees_of(given)
    heads("update", "in place", "floor", "ratio", "image to a fresh one", "free", "s")
    with tempfile.TemporaryDirectory(dir=given.scratch) as name:
        folder = Path(name)
        with CompressionCache(folder / "cache") as cache:
            options = WriteOptions(
                compression="lz4hc", level=9, pcluster=65536, epoch=0, times="fixed", all_root=True, cache=cache
            )
            first = folder / "first"
            write_image(scan(tree), first, options)
            again = folder / "again"
            write_image(scan(tree), again, options.replaced(baseline=first))
            subprocess.run(["cmp", str(first), str(again)], check=True)
            new, fresh = folder / "new", folder / "fresh"
            start = time.monotonic()
            info = write_image(scan(newer), new, options.replaced(baseline=first))
            seconds = time.monotonic() - start
            write_image(scan(newer), fresh, options)
            show(f"{tree.name} → {newer.name}", first, new, fresh, info, seconds)
            generated(scan(tree), first, given.updates, folder, options)


if __name__ == "__main__":
    main()
