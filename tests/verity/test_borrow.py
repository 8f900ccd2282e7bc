# SPDX-License-Identifier: Apache-2.0
"""Repair from other files that have the blocks: at the same place, at another, or nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erofs_edge.cli.main import cli
from erofs_edge.verity.borrow import repair_from
from erofs_edge.verity.tree import VerityInfo, append, verify

BLOCKS = 300


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, VerityInfo]:
    path = tmp_path / "system.img"
    path.write_bytes(Random(1).randbytes(BLOCKS * 4096))
    return path, append(path)


def copy_of(path: Path, name: str, *changes: tuple[int, bytes]) -> Path:
    raw = bytearray(path.read_bytes())
    for at, data in changes:
        raw[at : at + len(data)] = data
    out = path.with_name(name)
    out.write_bytes(raw)
    return out


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["verity", "repair", *map(str, arguments)])


def test_all_kinds_of_blocks(made: tuple[Path, VerityInfo]) -> None:
    path, info = made
    top = info.hash_start_block
    changes = [(at * 4096 + 7, b"rot") for at in (0, 5, 299, top, top + 2)]
    bad = copy_of(path, "bad.img", *changes)
    result = run(bad, "--root-hash", info.root_hash.hex(), "--from", path, "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"can repair 3 data block(s): 0, 5, 299; 2 hash block(s): {top}, {top + 2}" in result.stdout
    assert bad.read_bytes() != path.read_bytes()
    result = run(bad, "--root-hash", info.root_hash.hex(), "--from", path, "--json")
    assert json.loads(result.stdout)["ok"] is True
    assert bad.read_bytes() == path.read_bytes()
    assert "nothing repaired" in run(bad, "--root-hash", info.root_hash.hex(), "--from", path).stdout


def test_the_superblock(made: tuple[Path, VerityInfo]) -> None:
    path, info = made
    bad = copy_of(path, "bad.img", (info.hash_offset, b"x" * 40))
    assert "the superblock" in run(bad, "--root-hash", info.root_hash.hex(), "--from", path).stdout
    assert bad.read_bytes() == path.read_bytes()


def test_blocks_from_anywhere(made: tuple[Path, VerityInfo]) -> None:
    """A store in which the blocks lie in another order, in two files."""
    path, info = made
    raw = path.read_bytes()
    blocks = [raw[at : at + 4096] for at in range(0, len(raw), 4096)]
    Random(2).shuffle(blocks)
    stores = [path.with_name("one"), path.with_name("two")]
    stores[0].write_bytes(b"".join(blocks[: len(blocks) // 2]))
    stores[1].write_bytes(b"".join(blocks[len(blocks) // 2 :]) + b"tail")
    bad = copy_of(path, "bad.img", *((at * 4096, b"rot") for at in range(0, 300, 3)))
    arguments = [item for store in stores for item in ("--from", store)]
    result = run(bad, "--root-hash", info.root_hash.hex(), "--hash-offset", info.hash_offset, *arguments)
    assert result.exit_code == 0, result.output
    assert bad.read_bytes() == raw


def test_what_no_source_has(made: tuple[Path, VerityInfo]) -> None:
    path, info = made
    other = copy_of(path, "other.img", (5 * 4096, b"another"), ((info.hash_start_block + 1) * 4096, b"another"))
    bad = copy_of(path, "bad.img", *((at * 4096, b"rot") for at in (5, 200, info.hash_start_block + 1)))
    result = run(bad, "--root-hash", info.root_hash.hex(), "--from", other)
    assert result.exit_code == 4
    assert "128 unproven data block(s): 0-127" in result.stderr
    assert f"1 hash block(s): {info.hash_start_block + 1}" in result.stderr
    assert verify(bad, info).bad_data.total == 0  # 200 was repaired; 5 stands below the lost one
    result = run(bad, "--root-hash", info.root_hash.hex(), "--from", path)
    assert result.exit_code == 0


def test_a_wrong_root_hash_changes_nothing(made: tuple[Path, VerityInfo]) -> None:
    path, info = made
    before = path.read_bytes()
    assert run(path, "--root-hash", "12" * 32, "--from", path).exit_code == 4
    assert run(path, "--root-hash", "12" * 20, "--from", path).exit_code == 2
    assert run(path, "--root-hash", info.root_hash.hex()).exit_code == 2
    assert path.read_bytes() == before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rot=st.lists(st.integers(0, (BLOCKS + 5) * 4096 - 1), max_size=12),
    missing=st.lists(st.integers(0, BLOCKS + 4), max_size=3),
    dry_run=st.booleans(),
)
def test_any_damage(rot: list[int], missing: list[int], dry_run: bool, made: tuple[Path, VerityInfo]) -> None:
    """All that the source has is mended, nothing else is touched, and the verdict is that of a verification."""
    path, info = made
    good = path.read_bytes()
    bad = copy_of(path, "bad.img", *((at, bytes([good[at] ^ 1])) for at in rot if at // 4096 != BLOCKS))
    before = bad.read_bytes()
    source = copy_of(path, "source.img", *((at * 4096, bytes(4096)) for at in missing if at != BLOCKS))
    found = repair_from(bad, info.root_hash, [source], hash_offset=info.hash_offset, dry_run=dry_run)
    after = bad.read_bytes()
    wrong = {at // 4096 for at in rot if at // 4096 != BLOCKS}
    assert found.ok == (not wrong & set(missing))
    if dry_run:
        assert after == before
        return
    for block in range(len(good) // 4096):
        now = after[block * 4096 : (block + 1) * 4096]
        assert now in (good[block * 4096 : (block + 1) * 4096], before[block * 4096 : (block + 1) * 4096])
    assert verify(bad, info).ok == found.ok
