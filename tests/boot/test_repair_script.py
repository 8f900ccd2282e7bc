# SPDX-License-Identifier: Apache-2.0
"""The repair of a slot from the other one, by the initramfs's script under the host's shell. A mapping is a stand-in
here, of which nothing can be read that does not match a real hash tree."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import erofs_edge.boot.initramfs
from erofs_edge.boot.initramfs import InitConfig
from erofs_edge.disk import slots
from erofs_edge.verity.tree import VerityInfo, append

SCRIPT = Path(erofs_edge.boot.initramfs.__file__).with_name("repair.sh")
BLOCK = 4096
BLOCKS = 300  # windows of 8 blocks here, the last is not full; two levels of the tree
DMSETUP = """
import os, sys
name = sys.argv[-1] if sys.argv[1] == "remove" else sys.argv[2]
path = os.environ["ROOT"] + "/dev/mapper/" + name
if sys.argv[1] == "remove":
    os.unlink(path)
    os.unlink(path + ".bad")
    sys.exit(0)
assert sys.argv[3:5] == ["--readonly", "--table"], sys.argv
assert not os.path.exists(path), "a mapping of this name is there"
row = sys.argv[5].split()
sys.path[:] = {path!r}
from erofs_edge.verity import superblock
from erofs_edge.verity.blocks import hash_blocks
data, tree, start, root = open(row[4], "rb").read(), open(row[5], "rb").read(), int(row[9]), row[11]
sb = superblock.parse(tree[(start - 1) * 4096 :][:512], 0)
levels = sb.levels((start - 1) * 4096)
assert int(row[8]) == sb.data_blocks == {blocks} and sb.salt.hex() == row[12], row

