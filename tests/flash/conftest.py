# SPDX-License-Identifier: Apache-2.0
"""A small disk image with a table, contents, holes and a gap."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from erofs_edge.disk import gpt
from erofs_edge.writing import write_exactly

sys.path.append(str(Path(__file__).parent.parent / "boot"))  # the model of U-Boot's shell

MIB = 1 << 20


def _image(path: Path, sector: int) -> Path:
    per_mib = MIB // sector

    def part(name: str, first: int, count: int) -> gpt.Partition:
        guid = gpt.guid_from(b"t", name)
        return gpt.Partition(name, gpt.TYPE_LINUX, guid, first * per_mib, (first + count) * per_mib - 1)

    table = gpt.Table(
        gpt.guid_from(b"t", ""), 12 * per_mib, (part("boot", 1, 2), part("system", 4, 4), part("data", 8, 3)), sector
    )
    head, tail = gpt.encode(table)
    with path.open("wb") as file:
        file.truncate(12 * MIB)
        write_exactly(file.fileno(), head, 0)
        write_exactly(file.fileno(), b"boot" * 2000, MIB)
        write_exactly(file.fileno(), bytes(range(1, 251)) * 5000, 4 * MIB)
        write_exactly(file.fileno(), b"tail of the system", 7 * MIB + 500_000)
        write_exactly(file.fileno(), tail, 12 * MIB - len(tail))
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """12 MiB: boot at 1, a gap at 3, system at 4 (with a hole inside), data (a hole) at 8."""
    return _image(tmp_path / "disk.img", 512)


@pytest.fixture
def image_4k(tmp_path: Path) -> Path:
    """The same for sectors of 4096 bytes."""
    return _image(tmp_path / "disk4k.img", 4096)
