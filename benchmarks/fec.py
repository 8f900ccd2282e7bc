# SPDX-License-Identifier: Apache-2.0
"""Parity of an image, against veritysetup. `repair.py` measures how much parity can repair.

usage: python benchmarks/fec.py [--image FILE] [--roots N …] [--runs N] [--scratch DIR]

Prints markdown tables for docs/benchmarks.md. Encoding: both make tree and parity of a copy of the same image, in turn;
the row 'tree' is the time of both without parity. The parities must be equal.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from common import EDGE, Run, arguments, heads, image_in, measure, medians, row, versus

from erofs_edge.toolbox.prefix import find

VERITY = [*EDGE, "verity"]
SALT = "--salt=00112233445566778899aabbccddeeff"
UUID = "--uuid=12345678-9abc-4def-8123-456789abcdef"


def encode(image: Path, roots: int | None, runs: int, folder: Path) -> None:
    """Print the table's row for a number of roots; None is the tree alone."""
    found: dict[str, list[Run]] = {"theirs": [], "ours": []}
    for _ in range(runs):
        for name, program in (("theirs", [str(find("veritysetup", host=False))]), ("ours", VERITY)):
            tree, parity = folder / f"{name}.tree", folder / f"{name}.fec"
            tree.unlink(missing_ok=True)
            parity.unlink(missing_ok=True)
            fec = [f"--fec-device={parity}", f"--fec-roots={roots}"] if roots else []
            where = [str(image), str(tree)] if name == "theirs" else [str(image), f"--hash-device={tree}"]
            found[name].append(measure([*program, "format", SALT, UUID, *fec, *where]))
        for kind in ("tree", "fec") if roots else ("tree",):
            if (folder / f"ours.{kind}").read_bytes() != (folder / f"theirs.{kind}").read_bytes():
                raise SystemExit(f"{kind} differs")
    peer, we = (medians([run[:3] for run in taken]) for taken in found.values())
    row(
        f"tree and parity, {roots} roots" if roots else "tree",
        versus(we[0], peer[0]),
        versus(we[1], peer[1]),
        f"{we[2] / 1e6:.0f} / {peer[2] / 1e6:.0f}",
    )


def main() -> None:
    parser = arguments(__doc__, runs=5)
    parser.add_argument("--image", type=Path, help="to protect (default: 296 MB of noise; the content does not matter)")
    parser.add_argument("--roots", type=int, action="append", help="default: 2, 8 and 24")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        image = image_in(folder, options.image)
        roots = options.roots or [2, 8, 24]
        heads("what", "wall s, ours / veritysetup", "CPU s", "peak memory MB")
        for count in (None, *roots):
            encode(image, count, options.runs, folder)


if __name__ == "__main__":
    main()
