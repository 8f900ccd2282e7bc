# SPDX-License-Identifier: Apache-2.0
"""The compression settings of a manifest reach the writer."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_kernel_gate import with_manifest

from erofs_edge.build.stages import erofs_options
from erofs_edge.codec.registry import find_codec
from erofs_edge.erofs.rules import CompressionRule
from erofs_edge.errors import ManifestError, UsageError
from erofs_edge.manifest.check import LEVELS

RULES = """  compression: zstd
  level: 19
  dictionary: 512K
  rules:
  - {match: "*.so*", compression: lz4hc, level: 12, pcluster: 256K}
  - {match: /boot/**, compression: none}
"""


def test_rules(repository: Path, tmp_path: Path) -> None:
    options = erofs_options(with_manifest(repository, tmp_path, RULES))
    assert (options.compression, options.level, options.dictionary) == ("zstd", 19, 512 << 10)
    assert options.rules == (
        CompressionRule(match="*.so*", compression="lz4hc", level=12, pcluster=256 << 10),
        CompressionRule(match="/boot/**", compression="none"),
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("19", "23", "23 is none of zstd"),
        ("512K", "500K", "cannot have a dictionary"),
        ("256K", "5000", "multiple of 4096"),
    ],
)
def test_values_that_no_image_has(old: str, new: str, message: str, repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=message):
        erofs_options(with_manifest(repository, tmp_path, RULES.replace(old, new)))


def test_the_loader_knows_the_levels() -> None:
    for name, levels in LEVELS.items():
        for level in range(-1, 120):
            known = True
            try:
                find_codec(name, level)
            except UsageError:
                known = False
            assert (level in levels) is known, (name, level)
