# SPDX-License-Identifier: Apache-2.0
"""`fs build` against mkfs.erofs 1.9 for data that cannot be compressed and does not show that in its first bytes.

usage: python benchmarks/noise.py [--mkfs PATH] [--runs N] [--mode NAME …] [--scratch DIR]

30 MB of noise: in one file, in files of 16 KiB, and alternating with as much text (stretches of 100 KB, so 60 MB).
Prints a markdown table for docs/benchmarks.md: CPU time (user and system) and wall time, each the minimum of N runs in
turn, and bytes. Both images are read back and compared.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

from common import arguments, heads, row, versus
from fs_build import COMMON, OURS, build, environment
from same import compare

from erofs_edge.toolbox.prefix import find

SIZE = 30_000_000
STRETCH = 100_000
SMALL = 16 << 10
MODES = {
    "lz4hc,9 64K": ["lz4hc,9", "65536"],
    "lz4hc,9 4K": ["lz4hc,9", "4096"],
    "lz4hc,12 64K": ["lz4hc,12", "65536"],
    "zstd,3 64K": ["zstd,3", "65536"],
    "deflate,6 64K": ["deflate,6", "65536"],
    "lzma,6 64K": ["lzma,6", "65536"],
}


def words(rng: random.Random, size: int) -> bytes:
    """Return text that compresses to about half its size."""
    known = [b"%x" % rng.getrandbits(rng.choice([8, 16, 32])) for _ in range(2000)]
    return b" ".join(rng.choices(known, k=size // 3))[:size]


def make(folder: Path) -> list[Path]:
    """Make the trees."""
    rng = random.Random(1)
    large, small, mixed = trees = [folder / name for name in ("one file", "files of 16 KiB", "in turn with text")]
    for tree in trees:
        tree.mkdir()
    (large / "noise").write_bytes(rng.randbytes(SIZE))
    for number in range(SIZE // SMALL):
        (small / f"{number:04}").write_bytes(rng.randbytes(SMALL))
    stretches = (rng.randbytes(STRETCH) + words(rng, STRETCH) for _ in range(SIZE // STRETCH))
    (mixed / "mixed").write_bytes(b"".join(stretches))
    return trees


def main() -> None:
    parser = arguments(__doc__, runs=5)
    parser.add_argument("--mkfs", default=os.environ.get("EROFS_EDGE_MKFS"), help="mkfs.erofs (default: the prefix's)")
    parser.add_argument("--mode", action="append", choices=list(MODES), help="default: all")
    options = parser.parse_args()
    mkfs = options.mkfs or str(find("mkfs.erofs-1.9", host=False))
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        env, trees = environment(folder), make(folder)
        ours, theirs = folder / "ours.erofs", folder / "theirs.erofs"
        heads("noise", "mode", "CPU s, ours / mkfs.erofs", "wall s", "image MB")
        for tree in trees:
            for mode, (codec, pcluster) in ((mode, MODES[mode]) for mode in options.mode or MODES):
                we = [*OURS, str(tree), "-o", str(ours), "-z", codec, "-C", pcluster, *COMMON, "--no-cache"]
                they = [mkfs, f"-z{codec}", f"-C{pcluster}", *COMMON, "--workers=4", "--quiet", str(theirs), str(tree)]
                runs = [(build(they, theirs, env), build(we, ours, env)) for _ in range(options.runs)]
                compare(ours, theirs)
                peer, own = (min(run[side].cpu for run in runs) for side in (0, 1))
                wall = " / ".join(f"{min(run[side].wall for run in runs):.2f}" for side in (1, 0))
                sizes = f"{ours.stat().st_size / 1e6:.3f} / {theirs.stat().st_size / 1e6:.3f}"
                row(tree.name, mode, versus(own, peer), wall, sizes)


if __name__ == "__main__":
    main()
