# SPDX-License-Identifier: Apache-2.0
"""What a second version adds to the first: `fs build --base` with chunks and with compressed files. Bytes only.

usage: python benchmarks/layers.py [--tree DIR] [--update DIR] [--scratch DIR]

The tree (default: benchmarks/corpus.py's) and its newer version (default: `update` beside it). 'both' is the number of
bytes stored for the two versions, images and blobs; 'changed' counts the files of the newer version that the older one
does not have unchanged. The newer version is read back from its devices and compared with its source.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

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


def row(name: str, options: WriteOptions, older: Path, newer: Path, folder: Path) -> str:
    """Return one line of the table. Raises SystemExit if the newer version is not as expected."""
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
    return f"| {name} | {sizes[0]} | {sizes[1]} | {ratio:.3f}x | {changed} |"


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--update", type=Path)
    parser.add_argument("--scratch", type=Path, help="folder for images (default: a temporary one)")
    given = parser.parse_args()
    tree = given.tree or _corpus()
    newer = given.update or tree.with_name("update")
    print("| stored as | first version | second adds | both to the first | changed |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=given.scratch) as name:
        for way, options in WAYS.items():
            print(row(way, options, tree, newer, Path(name)), flush=True)


def _corpus() -> Path:
    sys.path.insert(0, str(Path(__file__).parent))
    from corpus import corpus

    return corpus()


if __name__ == "__main__":
    main()
