# SPDX-License-Identifier: Apache-2.0
"""The cost of verification: `verity verify` against a plain sha256, the tree against the build, `verify` of a build.

usage: python benchmarks/verity.py [--image FILE] [--tree FOLDER] [--out FOLDER] [--runs N] [--scratch DIR]

Prints a markdown table for docs/benchmarks.md, medians of N runs in turn. CPU time is the figure that does not depend
on other load. The build is that of the stock board, signed with its development key.
"""

from __future__ import annotations

import filecmp
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import EDGE, Run, arguments, build_board, heads, image_in, measure, medians, row, tree_of, versus
from fec import VERITY

from erofs_edge.toolbox.prefix import find
from erofs_edge.verity.tree import append

SALT = bytes(range(32))
MEANWHILE = {"lz4hc,9 64K": ["lz4hc", "9"], "lz4 64K": ["lz4", ""]}
BUILD = """
import sys
from pathlib import Path
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.write import write_image
from erofs_edge.sources.directory import scan
from erofs_edge.verity.meanwhile import Meanwhile
from erofs_edge.verity.tree import append
tree, image, codec, level, salt = sys.argv[1:]
level = int(level) if level else None
options = WriteOptions(compression=codec, level=level, pcluster=65536, epoch=0, times="fixed", all_root=True)
if not salt:
    write_image(scan(Path(tree)), Path(image), options)
else:
    with Meanwhile(bytes.fromhex(salt)) as meanwhile:
        info = write_image(scan(Path(tree)), Path(image), options, meanwhile)
        append(Path(image), salt=bytes.fromhex(salt), digests=meanwhile.digests(info.size))
"""
"""as `erofs-edge build` does it"""


def sha256(*paths: str) -> list[str]:
    """Return the command for a plain digest by the library that Python's hashlib also uses."""
    return [str(find("openssl")), "dgst", "-sha256", *paths]


def compared(what: str, runs: int, ours: Callable[[], Run], peer: Callable[[], Run]) -> None:
    """Run both in turn, and print a row."""
    done = [(ours(), peer()) for _ in range(runs)]
    first, second = (medians([one[side][:2] for one in done]) for side in (0, 1))
    row(what, versus(first[0], second[0]), versus(first[1], second[1]))


def verify_row(image: Path, runs: int) -> None:
    """Compare `verity verify` with the plain digest of the same file."""
    said = measure([*VERITY, "format", str(image)]).said
    root = next(line.split()[-1] for line in said.splitlines() if line.startswith("Root hash"))
    verify = [*VERITY, "verify", str(image), "--root-hash", root]
    digest = sha256(str(image))
    compared("`verity verify` / openssl dgst -sha256", runs, lambda: measure(verify), lambda: measure(digest))


def build_row(tree: Path, folder: Path, runs: int) -> None:
    """Compare making the tree with building the image, compressed data not cached."""
    image = folder / "built.img"

    def build() -> Run:
        image.unlink(missing_ok=True)
        return measure([*EDGE, "fs", "build", str(tree), "-o", str(image), "-zlz4hc", "--all-root", "--no-cache"])

    def hashed() -> Run:
        (folder / "built.tree").unlink(missing_ok=True)
        return measure([*VERITY, "format", str(image), "--hash-device", str(folder / "built.tree")])

    build()
    compared("tree / `fs build` of the same image", runs, hashed, build)


def meanwhile_row(mode: str, tree: Path, folder: Path, runs: int) -> None:
    """Compare a build that makes the tree as well with one that does not. Both images must be equal, and so must the
    tree and one made afterwards."""
    with_tree, without = folder / "with-tree.img", folder / "without.img"

    def build(image: Path, salt: str) -> Run:
        image.unlink(missing_ok=True)
        return measure([sys.executable, "-c", BUILD, str(tree), str(image), *MEANWHILE[mode], salt])

    what = f"{mode}: image and tree, made at the same time / image alone"
    compared(what, runs, lambda: build(with_tree, SALT.hex()), lambda: build(without, ""))
    append(without, salt=SALT)
    if not filecmp.cmp(with_tree, without, shallow=False):
        raise SystemExit(f"{mode}: a tree made while the image is written differs")


def out_row(out: Path, runs: int) -> None:
    """Compare `verify OUT` with the plain digest of its files. The disk, which is mostly holes, is left out of that."""
    files = [str(path) for path in sorted(out.iterdir()) if path.is_file() and path.name != "disk.img"]
    verify = [*EDGE, "verify", str(out), "--key", str(out / "sign.pub.pem")]
    digests = sha256(*files)
    what = "`verify OUT` / openssl dgst -sha256 of all its files but disk.img"
    compared(what, runs, lambda: measure(verify), lambda: measure(digests))


def main() -> None:
    parser = arguments(__doc__, runs=5, trees=1, board=True)
    parser.add_argument("--image", type=Path, help="to verify (default: 296 MB of noise; the content does not matter)")
    options = parser.parse_args()
    tree = tree_of(options)
    build_board(options.out)
    heads("what", "wall s", "CPU s")
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        verify_row(image_in(folder, options.image), options.runs)
        build_row(tree, folder, options.runs)
        for mode in MEANWHILE:
            meanwhile_row(mode, tree, folder, options.runs)
        out_row(options.out, options.runs)


if __name__ == "__main__":
    main()
