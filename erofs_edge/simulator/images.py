# SPDX-License-Identifier: Apache-2.0
"""Small disk images of a board with slots, for tests: nothing in them can run, but they have everything that a flash or
a boot chain checks. A boot image names its system by root hash, a system has a real hash tree, and versions differ in
few blocks.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.disk import gpt, slots
from erofs_edge.disk.rollback import with_minimum
from erofs_edge.errors import CapacityError
from erofs_edge.simulator.boot import Read, System
from erofs_edge.verity import tree

SECTOR = 512
MAGIC = bytes.fromhex("d00dfeed")
KIB = 1 << 10
BOOT, SYSTEM, MISC, DATA = 12 * KIB, 48 * KIB, 384 * KIB, 8 * KIB


@dataclass(frozen=True)
class Sizes:
    """Bytes of the partitions, multiples of 4096; `slots` in the board's order."""

    boot: int = BOOT
    system: int = SYSTEM
    misc: int = MISC
    data: int = DATA
    slots: tuple[str, ...] = ("a", "b")

    def partitions(self) -> list[tuple[str, int]]:
        return [
            *((f"boot_{slot}", self.boot) for slot in self.slots),
            *((f"system_{slot}", self.system) for slot in self.slots),
            ("misc", self.misc),
            ("data", self.data),
        ]


def system_image(path: Path, version: int, size: int, blocks: int, changed: int = 3) -> System:
    """Data of `blocks` blocks, a few of which differ between versions, with a hash tree."""
    common, own = random.Random(1), random.Random(version)
    data = [common.randbytes(4096) for _ in range(blocks)]
    for index in own.sample(range(blocks), min(changed, blocks)) if version > 1 else ():
        data[index] = own.randbytes(4096)
    path.write_bytes(b"".join(data))
    info = tree.append(path)
    if path.stat().st_size > size:
        raise CapacityError(f"{blocks} blocks and their tree do not fit {size} bytes")
    return System(info.root_hash, info.hash_offset)


def boot_image(system: System, version: int, size: int) -> bytes:
    """The header of a flattened tree (magic and length), root hash, offset of its tree, filler, and the sha256 of all
    that as a signature."""
    body = MAGIC + size.to_bytes(4, "big") + system.root_hash + system.hash_offset.to_bytes(8, "little")
    body += random.Random(-version).randbytes(size - len(body) - 32)
    return body + hashlib.sha256(body).digest()


def opened(read: Read, size: int) -> System | None:
    """What a boot image names, if it is intact."""
    head = read(0, 48)
    length = int.from_bytes(head[4:8], "big")
    if head[:4] != MAGIC or not 80 <= length <= size:
        return None
    body = read(0, length)
    if hashlib.sha256(body[:-32]).digest() != body[-32:]:
        return None
    return System(head[8:40], int.from_bytes(head[40:48], "little"))


def disk_image(path: Path, version: int, sizes: Sizes = Sizes(), blocks: int = 9) -> Path:
    """The disk image of a build: all slots the same, fresh slot state. The same arguments give the same bytes."""
    system = path.with_suffix(".system")
    described = system_image(system, version, sizes.system, blocks)
    root = described.root_hash
    boot = boot_image(described, version, sizes.boot - 4096 - 100)
    state = with_minimum(slots.encode_state(slots.initial(sizes.slots)), 0)
    contents = {"misc": state}
    for slot in sizes.slots:
        contents |= {f"boot_{slot}": boot, f"system_{slot}": system.read_bytes()}
    start, parts, places = 40 * SECTOR, [], {}
    start = -(-start // 4096) * 4096
    for name, size in sizes.partitions():
        guid = gpt.guid_from(root, name)
        parts.append(gpt.Partition(name, gpt.TYPE_LINUX, guid, start // SECTOR, (start + size) // SECTOR - 1))
        places[name] = start
        start += size
    total = -(-(start + 40 * SECTOR) // 4096) * 4096
    head, tail = gpt.encode(gpt.Table(gpt.guid_from(root, ""), total // SECTOR, tuple(parts)))
    with path.open("wb") as file:
        file.truncate(total)
        for at, data in [(0, head), (total - len(tail), tail), *((places[n], d) for n, d in contents.items())]:
            file.seek(at)
            file.write(data)
    system.unlink()
    return path
