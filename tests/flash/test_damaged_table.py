# SPDX-License-Identifier: Apache-2.0
"""A disk with slots whose first or second partition table is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.flash_show import TABLE_DAMAGED
from erofs_edge.cli.main import cli
from erofs_edge.simulator.images import disk_image

HEADER, ENTRIES = 512 + 60, 1024 + 60


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def spoil(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 0xFF
    path.write_bytes(raw)


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    return disk_image(tmp_path / "v1.img", 1)


@pytest.fixture
def card(v1: Path, tmp_path: Path) -> Path:
    card = tmp_path / "card.img"
    run("flash", v1, "--to", card)
    return card


@pytest.mark.parametrize("offset", [HEADER, ENTRIES])
def test_a_damaged_first_table_is_reported_and_kept(card: Path, v1: Path, tmp_path: Path, offset: int) -> None:
    spoil(card, offset)
    before = card.read_bytes()
    v2 = disk_image(tmp_path / "v2.img", 2)
    for arguments in (
        ("flash", v2, "--to", card, "--plan"),
        ("flash", v1, "--to", card, "--verify-only"),
        ("slots", "show", card),
    ):
        assert run(*arguments).stderr.count(TABLE_DAMAGED) == 1, arguments
    assert card.read_bytes() == before
    assert run("flash", v2, "--to", card).stderr.count(TABLE_DAMAGED) == 1
    assert card.read_bytes()[: 34 * 512] == before[: 34 * 512]


def test_a_table_that_is_written_again_is_not_reported(card: Path, v1: Path) -> None:
    good = card.read_bytes()[: 34 * 512]
    spoil(card, HEADER)
    assert TABLE_DAMAGED not in run("flash", v1, "--to", card, "--whole").stderr
    assert card.read_bytes()[: 34 * 512] == good


def test_a_damaged_second_table_is_not_reported(card: Path, v1: Path) -> None:
    assert TABLE_DAMAGED not in run("flash", v1, "--to", card, "--plan").stderr
    spoil(card, card.stat().st_size - 512 + 60)
    assert TABLE_DAMAGED not in run("flash", v1, "--to", card, "--plan").stderr
