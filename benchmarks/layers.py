# SPDX-License-Identifier: Apache-2.0
"""What a second version adds to the first: `fs build --base` with chunks and with compressed files. Bytes only.

usage: python benchmarks/layers.py [--tree DIR] [--update DIR] [--scratch DIR]

The tree (default: benchmarks/corpus.py's) and its newer version (default: `update` beside it). 'both' is the number of
bytes stored for the two versions, images and blobs; 'changed' counts the files of the newer version that the older one
does not have unchanged. The newer version is read back from its devices and compared with its source.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from common import arguments, heads, row, trees_of

from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.write import write_image
from erofs_edge.sources.directory import scan

PIECE = 1 << 24  # bytes compared at a time
WAYS: dict[str, WriteOptions] = {
    "chunks of 4K": WriteOptions(compression="none", chunk_size=4096),
    "chunks of 16K": WriteOptions(compression="none", chunk_size=16384),
    "chunks of 64K": WriteOptions(compression="none", chunk_size=65536),
    "lz4hc 64K": WriteOptions(compression="lz4hc", pcluster=65536),
    "zstd,3 64K": WriteOptions(compression="zstd", level=3, pcluster=65536),
}


def stored(options: WriteOptions, older: Path, newer: Path, folder: Path) -> list[object]:
    """Return the cells for one way. Stop if the newer version is not as expected."""
    sizes, changed = [], 0
    devices: tuple[Path, ...] = ()
    for number, source in enumerate((older, newer)):
        image, blob = folder / f"{number}", folder / f"{number}.blob"
        if number:
            options = options.replaced(bases=(folder / "0",), base_devices=(folder / "0.blob",))
        info = write_image(scan(source), image, options.replaced(blob=blob))
        sizes.append(image.stat().st_size + blob.stat().st_size)
        changed, devices = info.uncompressed - info.lent_bytes, info.devices
    compare(folder / "1", devices, newer)
    ratio = sum(sizes) / sizes[0]
    return [*sizes, f"{ratio:.3f}x", changed]


def compare(image: Path, devices: tuple[Path, ...], source: Path) -> None:
    """Compare every file of an image with its source."""
    with Image(image, devices=devices) as opened:
        tree = opened.tree()
        for path, inode in scan(source).walk():
            found = tree.get(path)
            if found is None or found.size != inode.size:
                sys.exit(f"{path!r} is not what it should be")
            for at in range(0, inode.size if inode.content else 0, PIECE):
                assert inode.content is not None and found.content is not None
                if inode.content.read(at, PIECE) != found.content.read(at, PIECE):
                    sys.exit(f"{path!r} differs behind byte {at}")


def main() -> None:
    options = arguments(__doc__, trees=2).parse_args()
    tree, newer = trees_of(options)
    heads("stored as", "first version", "second adds", "both to the first", "changed")
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        for way, how in WAYS.items():
            row(way, *stored(how, tree, newer, Path(name)))


if __name__ == "__main__":
    main()
