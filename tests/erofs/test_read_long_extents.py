# SPDX-License-Identifier: Apache-2.0
"""Extents of more lclusters than a distance in the index can say, as mkfs.erofs writes them for small blocks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge import erofs
from erofs_edge.erofs.check import check


@pytest.mark.parametrize("name", ["mkfs.erofs-1.8", "mkfs.erofs-1.9"])
@pytest.mark.parametrize("options", [["-b1024"], ["-b1024", "-Elegacy-compress"]], ids=" ".join)
def test_saturated_distances(name: str, options: list[str], oracle: Callable[[str], str], tmp_path: Path) -> None:
    data = bytes(5 << 20) + b"the end"
    (tmp_path / "src").mkdir()
    (tmp_path / "src/zeros").write_bytes(data)
    path = tmp_path / "image"
    subprocess.run(
        [oracle(name), "-zlz4hc,9", "-C16384", *options, path, tmp_path / "src"], check=True, capture_output=True
    )
    assert check(path).findings == []
    with erofs.open(path) as image:
        assert max(extent.length for extent in image.extents(image.lookup("/zeros"))) > 2048 * 1024
        assert image.open("/zeros").read() == data
        for offset in range(0, len(data), 99_991):
            file = image.open("/zeros")
            file.seek(offset)
            assert file.read(10) == data[offset : offset + 10]
