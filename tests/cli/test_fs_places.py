# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge fs` on images that do not begin at the start of the file: partitions of a disk, and other offsets."""

from __future__ import annotations

import gzip
import json
import mmap
import random
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge import erofs
from erofs_edge.cli.main import cli
from erofs_edge.disk import gpt

SECTOR = 512
START = 2048 * SECTOR


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["fs", *map(str, arguments)])


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with two partitions: "system" contains an image, "data" zeros."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"what it says " * 4000)
    (tmp_path / "tree" / "link").symlink_to("file")
    erofs.build(tmp_path / "tree", tmp_path / "image", compression="lz4")
    raw = (tmp_path / "image").read_bytes()
    size = -(-len(raw) // SECTOR)
    guids = [uuid.UUID(int=number) for number in range(1, 5)]
    table = gpt.Table(
        guids[0],
        8192,
        (
            gpt.Partition("system", guids[1], guids[2], 2048, 2048 + size - 1),
            gpt.Partition("data", guids[1], guids[3], 4096, 4103),
        ),
    )
    head, tail = gpt.encode(table)
    path = tmp_path / "disk.img"
    path.write_bytes(head.ljust(START, b"\0") + raw.ljust(8192 * SECTOR - START - len(tail), b"\0") + tail)
    return path


PLACES = (("--partition", "system"), ("--offset", str(START)))


@pytest.mark.parametrize("place", PLACES)
def test_every_command_reads_an_image_inside_a_disk(place: tuple[str, str], disk: Path, tmp_path: Path) -> None:
    alone = tmp_path / "image"
    for command, *arguments in (
        ("ls", "/", "-R", "--json"), ("cat", "/file"), ("stat", "/file", "--json"), ("dump", "-S", "--json"),
        ("map", "--json"), ("check", "--json"),
    ):  # fmt: skip
        inside, expected = run(command, disk, *arguments, *place), run(command, alone, *arguments)
        assert (inside.exit_code, expected.exit_code) == (0, 0), inside.output
        if command == "map":  # it also tells how much of the file is behind the image
            assert json.loads(inside.stdout)["regions"][:5] == json.loads(expected.stdout)["regions"][:5]
        else:
            assert inside.stdout == expected.stdout, command
    assert run("extract", disk, tmp_path / "out", *place).exit_code == 0
    assert (tmp_path / "out" / "file").read_bytes() == (tmp_path / "tree" / "file").read_bytes()
    assert (tmp_path / "out" / "link").readlink() == Path("file")


def test_a_disk_that_is_cut_is_named(disk: Path) -> None:
    with disk.open("r+b") as handle:
        handle.truncate(START)
    for command, *arguments in (("ls", "/"), ("cat", "/file"), ("check",)):
        found = run(command, disk, *arguments, "--partition", "system")
        assert found.exit_code == 1
        assert found.stderr.startswith(f"erofs-edge: error: {disk}: offset 0x200: the GPT header is for another place")


def test_a_broken_byte_inside_a_disk_is_found(disk: Path) -> None:
    raw = bytearray(disk.read_bytes())
    raw[START + 1024 + 4] ^= 1  # of the superblock's checksum
    disk.write_bytes(raw)
    found = run("check", disk, "--partition", "system", "--json")
    assert found.exit_code == 1 and json.loads(found.stdout)["findings"][0]["where"] == "offset 0x404"


def test_python_opens_it_too(disk: Path) -> None:
    with erofs.open(disk, offset=START) as image:
        assert image.open("/file").read(7) == b"what it"


def test_messages_name_the_image_and_what_to_do(disk: Path, tmp_path: Path) -> None:
    for arguments, code, words in (
        ((), 1, (f"{disk}: offset 0x400: not an EROFS image", "--partition with one of system, data")),
        (("--partition", "data"), 1, (f"{disk}: data: offset 0x400: not an EROFS image",)),
        (("--partition", "nix"), 2, ("no partition 'nix'", "the partitions are system, data")),
        (("--partition", "system", "--offset", str(START)), 2, ("use one of them",)),
        (("--offset", str(mmap.ALLOCATIONGRANULARITY + 1)), 2, (f"multiples of {mmap.ALLOCATIONGRANULARITY}",)),
        (("--offset", str(1 << 40)), 1, ("the file ends before the image",)),
    ):
        result = run("ls", disk, *arguments)
        assert result.exit_code == code, result.output
        assert all(word in result.stderr for word in words), result.stderr
    result = run("ls", tmp_path / "image", "--partition", "system")
    assert result.exit_code == 2 and "no partition table" in result.stderr


def test_a_packed_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "i.gz").write_bytes(gzip.compress(random.Random(1).randbytes(5000)))
    for verb in ("ls", "check"):
        done = CliRunner().invoke(cli, ["fs", verb, str(tmp_path / "i.gz")])
        assert done.exit_code == 1 and f"hint: unpack it first: gzip -dk {tmp_path}/i.gz" in done.stderr


def test_check_of_a_whole_disk_says_which_partitions_there_are(disk: Path) -> None:
    result = run("check", disk)
    assert (result.exit_code, result.stderr) == (1, "hint: this is a disk: add --partition with one of system, data\n")
    assert run("check", disk, "--partition", "data").stderr == ""
