# SPDX-License-Identifier: Apache-2.0
"""Whether two EROFS images have the same content, file by file.

usage: python benchmarks/same.py IMAGE IMAGE

Names, modes, owners, times, link targets, sizes and data are compared; the layout may differ.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from erofs_edge.erofs.read import Image

PIECE = 4 << 20  # bytes read at a time


def contents(path: Path) -> Iterator[tuple[object, ...]]:
    """Yield what an image holds, in order."""
    with Image(path) as image:
        digests: dict[int, str] = {}
        for name, node in image.tree().walk():
            key = id(node)
            if node.is_file and key not in digests:
                state = hashlib.sha256()
                for offset in range(0, node.size, PIECE):
                    assert node.content is not None
                    state.update(node.content.read(offset, PIECE))
                digests[key] = state.hexdigest()
            yield name, node.mode, node.uid, node.gid, node.mtime_ns, node.target, node.size, digests.get(key)


def compare(ours: Path, theirs: Path) -> None:
    """Stop unless both images have the same content."""
    for a, b in zip(contents(ours), contents(theirs), strict=True):
        if a != b:
            raise SystemExit(f"the images differ: {a} against {b}")


if __name__ == "__main__":
    compare(Path(sys.argv[1]), Path(sys.argv[2]))
