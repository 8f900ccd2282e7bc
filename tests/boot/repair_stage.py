# SPDX-License-Identifier: Apache-2.0
"""A test bed for the initramfs's script that repairs a slot, run by the host's shell. A stand-in replaces the dm-verity
mapping: reading anything that does not match a real hash tree fails."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import erofs_edge.boot.initramfs
from erofs_edge.boot.initramfs import InitConfig
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
    """Two slots, with files as partitions: `a` and `b` are their contents, `whole` is the correct content."""

    root: Path
    info: VerityInfo
    whole: bytes
    a: bytearray
    b: bytearray

    def mend(self, slots: str = "a b", options: str = "", repair_from: str = "", **more: str) -> list[str]:
        """Check slot b; return the console's lines. Afterwards, `a` and `b` are the slots' contents. `more`: for the
        environment."""
        for name in "ab":
            (self.root / f"dev/vda_{name}").write_bytes(getattr(self, name))
        (self.root / "config").write_text(config(self.info, tuple(slots.split()), repair_from).text())
        script = (
            f". {self.root}/config\n"
            'find_partition() { partition=/sys/vda/vda_${1#system_}; [ -e "$ROOT/dev/${partition##*/}" ]; }\n'
            f"load() {{ options=; }}\n. {self.root}/repair\n"
            f"slot=b disk=/sys/vda device=$ROOT/dev/vda_b\nmend_slot {options}\n"
        )
        environment = {**more, "ROOT": str(self.root), "PATH": f"{self.root}/bin:{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-uc", script], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.stderr == "", done.stderr
        assert sorted(os.listdir(self.root / "dev/mapper")) == [], "a mapping is left"
        for name in "ab":
            setattr(self, name, bytearray((self.root / f"dev/vda_{name}").read_bytes()))
        return done.stdout.splitlines()


def config(info: VerityInfo, names: tuple[str, ...], repair_from: str = "") -> InitConfig:
    return InitConfig(
        info.root_hash.hex(), info.salt.hex(), BLOCK, info.data_blocks, info.hash_start_block, "system", names, "data",
        repair_from=repair_from,
    )  # fmt: skip


def set_stage(tmp_path: Path, *, network: bool = False) -> Board:
    """Make a board with two intact slots; `network`: with the script of a board that repairs over a network."""
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
    text = SCRIPT.read_text() + (SCRIPT.with_name("repair_net.sh").read_text() if network else "")
    text = text.replace("/bin/dmsetup", "dmsetup").replace("WINDOW=1048576", "WINDOW=32768")
    for place in ("/dev/mapper/", "/piece", "/own", "/answer", "/leaf", "/sys/class"):
        text = text.replace(place, f"{tmp_path}{place}")
    text = text.replace("dd if=", f"{tmp_path}/bin/dd if=")  # busybox's shell would take its own
    text = text.replace('of="/$4"', f'of="{tmp_path}/$4"').replace('cat "/$1"', f'cat "{tmp_path}/$1"')
    (tmp_path / "repair").write_text(text.replace('"/dev/${partition', f'"{tmp_path}/dev/${{partition'))
    return Board(tmp_path, info, whole, bytearray(whole), bytearray(whole))


def spoil(image: bytearray, block: int, count: int = 1) -> None:
    image[block * BLOCK : (block + count) * BLOCK] = b"\xa5" * (count * BLOCK)
