# SPDX-License-Identifier: Apache-2.0
"""Random combinations of trees, options and updates (drawn.py); `tools/fuzz-writer` tries any number of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn import wrong

STEP = 10  # seeds of one test
FOUND = (30, 92, 119, 211, 278, 308, 386, 635, 686, 1007)
"""seeds that once were findings: fs build lost data or wrote unreadable images"""


@pytest.mark.parametrize("first", range(1010, 1050, STEP))
def test_images_of_random_combinations(tmp_path: Path, first: int) -> None:
    assert {seed: found for seed in range(first, first + STEP) if (found := wrong(seed, tmp_path))} == {}


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found(tmp_path: Path, seed: int) -> None:
    assert wrong(seed, tmp_path) == []