def good(number):
    block = data[number * 4096 : (number + 1) * 4096]
    for level in levels:
        above = tree[(level.start + number // 128) * 4096 :][:4096]
        if hash_blocks(block, 4096, sb)[:32] != above[number % 128 * 32 :][:32]:
            return False
        block, number = above, number // 128
    return hash_blocks(block, 4096, sb)[:32].hex() == root

open(path, "wb").write(data[: {blocks} * 4096])
open(path + ".bad", "w").writelines(f"{{number}}\\n" for number in range({blocks}) if not good(number))
"""
DD = """
bs=512 skip=0 count=999999
for word; do
    case $word in if=*) source=${{word#if=}} ;; bs=*) bs=${{word#bs=}} ;; skip=*) skip=${{word#skip=}} ;;
    count=*) count=${{word#count=}} ;; esac
done
case $source in
*/dev/mapper/*)
    while read -r bad; do
        at=$((bad * 4096 / bs))
        if [ $at -ge "$skip" ] && [ $at -lt $((skip + count)) ]; then exit 1; fi
    done <"$source.bad" ;;
esac
exec {dd} "$@"
"""


@dataclass
class Board:
    """Two slots, files in place of partitions: `a` and `b` are what they hold, `whole` is what they must hold."""

    root: Path
    info: VerityInfo
    whole: bytes
    a: bytearray
    b: bytearray

    def mend(self, slots: str = "a b", options: str = "") -> list[str]:
        """Look through slot b; the lines of the console. `a` and `b` are what was left."""
        for name in "ab":
            (self.root / f"dev/vda_{name}").write_bytes(getattr(self, name))
        (self.root / "config").write_text(config(self.info, tuple(slots.split())).text())
        script = (
            f". {self.root}/config\n"
            'find_partition() { partition=/sys/vda/vda_${1#system_}; [ -e "$ROOT/dev/${partition##*/}" ]; }\n'
            f". {self.root}/repair\nslot=b disk=/sys/vda device=$ROOT/dev/vda_b\nmend_slot {options}\n"
        )
        environment = {"ROOT": str(self.root), "PATH": f"{self.root}/bin:{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-uc", script], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.stderr == "", done.stderr
        assert sorted(os.listdir(self.root / "dev/mapper")) == [], "a mapping is left"
        for name in "ab":
            setattr(self, name, bytearray((self.root / f"dev/vda_{name}").read_bytes()))
        return done.stdout.splitlines()


def config(info: VerityInfo, names: tuple[str, ...]) -> InitConfig:
    return InitConfig(
        info.root_hash.hex(), info.salt.hex(), BLOCK, info.data_blocks, info.hash_start_block, "system", names, "data"
    )


@pytest.fixture
def board(tmp_path: Path) -> Board:
    image = tmp_path / "image"
    image.write_bytes(random.Random(9).randbytes(BLOCKS * BLOCK))
    info = append(image)
    whole = image.read_bytes() + bytes(8 * BLOCK)
    for folder in ("bin", "dev/mapper"):
        (tmp_path / folder).mkdir(parents=True)
    real = subprocess.run(["sh", "-c", "command -v dd"], capture_output=True, text=True, check=True).stdout.strip()
    programs = {
        "dmsetup": f"#!{sys.executable} -S{DMSETUP.format(path=[str(SCRIPT.parents[2]), *sys.path], blocks=BLOCKS)}",
        "dd": f"#!/bin/sh{DD.format(dd=real)}",
    }
    for name, program in programs.items():
        (tmp_path / "bin" / name).write_text(program)
        (tmp_path / "bin" / name).chmod(0o755)
    text = SCRIPT.read_text().replace("/bin/dmsetup", "dmsetup").replace("WINDOW=1048576", "WINDOW=32768")
    for place in ("/dev/mapper/", "/piece", "/own"):
        text = text.replace(place, f"{tmp_path}{place}")
    text = text.replace("dd if=", f"{tmp_path}/bin/dd if=")  # busybox's shell would take its own
    text = text.replace('of="/$4"', f'of="{tmp_path}/$4"')
    (tmp_path / "repair").write_text(text.replace('"/dev/${partition', f'"{tmp_path}/dev/${{partition'))
    return Board(tmp_path, info, whole, bytearray(whole), bytearray(whole))


def spoil(image: bytearray, block: int, count: int = 1) -> None:
    image[block * BLOCK : (block + count) * BLOCK] = b"\xa5" * (count * BLOCK)


def test_what_is_right_is_left_alone(board: Board) -> None:
    assert board.mend() == ["erofs-edge: slot b has failed before, but nothing in it is damaged"]
    assert board.a == board.b == board.whole


def test_damaged_blocks_come_from_the_other_slot(board: Board) -> None:
    for block, count in ((0, 1), (15, 2), (BLOCKS - 1, 1)):
        spoil(board.b, block, count)
    assert board.mend() == ["erofs-edge: 4 blocks of slot b were repaired from slot a"]
    assert board.b == board.whole and board.a == board.whole


def test_each_slot_may_have_damage_of_its_own(board: Board) -> None:
    spoil(board.b, 10, 3)
    spoil(board.a, 20, 100)
    damaged = bytes(board.a)
    assert board.mend() == ["erofs-edge: 3 blocks of slot b were repaired from slot a"]
    assert board.b == board.whole and board.a == damaged, "the other slot is only read"


def test_what_both_have_lost_is_lost_and_the_rest_is_repaired(board: Board) -> None:
    spoil(board.b, 10, 5)
    spoil(board.a, 12)
    assert board.mend() == [
        "erofs-edge: 4 blocks of slot b were repaired from slot a",
        "erofs-edge: slot b is damaged and cannot be repaired",
    ]
    wrong = [n for n in range(BLOCKS) if board.b[n * BLOCK :][:BLOCK] != board.whole[n * BLOCK :][:BLOCK]]
    assert wrong == [12]


@pytest.mark.parametrize("block", range(4))
def test_a_damaged_tree_comes_from_the_other_slot(board: Board, block: int) -> None:
    """Its root, and each block below it; data under it is damaged as well."""
    spoil(board.b, board.info.hash_start_block + block)
    spoil(board.b, 3)
    lines = board.mend()
    assert lines == ["erofs-edge: 2 blocks of slot b were repaired from slot a"]
    assert board.b == board.whole and board.a == board.whole


def test_another_system_in_the_other_slot_repairs_nothing(board: Board) -> None:
    other = board.root / "other"
    other.write_bytes(random.Random(8).randbytes(BLOCKS * BLOCK))
    append(other)
    board.a[:] = other.read_bytes().ljust(len(board.whole), b"\0")
    spoil(board.b, 5)
    before = bytes(board.b)
    assert board.mend() == ["erofs-edge: slot b is damaged and cannot be repaired"]
    assert board.b == before


def test_a_board_with_one_slot_says_that_it_is_damaged(board: Board) -> None:
    spoil(board.b, 5)
    assert board.mend("b") == ["erofs-edge: slot b is damaged and cannot be repaired"]


def test_the_starts_that_are_left_come_from_the_slot_state(board: Board) -> None:
    state = slots.SlotState(("B", "A"), {"A": 4, "B": 1})
    misc = board.root / "misc"
    misc.write_bytes(slots.encode_state(state))
    script = f". {board.root}/repair; starts_left b {shlex.quote(str(misc))}; starts_left a {shlex.quote(str(misc))}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "4"]
