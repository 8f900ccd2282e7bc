# SPDX-License-Identifier: Apache-2.0
"""`verify` of devices as an attacker with the medium in hand leaves them: nothing to start, two partitions of one name,
a boot ROM led astray, another firmware. Each has its good twin."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from fixed_key import fixed_key
from made_build import EPOCH, MIB, Made, make_build, make_fit

from erofs_edge.boot.contents import init_values
from erofs_edge.boot.signed_boot import files_digest
from erofs_edge.cli.main import cli
from erofs_edge.disk import gpt
from erofs_edge.disk.fat import build_fat
from erofs_edge.verify.checks import Verdict
from erofs_edge.verify.path import verify_path

KEY = fixed_key(1, "product")
FILES: dict[str, Path | bytes] = {
    "start4.elf": b"vendor",
    "u-boot.bin": b"loader",
    "config.txt": b"kernel=u-boot.bin\n",
}
PLACES = {"firmware": (1, 5), "boot_a": (6, 1), "system_a": (7, 4), "data": (12, 8)}
SIZE = 24 * MIB


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_build(tmp_path_factory.mktemp("made") / "out", KEY)


def failed(verdict: Verdict) -> dict[str, str]:
    return {check.what: check.error or "" for check in verdict.failed}


class Card:
    """A card of a board whose boot ROM reads files: firmware, one slot, data."""

    def __init__(self, made: Made, folder: Path) -> None:
        values: dict[str, object] = {**init_values((made.out / "boot.fit").read_bytes())}
        digest = files_digest({name: data for name, data in FILES.items() if isinstance(data, bytes)})
        self.path, self.folder = folder / "card.img", folder
        self.table = gpt.Table(
            gpt.guid_from(b"c", ""), SIZE // 512,
            tuple(
                gpt.Partition(n, gpt.TYPE_LINUX, gpt.guid_from(b"c", n), s * 2048, (s + size) * 2048 - 1)
                for n, (s, size) in PLACES.items()
            ),
            hybrid=0,
        )  # fmt: skip
        self.path.touch()
        os.truncate(self.path, SIZE)
        self.write_table(self.table)
        self.write("boot_a", make_fit({**values, "SLOTS": "a"}, KEY, firmware=digest))
        self.write("system_a", (made.out / "system.img").read_bytes())
        self.write("firmware", self.volume(FILES))

    def write_table(self, table: gpt.Table) -> None:
        head, tail = gpt.encode(table)
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), head, 0)
            os.pwrite(file.fileno(), tail, SIZE - len(tail))

    def write(self, name: str, data: bytes) -> None:
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), data, PLACES[name][0] * MIB)

    def volume(self, files: dict[str, Path | bytes]) -> bytes:
        build_fat(files, self.folder / "fat", size=5 * MIB, label="FIRMWARE", serial=1, epoch=EPOCH)
        return (self.folder / "fat").read_bytes()

    def verify(self) -> Verdict:
        return verify_path(self.path, KEY)


@pytest.fixture
def card(made: Made, tmp_path: Path) -> Card:
    return Card(made, tmp_path)


def test_a_card_passes(card: Card) -> None:
    verdict = card.verify()
    assert verdict.ok, failed(verdict)
    assert {"firmware: files", "boot_a: FIT", "system_a: tree", "data"} <= {check.what for check in verdict.checks}


@pytest.mark.parametrize(
    "files", [{**FILES, "config.txt": b"kernel=evil\n"}, {**FILES, "recovery.bin": b"evil"}, {"start4.elf": b"vendor"}]
)
def test_other_firmware_fails(files: dict[str, Path | bytes], card: Card) -> None:
    card.write("firmware", card.volume(files))
    assert list(failed(card.verify())) == ["firmware: files"]


def test_firmware_that_is_gone_fails(card: Card) -> None:
    """Blank partitions are nothing to check, but the signed FIT says that there is firmware."""
    card.write("firmware", bytes(5 * MIB))
    assert "no partition holds the firmware's files" in failed(card.verify())["firmware"]


def test_a_second_volume_fails(card: Card) -> None:
    """The data partition is never trusted, and so no boot ROM may find a volume there."""
    card.write("data", card.volume({**FILES, "config.txt": b"kernel=evil\n"}))
    assert list(failed(card.verify())) == ["data: files"]
    # FAT12, as a ROM may read it
    card.write("data", b"\xeb\x3c\x90MSWIN4.1\0\2\1\1\0\2\xe0\0\x40\x0b\xf0\x09\0".ljust(510, b"\0") + b"\x55\xaa")
    assert "FAT12" in failed(card.verify())["data: volume"]


def test_an_mbr_that_lists_another_partition_fails(card: Card) -> None:
    card.write("data", bytes(1080) + b"\x53\xef")
    assert card.verify().ok
    card.write_table(card.table._replace(hybrid=3))
    assert "told to start from 'data'" in failed(card.verify())["MBR"]


def test_a_card_larger_than_its_image_passes(card: Card) -> None:
    larger = SIZE + 8 * MIB
    os.truncate(card.path, larger)
    verdict = card.verify()
    assert verdict.ok, failed(verdict)
    head, tail = gpt.encode(card.table._replace(sectors=larger // 512))
    with card.path.open("r+b") as file:
        os.pwrite(file.fileno(), tail, larger - len(tail))  # what would be taken once the first is damaged
    assert "another partition table" in failed(card.verify())["partition table"]
    with card.path.open("r+b") as file:
        os.pwrite(file.fileno(), head, 0)  # grown, as a board does with its own
    assert card.verify().ok
    with card.path.open("r+b") as file:
        os.pwrite(file.fileno(), bytes(512), larger - 512)
    assert "copies" in failed(card.verify())["partition table"]


def test_two_partitions_of_one_name_fail(card: Card) -> None:
    """The second would be taken for checked, as the first is."""
    entries = list(card.table.partitions)
    entries[3] = entries[3]._replace(name="boot_a")
    card.write_table(card.table._replace(partitions=tuple(entries)))
    card.write("data", b"whatever")
    assert "two partitions have the name 'boot_a'" in failed(card.verify())["partition table"]


def test_a_board_without_data_has_no_nameless_one(card: Card, made: Made) -> None:
    values: dict[str, object] = {**init_values((made.out / "boot.fit").read_bytes()), "DATA": "", "SLOTS": "a"}
    digest = files_digest({name: data for name, data in FILES.items() if isinstance(data, bytes)})
    card.write("boot_a", make_fit(values, KEY, firmware=digest))
    entries = list(card.table.partitions)
    entries[3] = entries[3]._replace(name="")
    card.write_table(card.table._replace(partitions=tuple(entries)))
    assert card.verify().ok
    card.write("data", b"whatever")
    assert failed(card.verify()) == {"": "no signature covers this partition"}


def test_a_disk_that_holds_nothing_proves_nothing(card: Card) -> None:
    for name, (_, size) in PLACES.items():
        card.write(name, bytes(size * MIB))
    assert "nothing on this disk is signed" in failed(card.verify())["disk"]


@pytest.mark.long
def test_the_stock_card(stock: Callable[[str], Path], tmp_path: Path) -> None:
    """The real one: its folder, its image, and the image with one byte of the firmware's files changed."""
    out, image = stock("rpi4"), tmp_path / "card.img"
    words = ["--key", str(out / "sign.pub.pem")]
    for path in (out, out / "disk.img"):
        done = CliRunner().invoke(cli, ["verify", str(path), *words])
        assert done.exit_code == 0 and "firmware: files" in done.output, done.output
    shutil.copyfile(out / "disk.img", image)
    text = b"enable_uart=1"
    with image.open("r+b") as file:
        start = MIB  # where the firmware partition begins
        at = os.pread(file.fileno(), 64 * MIB, start).index(text)
        os.pwrite(file.fileno(), b"enable_uart=0", start + at)
    done = CliRunner().invoke(cli, ["verify", str(image), *words])
    assert done.exit_code == 4 and "not the firmware's files" in done.output, done.output
