# SPDX-License-Identifier: Apache-2.0
"""`flash --key`: what the key does not vouch for is not written."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fixed_key import fixed_key
from made_build import Made, make_build

from erofs_edge.cli.main import cli
from erofs_edge.trust.key import public_key_pem

KEY = fixed_key(1, "product")
OTHER = fixed_key(2, "other")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    for signer in (KEY, OTHER):
        (tmp_path / f"{signer.name}.pub.pem").write_bytes(public_key_pem(signer))
    return make_build(tmp_path / "out", KEY)


def flash(made: Made, to: Path, key: str) -> Result:
    arguments = ["flash", str(made.out), "--to", str(to), "--key", str(made.out.parent / f"{key}.pub.pem")]
    return CliRunner().invoke(cli, arguments)


def test_a_signed_image_is_written(made: Made, tmp_path: Path) -> None:
    card = tmp_path / "card.img"
    assert flash(made, card, "product").exit_code == 0
    assert card.read_bytes() == (made.out / "disk.img").read_bytes()
    assert flash(made, card, "product").exit_code == 0


def test_another_key_and_a_changed_byte_are_refused(made: Made, tmp_path: Path) -> None:
    card = tmp_path / "card.img"
    card.write_bytes(b"what was there" * 1000)
    before = card.read_bytes()
    result = flash(made, card, "other")
    assert (result.exit_code, "not flashed" in result.stderr) == (4, True)
    made.flip("disk.img", (3 << 20) + 5000)
    assert flash(made, card, "product").exit_code == 4
    assert card.read_bytes() == before


def test_an_image_without_signatures_is_refused(made: Made, tmp_path: Path) -> None:
    (made.out / "disk.img").write_bytes(bytes(1 << 20))
    assert flash(made, tmp_path / "card.img", "product").exit_code == 4
    assert not (tmp_path / "card.img").exists()
