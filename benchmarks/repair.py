# SPDX-License-Identifier: Apache-2.0
"""How much of a damaged image can be repaired: by `verity repair`, and by the kernel while reading.

usage: python benchmarks/repair.py [--image FILE] [--roots N …] [--sectors N …] [--scratch DIR]

Prints a markdown table for docs/benchmarks.md. Sectors of 512 bytes, scattered or in one burst, are overwritten with
noise; the shares are of bad blocks. The parity itself is not damaged. The kernel's share is computed from what
``drivers/md/dm-verity-fec.c`` does for each block that it reads: correct errors at unknown places (half as many as
roots in each word), then erasures, which are the blocks of the round whose hash is wrong (as many as roots).
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

from common import BLOCK, arguments, heads, image_in, measure, row
from fec import VERITY

SECTOR, WORD = 512, 255
SECTORS = (1, 10, 100, 1000, 10_000)


def damage(image: Path, sectors: int, burst: bool, size: int) -> list[int]:
    """Overwrite sectors of the first `size` bytes: one run of them, or each at a random place. Return their numbers."""
    chance = random.Random(sectors)
    count = size // SECTOR
    first = chance.randrange(max(count - sectors, 1))
    places = list(range(first, first + sectors)) if burst else chance.sample(range(count), min(sectors, count))
    with image.open("r+b") as file:
        for place in places:
            file.seek(place * SECTOR)
            file.write(chance.randbytes(SECTOR))
    return places


def by_the_kernel(places: list[int], roots: int, blocks: int, hash_start: int, data_blocks: int) -> tuple[int, int]:
    """Return (blocks that the kernel corrects when it reads them, bad blocks), among those covered by parity."""
    rounds = -(-blocks // (WORD - roots))
    damaged: dict[int, set[int]] = {}  # covered block → its damaged sectors
    for place in places:
        block, sector = divmod(place, BLOCK // SECTOR)
        covered = block if block < data_blocks else block - hash_start + data_blocks
        if block < data_blocks or block >= hash_start:
            damaged.setdefault(covered, set()).add(sector)
    members: dict[int, list[int]] = {}
    for block in damaged:
        members.setdefault(block % rounds, []).append(block)
    corrected = 0
    for bad in members.values():
        errors = max(sum(sector in damaged[block] for block in bad) for sector in range(BLOCK // SECTOR))
        if len(bad) <= roots or errors <= roots // 2:
            corrected += len(bad)
    return corrected, len(damaged)


def table(image: Path, roots: int, counts: list[int], folder: Path) -> None:
    """Print the rows for one number of roots."""
    good, broken, parity = folder / "good", folder / "broken", folder / "parity"
    shutil.copyfile(image, good)
    fec = [f"--fec-device={parity}", f"--fec-roots={roots}"]
    made = json.loads(measure([*VERITY, "format", str(good), *fec, "--json"]).said)
    for burst in (False, True):
        for sectors in counts:
            shutil.copyfile(good, broken)
            places = damage(broken, sectors, burst, good.stat().st_size)
            command = [*VERITY, "repair", str(broken), f"--root-hash={made['root_hash']}", *fec, "--json"]
            run = measure(command, codes=(0, 4))
            record = json.loads(run.said)
            repaired = record["repaired_data_blocks"]["total"] + record["repaired_hash_blocks"]["total"]
            lost = record["lost_data_blocks"]["total"] + record["lost_hash_blocks"]["total"]
            whole = subprocess.run(["cmp", "-s", good, broken], check=False).returncode == 0
            if whole != record["ok"]:
                raise SystemExit("repair said what is not so")
            theirs, bad = by_the_kernel(
                places, roots, made["fec_blocks"], made["hash_start_block"], made["data_blocks"]
            )  # fmt: skip
            row(
                f"{sectors} sectors, {'one burst' if burst else 'scattered'}", str(roots),
                f"{repaired} of {repaired + lost} ({repaired / max(repaired + lost, 1):.1%})",
                f"{theirs} of {bad} ({theirs / max(bad, 1):.1%})", str(record["unproven_data_blocks"]["total"]),
                f"{run.wall:.2f}", f"{run.memory / 1e6:.0f}",
            )  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--image", type=Path, help="to damage (default: 296 MB of noise; the content does not matter)")
    parser.add_argument("--roots", type=int, action="append", help="default: 2, 8 and 24")
    parser.add_argument("--sectors", type=int, action="append", help="default: 1, 10, 100, 1000 and 10000")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        image = image_in(Path(name), options.image)
        heads(
            "damage", "roots", "repaired by us", "by the kernel", "unproven data", "wall s", "peak memory MB"
        )  # fmt: skip
        for roots in options.roots or [2, 8, 24]:
            table(image, roots, options.sectors or list(SECTORS), Path(name))


if __name__ == "__main__":
    main()
