# SPDX-License-Identifier: Apache-2.0
"""The output folder of a simulated build: a small disk with slots, its images, and the record that lists them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from erofs_edge.flash.image import Image
from erofs_edge.flash.update import read_layout
from erofs_edge.simulator.images import Sizes, disk_image

EPOCH = 1_700_000_000
SIZES = Sizes()


def build_folder(out: Path, version: int = 1, sizes: Sizes = SIZES, blocks: int = 9) -> Path:
    """Write disk.img, boot.fit, system.img and an unsigned release.json. The same arguments give the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    disk_image(out / "disk.img", version, sizes, blocks)
    with Image(out / "disk.img") as disk:
        layout = read_layout(disk)
        places = {} if layout is None else layout.places
        for name, base in (("boot.fit", "boot"), ("system.img", "system")):
            start, end = places[f"{base}_{sizes.slots[0]}"]
            (out / name).write_bytes(disk.read(start, end - start).rstrip(b"\0"))
    files = {}
    for path in sorted(out.glob("*.[if]*")):
        data = path.read_bytes()
        files[path.name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record = {
        "format": 1,
        "board": "simulated",
        "arch": "arm64",
        "epoch": EPOCH,
        "sign": {"name": "nobody", "development": True, "rollback_index": version},
        "system": {"name": "simulated", "root_hash": hashlib.sha256(b"%d" % version).hexdigest()},
        "files": files,
    }
    (out / "release.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    return out
