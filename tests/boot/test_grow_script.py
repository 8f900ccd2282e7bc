# SPDX-License-Identifier: Apache-2.0
"""The script that extends the partition table to a larger disk, run by the host's shell on disk images: checked by our
reader and sgdisk, and interrupted after each of its writes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import erofs_edge.boot.initramfs
from erofs_edge.disk import gpt

SCRIPT = Path(erofs_edge.boot.initramfs.__file__).with_name("grow.sh")
MIB = 1 << 20
OLD, NEW = 16 * MIB, 40 * MIB + 512 * 7
DRIVER = """
find_partition() { partition=$2/vda$INDEX; }
blockdev() { echo "blockdev $*" >>"$ROOT/log"; }
sync() { :; }
"""


class Disk:
    """An image with a system and a data partition, as /dev/vda and /sys/block/vda of a fake root."""

    def __init__(self, root: Path, sector: int, hybrid: int | None = None) -> None:
        self.root, self.sector, self.image = root, sector, root / "dev/vda"
        per_mib = MIB // sector
        sectors = OLD // sector
        guid = [gpt.guid_from(b"x", name) for name in "abc"]
        last = sectors - 1 - per_mib
        self.table = gpt.Table(
            guid[0],
            sectors,
            (
                gpt.Partition("system", gpt.TYPE_ESP, guid[1], per_mib, 8 * per_mib - 1),
                gpt.Partition("data", gpt.TYPE_LINUX, guid[2], 8 * per_mib, last),
            ),
            sector,
            hybrid=hybrid,
        )
        head, tail = gpt.encode(self.table)
        (root / "dev").mkdir()
        with self.image.open("wb") as file:
            file.write(head)
            file.seek(OLD - len(tail))
            file.write(tail)
        self.resize(OLD)
        for number, partition in enumerate(self.table.partitions, 1):
            folder = root / f"sys/block/vda/vda{number}"
            folder.mkdir(parents=True)
            (folder / "partition").write_text(f"{number}\n")
            (folder / "start").write_text(f"{partition.first_lba * sector // 512}\n")

    def resize(self, size: int) -> None:
        with self.image.open("r+b") as file:
            file.truncate(size)
        folder = self.root / "sys/block/vda"
        (folder / "queue").mkdir(parents=True, exist_ok=True)
        (folder / "size").write_text(f"{size // 512}\n")
        (folder / "queue/logical_block_size").write_text(f"{self.sector}\n")

    def grow(self, index: int = 2, writes: int = 99) -> bool:
        """Run grow_disk for a partition; the machine stops after the given number of writes to the disk."""
        script = (
            SCRIPT.read_text().replace("/dev/${1##*/}", "$ROOT/dev/${1##*/}").replace(" /entries", " $ROOT/entries")
        )
        script = script.replace("of=/", "of=$ROOT/").replace("</", "<$ROOT/").replace(" /header", " $ROOT/header")
        script = script.replace('dd if="$2" of="$node"', 'write if="$2" of="$node"')
        script = script.replace(">/header", ">$ROOT/header").replace(">>/header", ">>$ROOT/header")
        cut = f"""
write() {{
    [ "$(cat "$ROOT/writes")" -lt {writes} ] || kill -9 $$
    echo $(($(cat "$ROOT/writes") + 1)) >"$ROOT/writes"
    dd "$@"
}}
"""
        (self.root / "writes").write_text("0\n")
        text = f'{DRIVER}{cut}{script}\ngrow_disk "$ROOT/sys/block/vda" data'
        environment = {"ROOT": str(self.root), "PATH": "/usr/bin:/bin", "INDEX": str(index)}
        done = subprocess.run(["/bin/sh", "-c", text], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1, -9), done.stderr
        return done.returncode == 0

    def read(self) -> gpt.Table:
        data = self.image.read_bytes()
        return gpt.decode(lambda at, length: data[at : at + length], len(data), self.sector)


@pytest.fixture
def disk(tmp_path: Path) -> Callable[..., Disk]:
    return lambda sector=512, hybrid=None: Disk(tmp_path, sector, hybrid)


@pytest.mark.parametrize(("sector", "hybrid"), [(512, None), (4096, None), (512, 0)])
def test_the_last_partition_gets_what_the_disk_has_more(
    disk: Callable[..., Disk], oracle: Callable[[str], str], sector: int, hybrid: int | None
) -> None:
    made = disk(sector, hybrid)
    size = NEW // sector * sector
    made.resize(size)
    assert made.grow()
    table = made.read()
    assert not table.backup_used and table.hybrid == hybrid
    system, data = table.partitions
    assert system == made.table.partitions[0]
    assert data == made.table.partitions[1]._replace(last_lba=data.last_lba)
    assert (data.last_lba + 1) * sector == 39 * MIB
    if sector == 512:
        said = subprocess.run([oracle("sgdisk"), "-v", str(made.image)], capture_output=True, text=True, check=True)
        assert "No problems found" in said.stdout, said.stdout
    # the bytes are those of a disk that was this large from the start
    head, tail = gpt.encode(made.table._replace(sectors=size // sector, partitions=(system, data)))
    raw = made.image.read_bytes()
    assert raw[: len(head)] == head and raw[-len(tail) :] == tail
    assert (made.root / "log").read_text().startswith("blockdev --rereadpt")
    assert not made.grow(), "there is nothing more to do"


@pytest.mark.parametrize("writes", range(4))
def test_a_power_cut_leaves_one_table_and_is_mended(disk: Callable[..., Disk], writes: int) -> None:
    made = disk()
    made.resize(NEW)
    made.grow(writes=writes)
    before = made.read()
    assert [p.name for p in before.partitions] == ["system", "data"]
    assert (made.root / "writes").read_text() == f"{writes}\n"
    assert made.grow(), "the next start does the rest"
    assert made.read().partitions[1].last_lba * 512 > OLD and not made.read().backup_used


def test_what_is_not_ours_to_change_stays(disk: Callable[..., Disk]) -> None:
    made = disk()
    before = made.image.read_bytes()
    assert not made.grow() and made.image.read_bytes() == before, "the disk is as large as its table says"
    made.resize(NEW)
    before = made.image.read_bytes()
    assert not made.grow(index=1) and made.image.read_bytes() == before, "another partition comes behind it"
    with made.image.open("r+b") as file:
        file.seek(512 * 2 + 40)
        file.write(b"\xaa")
    before = made.image.read_bytes()
    assert not made.grow() and made.image.read_bytes() == before, "both tables are damaged, as far as can be seen"
