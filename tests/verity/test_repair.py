# SPDX-License-Identifier: Apache-2.0
"""Repair: all damage within the bound, nothing beyond it, and never a byte that the root hash does not promise."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erofs_edge.errors import FormatError, UsageError
from erofs_edge.verity import fec
from erofs_edge.verity.repair import Repair, repair
from erofs_edge.verity.superblock import VerityInfo
from erofs_edge.verity.tree import append, format_tree, verify
from erofs_edge.writing import write_exactly

BLOCK = 512
many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Case(NamedTuple):
    """An image with its tree appended, intact, and its parity."""

    image: Path
    parity: Path
    info: VerityInfo
    layout: fec.Layout
    good: bytes

    def spoil(self, blocks: dict[int, bytes]) -> bytes:
        """Put other bytes at the beginning of covered blocks; what the image holds then."""
        raw = bytearray(self.good)
        for block, data in blocks.items():
            _, offset = self.layout.place(block)
            raw[offset : offset + len(data)] = data
        self.image.write_bytes(raw)
        return bytes(raw)

    def repair(self, **more: bool) -> Repair:
        return repair(fec.Places(self.image, self.parity), self.info.root_hash, **more)  # type: ignore[arg-type]


def made(folder: Path, count: int, roots: int, seed: int = 0) -> Case:
    image, parity = folder / "image", folder / "parity"
    image.write_bytes(random.Random(seed).randbytes(count * BLOCK))
    info = append(image, block_size=BLOCK)
    layout = fec.write_parity(fec.Places(image, parity, roots=roots), info.superblock)
    return Case(image, parity, info, layout, image.read_bytes())


@many
@given(
    count=st.integers(1, 900),
    roots=st.sampled_from([2, 3, 4, 8, 24]),
    seed=st.integers(0, 1 << 32),
    kind=st.sampled_from(["data", "all", "parity"]),
)
def test_damage_within_the_bound_is_always_repaired(
    tmp_path: Path, count: int, roots: int, seed: int, kind: str
) -> None:
    """In each round as many blocks of data as there are roots; or half as many of anything; or some and parity."""
    case, chance = made(tmp_path, count, roots, seed), random.Random(seed)
    broken: dict[int, bytes] = {}
    parity = bytearray(case.parity.read_bytes())
    limit = {"data": roots, "all": roots // 2, "parity": max(roots // 2 - 1, 0)}[kind]
    end = case.layout.data_blocks if kind == "data" else case.layout.blocks
    for number in range(case.layout.rounds):
        members = range(number, end, case.layout.rounds)
        picked = chance.sample(members, min(len(members), chance.randint(0, limit)))
        broken |= {block: chance.randbytes(BLOCK) for block in picked}
        if kind == "parity":
            for word in range(number * BLOCK, (number + 1) * BLOCK):
                parity[word * roots + chance.randrange(roots)] ^= chance.randrange(256)
    damaged = case.spoil(broken)
    kept = case.parity.read_bytes()
    case.parity.write_bytes(parity)
    dry = case.repair(dry_run=True)
    assert (case.image.read_bytes(), case.parity.read_bytes()) == (damaged, parity)
    found = case.repair()
    assert found.ok
    assert dry.ok
    assert case.image.read_bytes() == case.good
    assert case.parity.read_bytes() == kept
    assert found.repaired_data.total + found.repaired_hash.total == len(broken)
    assert found.corrected == sum(a != b for a, b in zip(case.good, damaged, strict=True))
    assert (dry.repaired_data, dry.repaired_hash) == (found.repaired_data, found.repaired_hash)


@many
@given(count=st.integers(30, 900), roots=st.sampled_from([2, 5]), seed=st.integers(0, 1 << 32))
def test_damage_beyond_the_bound_is_reported_and_not_made_worse(
    tmp_path: Path, count: int, roots: int, seed: int
) -> None:
    case, chance = made(tmp_path, count, roots, seed), random.Random(seed)
    damaged = case.spoil(
        {block: chance.randbytes(BLOCK) for block in range(case.layout.blocks) if chance.random() < 0.1}
        | {block * case.layout.rounds: chance.randbytes(BLOCK) for block in range(min(roots + 1, count))}
    )
    found = case.repair()
    after = case.image.read_bytes()
    left = verify(case.image, case.info)
    assert found.ok == left.ok
    assert (found.lost_data, found.lost_hash, found.unproven) == (left.bad_data, left.bad_hash, left.unproven)
    for start in range(0, len(after), BLOCK):
        piece = after[start : start + BLOCK]
        assert piece in (damaged[start : start + BLOCK], case.good[start : start + BLOCK])
    if not found.ok:
        assert found.parity == 0


def test_small_damage_in_many_blocks_of_one_round(tmp_path: Path) -> None:
    """More bad blocks than roots, but never two in one word: errors at unknown places."""
    case = made(tmp_path, 900, 2)
    blocks = range(0, case.layout.data_blocks, case.layout.rounds)
    raw = bytearray(case.good)
    for index, block in enumerate(blocks):
        raw[block * BLOCK + index] ^= 0x55
    assert len(blocks) > 100
    case.image.write_bytes(raw)
    found = case.repair()
    assert found.ok
    assert (found.corrected, case.image.read_bytes()) == (len(blocks), case.good)


def test_a_word_with_two_bad_blocks_waits_for_the_third(tmp_path: Path) -> None:
    """Three bad blocks, two roots: where one is bad alone it is corrected, and then the two others are erasures."""
    case = made(tmp_path, 900, 2)
    first, second, third = (n * case.layout.rounds for n in (3, 50, 99))
    case.spoil({first: b"x" * 100, second: b"y" * 5, third: case.good[third * BLOCK :][:200] + b"z" * 100})
    found = case.repair()
    assert found.ok
    assert found.repaired_data.total == 3


def test_two_errors_that_look_like_one_elsewhere_mislead_nobody(tmp_path: Path) -> None:
    """Sectors: two share 128 words, some of which could pass for one error in the third block, which is elsewhere."""
    case = made(tmp_path, 900, 2)
    first, second, third = (n * case.layout.rounds for n in (3, 50, 99))
    for seed in range(5):
        chance = random.Random(seed)
        other = case.good[third * BLOCK :][:256] + chance.randbytes(200)
        case.spoil({first: chance.randbytes(128), second: chance.randbytes(128), third: other})
        assert case.repair().ok


def test_a_repaired_hash_block_brings_what_is_below(tmp_path: Path) -> None:
    """The whole tree and a data block: the way down is found again level by level."""
    case = made(tmp_path, 900, 24)
    data, blocks = case.layout.data_blocks, case.layout.blocks
    case.spoil({block: bytes(BLOCK) for block in [5, *range(data, blocks)]})
    before = verify(case.image, case.info)
    assert before.unproven.total == 900
    found = case.repair()
    assert found.ok
    assert (found.repaired_data.ranges, found.repaired_hash.total) == ([(5, 1)], blocks - data)
    assert case.image.read_bytes() == case.good


def test_a_burst_as_long_as_a_strip_allows(tmp_path: Path) -> None:
    case = made(tmp_path, 900, 2)
    case.spoil(dict.fromkeys(range(100, 100 + 2 * case.layout.rounds), b"\0" * BLOCK))
    assert case.repair().ok
    case.spoil(dict.fromkeys(range(100, 101 + 2 * case.layout.rounds), b"\0" * BLOCK))
    found = case.repair()
    assert found.lost_data.total == 3
    assert found.repaired_data.total == 2 * case.layout.rounds - 2


def test_a_wrong_root_hash_changes_nothing(tmp_path: Path) -> None:
    case = made(tmp_path, 300, 4)
    found = repair(fec.Places(case.image, case.parity), bytes(32))
    assert not found.ok
    assert (found.unproven.total, found.lost_hash.total) == (300, 1)
    assert case.image.read_bytes() == case.good
    with pytest.raises(UsageError, match="16 bytes"):
        repair(fec.Places(case.image, case.parity), bytes(16))


def test_parity_of_another_image_changes_nothing(tmp_path: Path) -> None:
    case = made(tmp_path, 300, 4)
    case.parity.write_bytes(random.Random(1).randbytes(case.layout.parity_size))
    damaged = case.spoil({7: b"damage"})
    found = case.repair()
    assert found.lost_data.ranges == [(7, 1)]
    assert case.image.read_bytes() == damaged


def test_wrong_parity_of_a_good_image_is_made_anew(tmp_path: Path) -> None:
    case = made(tmp_path, 300, 4)
    right = case.parity.read_bytes()
    raw = bytearray(right)
    raw[10] ^= 1
    raw[-1] ^= 1
    case.parity.write_bytes(raw)
    assert case.repair(dry_run=True).ok
    assert case.parity.read_bytes() == raw
    assert case.repair().parity == 2
    assert (case.parity.read_bytes(), case.image.read_bytes()) == (right, case.good)


@pytest.mark.parametrize("interrupted", [0, 1, 5])
def test_an_interrupted_repair_is_finished_by_the_next(
    interrupted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from erofs_edge.verity import repair as module

    case = made(tmp_path, 900, 8)
    case.spoil(dict.fromkeys(range(0, case.layout.blocks, 90), b"damage"))
    calls = 0

    def write(fd: int, data: bytes, offset: int) -> None:
        nonlocal calls
        if calls == interrupted:
            os.pwrite(fd, data[:3], offset)
            raise KeyboardInterrupt
        calls += 1
        write_exactly(fd, data, offset)

    monkeypatch.setattr(module, "write_exactly", write)
    with pytest.raises(KeyboardInterrupt):
        case.repair()
    monkeypatch.undo()
    assert case.repair().ok
    assert case.image.read_bytes() == case.good


def test_with_a_tree_of_its_own_and_all_in_one_file(tmp_path: Path) -> None:
    image, tree, parity = tmp_path / "image", tmp_path / "tree", tmp_path / "parity"
    data = random.Random(2).randbytes(400 * 4096)
    image.write_bytes(data)
    info = format_tree(image, tree)
    fec.write_parity(fec.Places(image, parity, hash_device=tree, roots=3), info.superblock)
    hashes = tree.read_bytes()
    image.write_bytes(b"\1" * 5000 + data[5000:])
    tree.write_bytes(hashes[:4096] + b"\1" * 4096 + hashes[8192:])
    found = repair(fec.Places(image, parity, hash_device=tree), info.root_hash)
    assert (found.repaired_data.ranges, found.repaired_hash.ranges) == ([(0, 2)], [(1, 1)])
    assert (image.read_bytes(), tree.read_bytes()) == (data, hashes)

    info = append(image)
    layout = fec.write_parity(fec.Places(image, image), info.superblock)
    whole = image.read_bytes()
    image.write_bytes(b"\1" * 5000 + whole[5000:])
    assert repair(fec.Places(image, image, fec_offset=layout.offset), info.root_hash).ok
    assert image.read_bytes() == whole
    with pytest.raises(FormatError):
        repair(fec.Places(image, image), info.root_hash)


@pytest.mark.oracle
@pytest.mark.parametrize("roots", [2, 8])
def test_veritysetup_repairs_what_we_encoded(roots: int, oracle: Callable[[str], str], tmp_path: Path) -> None:
    """Its check of a damaged image with our parity finds the errors, and all of them repairable."""
    image, parity = tmp_path / "image", tmp_path / "parity"
    image.write_bytes(random.Random(3).randbytes(500 * 4096))
    info = append(image)
    fec.write_parity(fec.Places(image, parity, roots=roots), info.superblock)
    raw = bytearray(image.read_bytes())
    raw[40 * 4096 : 40 * 4096 + 700] = bytes(b ^ 0xFF for b in raw[40 * 4096 : 40 * 4096 + 700])
    image.write_bytes(raw)
    command: list[str | Path] = [oracle("veritysetup"), "verify", image, image, info.root_hash.hex()]
    command.append(f"--hash-offset={info.hash_offset}")
    alone = subprocess.run(command, capture_output=True, text=True, check=False)
    assert alone.returncode != 0
    command += [f"--fec-device={parity}", f"--fec-roots={roots}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "700 repairable errors" in done.stdout + done.stderr) == (0, True), done.stderr
    assert repair(fec.Places(image, parity), info.root_hash).corrected == 700
    subprocess.run(command[:6], check=True)
