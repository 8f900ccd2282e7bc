# SPDX-License-Identifier: Apache-2.0
"""The `verity` commands: their output and exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from killed import kills_leave_nothing

from erofs_edge.cli.main import cli
from erofs_edge.disk import gpt
from erofs_edge.erofs.ondisk import SUPER_OFFSET, SUPERBLOCK, Superblock

UUID = "12345678-9abc-4def-8123-456789abcdef"
SALT = "00112233445566778899aabbccddeeff"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["verity", *map(str, arguments)])


def formatted(image: Path, *options: str | Path) -> dict[str, Any]:
    result = run("format", image, *options, "--json")
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout)
    return record


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"".join(bytes([i % 251]) * 4096 for i in range(300)))
    return path


def test_format_prints_what_veritysetup_prints(image: Path) -> None:
    result = run("format", image, "--salt", SALT, "--uuid", UUID)
    assert result.exit_code == 0, result.output
    values = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert {key: value.strip() for key, value in values.items()} == {
        "UUID": UUID,
        "Data blocks": "300",
        "Data block size": "4096",
        "Hash block size": "4096",
        "Hash algorithm": "sha256",
        "Salt": SALT,
        "Hash offset": "1228800",
        "Hash start block": "301",
        "Root hash": "34efb1c790862926819599c64e019b1f309a8ded49f01176757e55b0d8fe0f6f",
    }


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for options in ((), ("--hash-device", tmp_path / "tree")):
        result = run("format", tmp_path / "empty", *options)
        assert result.exit_code == 1
        assert result.stderr == f"erofs-edge: error: {tmp_path / 'empty'}: an empty file: there is nothing to hash\n"
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_format_twice_is_refused_with_a_way_out(image: Path) -> None:
    formatted(image)
    size = image.stat().st_size
    result = run("format", image)
    assert result.exit_code == 2
    assert "already" in result.stderr
    assert f"hint: to remove it: truncate -s 1228800 {image}" in result.stderr
    assert image.stat().st_size == size


def test_format_is_refused_where_parity_follows_the_tree(image: Path) -> None:
    raw = bytearray(image.read_bytes())
    raw[SUPER_OFFSET : SUPER_OFFSET + SUPERBLOCK.size] = SUPERBLOCK.pack(*Superblock(blocks_lo=300))
    image.write_bytes(raw)
    formatted(image, "--fec-device", image)
    good = image.read_bytes()
    result = run("format", image)
    assert (result.exit_code, "already" in result.stderr) == (2, True)
    assert f"truncate -s 1228800 {image}" in result.stderr
    assert image.read_bytes() == good


@pytest.mark.oracle
def test_options_mean_what_they_mean_to_veritysetup(image: Path, tmp_path: Path, oracle: Callable[[str], str]) -> None:
    options = ["--data-block-size=1024", "--hash-block-size=2048", "--hash=sha512", "--salt=-", f"--uuid={UUID}"]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    record = formatted(image, "--hash-device", ours, "--hash-offset", "1024", *options)
    command = [oracle("veritysetup"), "format", "--hash-offset=1024", *options, image, theirs]
    theirs.write_bytes(bytes(200_000))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert record["root_hash"] in done.stdout
    assert theirs.read_bytes().rstrip(b"\0") == ours.read_bytes().rstrip(b"\0")


def test_verify(image: Path, tmp_path: Path) -> None:
    root = formatted(image)["root_hash"]
    (tmp_path / "root").write_text(root + "\n")
    for text in (root, f"@{tmp_path / 'root'}"):
        result = run("verify", image, "--root-hash", text)
        assert (result.exit_code, "all 300 data blocks match" in result.stdout) == (0, True)


def test_verify_names_the_bad_blocks_and_exits_with_4(image: Path) -> None:
    root = formatted(image)["root_hash"]
    raw = bytearray(image.read_bytes())
    for block in (7, 8, 299):
        raw[block * 4096] ^= 1
    image.write_bytes(raw)
    result = run("verify", image, "--root-hash", root)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "3 bad data block(s): 7-8, 299" in result.stderr
    result = run("verify", image, "--root-hash", root, "--json")
    record = json.loads(result.stdout)
    assert (result.exit_code, record["ok"]) == (4, False)
    assert record["bad_data_blocks"] == {"ranges": [[7, 2], [299, 1]], "total": 3}


def test_verify_asks_whether_the_root_hash_is_right(image: Path) -> None:
    formatted(image)
    result = run("verify", image, "--root-hash", "00" * 32)
    assert result.exit_code == 4
    assert "check that this is the root hash of this image" in result.stderr


def test_a_tree_of_another_salt_proves_nothing(image: Path, tmp_path: Path) -> None:
    """The same data, the same sizes, and a tree that is consistent in itself."""
    trees = {salt: tmp_path / salt for salt in ("aa", "bb")}
    roots = {
        salt: re.findall(r"Root hash: *(\w+)", run("format", image, "--hash-device", tree, "--salt", salt).stdout)[0]
        for salt, tree in trees.items()
    }
    for salt, tree in trees.items():
        for other, root in roots.items():
            result = run("verify", image, "--hash-device", tree, "--root-hash", root)
            assert result.exit_code == (0 if other == salt else 4), result.output
    assert roots["aa"] != roots["bb"]


def test_verify_finds_the_tree_in_a_padded_slot(image: Path) -> None:
    """A partition is larger than the image in it: the EROFS superblock tells where the tree begins."""
    raw = bytearray(image.read_bytes())
    raw[SUPER_OFFSET : SUPER_OFFSET + SUPERBLOCK.size] = SUPERBLOCK.pack(*Superblock(blocks_lo=300))
    image.write_bytes(raw)
    root = formatted(image)["root_hash"]
    with image.open("ab") as file:
        file.write(bytes(100_000))
    assert run("verify", image, "--root-hash", root).exit_code == 0


def test_verify_without_a_tree(image: Path) -> None:
    result = run("verify", image, "--root-hash", "00" * 32)
    assert (result.exit_code, "--hash-offset" in result.stderr) == (2, True)
    raw = bytearray(image.read_bytes())
    raw[SUPER_OFFSET : SUPER_OFFSET + SUPERBLOCK.size] = SUPERBLOCK.pack(*Superblock(blocks_lo=300))
    image.write_bytes(raw)
    result = run("verify", image, "--root-hash", "00" * 32)
    assert result.exit_code == 2 and f"{image}: no hash tree found" in result.stderr, "an EROFS that ends the file"
    result = run("verify", image, "--root-hash", "00" * 32, "--hash-offset", "4096")
    assert (result.exit_code, "offset 0x1000" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("format", "IMAGE", "--salt", "xyz"),
        ("format", "IMAGE", "--uuid", "nope"),
        ("format", "IMAGE", "--data-block-size", "1000"),
        ("format", "missing"),
        ("format", "IMAGE", "--fec-roots", "2"),
        ("format", "IMAGE", "--fec-offset", "4096"),
        ("verify", "IMAGE", "--root-hash", "00", "--fec-roots", "2"),
        ("repair", "IMAGE", "--root-hash", "00", "--from", "IMAGE", "--fec-offset", "4096"),
        ("verify", "IMAGE", "--root-hash", "zz"),
        ("verify", "IMAGE", "--root-hash", ""),
        ("verify", "IMAGE", "--root-hash", "@missing"),
        ("verify", "IMAGE", "--root-hash", "00", "--hash-offset", "0", "--hash-device", "missing"),
    ],
)
def test_nonsense_exits_with_2(arguments: tuple[str, ...], image: Path) -> None:
    before = image.read_bytes()
    result = run(*(str(image) if word == "IMAGE" else word for word in arguments))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert image.read_bytes() == before


def spoil(path: Path, *places: int) -> None:
    raw = bytearray(path.read_bytes())
    for place in places:
        raw[place] ^= 0x10
    path.write_bytes(raw)


def test_parity_from_format_to_repair(image: Path, tmp_path: Path) -> None:
    parity = tmp_path / "parity"
    made = formatted(image, "--fec-device", parity, "--fec-roots", "4")
    good, intact = image.read_bytes(), parity.read_bytes()
    assert (made["fec_roots"], made["fec_offset"], made["fec_blocks"]) == (4, 0, 304)
    assert made["fec_size"] == len(intact) == 2 * 4 * 4096
    options = ["--root-hash", made["root_hash"], "--fec-device", str(parity)]
    assert run("verify", image, *options).exit_code == 0
    spoil(image, 0, 7 * 4096, 8 * 4096 + 5, 302 * 4096)
    damaged = image.read_bytes()
    result = run("verify", image, *options)
    assert (result.exit_code, "all of it can be repaired" in result.stderr) == (4, True)
    result = run("repair", image, *options, "--dry-run")
    assert result.stdout == f"{image}: can repair 3 data block(s): 0, 7-8; 1 hash block(s): 302 (4 bytes)\n"
    assert image.read_bytes() == damaged
    record = json.loads(run("repair", image, *options, "--json").stdout)
    assert (record["ok"], record["dry_run"], record["corrected_bytes"]) == (True, False, 4)
    assert record["repaired_hash_blocks"] == {"ranges": [[302, 1]], "total": 1}
    assert image.read_bytes() == good
    assert run("repair", image, *options).stdout == f"{image}: nothing repaired\n"


def test_repair_from_a_disk_and_from_a_folder(image: Path, tmp_path: Path) -> None:
    """The blocks are at a different place each time; the damaged superblock is rebuilt, too."""
    root = formatted(image)["root_hash"]
    good, disk, store = image.read_bytes(), tmp_path / "disk", tmp_path / "store"
    disk.write_bytes(bytes(3 * 4096) + good + bytes(4096))
    (store / "more").mkdir(parents=True)
    for number, at in enumerate(range(0, len(good), 40 * 4096)):
        (store / "more" / f"piece{number}").write_bytes(good[at : at + 40 * 4096])
    (store / "small").write_bytes(b"no block")
    (store / "itself").symlink_to(image)
    for source in (disk, store):
        spoil(image, 0, 299 * 4096, 303 * 4096 + 9)
        result = run("repair", image, "--root-hash", root, "--from", source)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(f"{image}: repaired 2 data block(s): 0, 299; 1 hash block(s): 303")
        assert image.read_bytes() == good
    (tmp_path / "empty").mkdir()
    result = run("repair", image, "--root-hash", root, "--from", tmp_path / "empty")
    assert (result.exit_code, "no files to take blocks from" in result.stderr) == (2, True)


def test_wrong_parity_is_told_and_made_anew(image: Path, tmp_path: Path) -> None:
    parity = tmp_path / "parity"
    root = formatted(image, "--fec-device", parity)["root_hash"]
    intact = parity.read_bytes()
    spoil(parity, 1, 77)
    options = ["--root-hash", root, "--fec-device", str(parity)]
    result = run("verify", image, *options)
    assert (result.exit_code, "2 byte(s) of parity are wrong" in result.stderr) == (4, True)
    assert run("verify", image, "--root-hash", root).exit_code == 0
    assert run("repair", image, *options).stdout == f"{image}: rebuilt 2 bytes of parity\n"
    assert parity.read_bytes() == intact


def test_repair_names_what_is_lost(image: Path, tmp_path: Path) -> None:
    parity = tmp_path / "parity"
    root = formatted(image, "--fec-device", parity)["root_hash"]
    spoil(image, 0, 10 * 4096, 20 * 4096)  # two rounds: three bad blocks in one word, two roots
    before = image.read_bytes()
    options = ["--root-hash", root, "--fec-device", str(parity)]
    result = run("repair", image, *options)
    assert (result.exit_code, "beyond repair: 3 bad data block(s): 0, 10, 20" in result.stderr) == (4, True)
    assert image.read_bytes() == before
    result = run("verify", image, *options)
    assert (result.exit_code, "would leave 3 bad data block(s)" in result.stderr) == (4, True)


def test_everything_in_one_file(image: Path) -> None:
    made = formatted(image, "--fec-device", image)
    good = image.read_bytes()
    assert made["fec_offset"] + made["fec_size"] == len(good)
    spoil(image, 5)
    options = ["--root-hash", made["root_hash"], "--fec-device", image, "--fec-offset", str(made["fec_offset"])]
    assert run("repair", image, *options).exit_code == 0
    assert image.read_bytes() == good
    assert run("verify", image, *options).exit_code == 0


def test_parity_behind_the_tree_needs_no_offset(image: Path) -> None:
    """The offset's default is where `format` puts parity, and the user is told about it."""
    raw = bytearray(image.read_bytes())
    raw[SUPER_OFFSET : SUPER_OFFSET + SUPERBLOCK.size] = SUPERBLOCK.pack(*Superblock(blocks_lo=300))
    image.write_bytes(raw)
    root = formatted(image, "--fec-device", image)["root_hash"]
    good = image.read_bytes()
    spoil(image, 5)
    result = run("verify", image, "--root-hash", root)
    assert (result.exit_code, f"--fec-device {image} to see what it can repair" in result.stderr) == (4, True)
    result = run("verify", image, "--root-hash", root, "--fec-device", image)
    assert (result.exit_code, "all of it can be repaired" in result.stderr) == (4, True)
    result = run("repair", image, "--root-hash", root)
    assert (result.exit_code, f"--fec-device {image}" in result.stderr) == (2, True)
    assert run("repair", image, "--root-hash", root, "--fec-device", image).exit_code == 0
    assert image.read_bytes() == good


def test_a_disk_is_told_from_an_image(tmp_path: Path) -> None:
    kind, *guids = (uuid.UUID(int=number) for number in range(1, 4))
    head, tail = gpt.encode(gpt.Table(guids[0], 6000, [gpt.Partition("system_a", kind, guids[1], 2048, 4095)]))
    disk = tmp_path / "disk"
    disk.write_bytes(head + bytes(6000 * 512 - len(head) - len(tail)) + tail)
    for words in (("verify", disk, "--root-hash", "00" * 32), ("dump", disk)):
        result = run(*words)
        assert "this is a disk: add --partition with one of system_a" in result.stderr, result.stderr


def test_a_failed_parity_leaves_the_image_as_it_was(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    for options in (
        ["--fec-device", tmp_path / "parity", "--fec-offset", "100"],
        ["--fec-device", tmp_path / "parity", "--fec-roots", "25"],
        ["--fec-device", tmp_path / "parity", "--hash-block-size", "1024"],
        ["--fec-device", image, "--fec-offset", "4096"],
        ["--fec-device", tmp_path / "missing" / "parity"],
    ):
        result = run("format", image, *options)
        assert result.exit_code != 0
        assert "Traceback" not in result.output
        assert image.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image"]


def test_dump(image: Path, tmp_path: Path) -> None:
    made = formatted(image, "--salt", SALT, "--uuid", UUID)
    record = json.loads(run("dump", image, "--json").stdout)
    assert {key: record[key] for key in record.keys() & made.keys()} == {
        key: made[key] for key in record.keys() & made.keys()
    }
    assert (record["hash_blocks"], record["hash_levels"], record["tree_end"]) == (4, 2, image.stat().st_size)
    assert f"Salt:              {SALT}" in run("dump", image).stdout
    result = run("dump", image, "--hash-offset", "4096")
    assert (result.exit_code, "offset 0x1000" in result.stderr) == (1, True)
    (tmp_path / "other").write_bytes(bytes(10_000))
    result = run("dump", tmp_path / "other")
    assert (result.exit_code, f"{tmp_path / 'other'}: no hash tree found" in result.stderr) == (1, True)


def test_the_root_hash_as_a_file(image: Path, tmp_path: Path) -> None:
    """In the form that is signed; and the image is unchanged if the file cannot be written."""
    made = formatted(image, "--root-hash-file", tmp_path / "hash")
    assert (tmp_path / "hash").read_text() == made["root_hash"]
    assert run("verify", image, "--root-hash", f"@{tmp_path / 'hash'}").exit_code == 0
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(8192))
    assert run("format", plain, "--root-hash-file", tmp_path / "missing" / "hash").exit_code == 1
    assert plain.read_bytes() == bytes(8192)


def test_dump_of_a_hash_device(image: Path, tmp_path: Path) -> None:
    formatted(image, "--hash-device", tmp_path / "tree", "--uuid", UUID)
    assert json.loads(run("dump", tmp_path / "tree", "--json").stdout)["uuid"] == UUID


def test_files_that_are_hit_are_named(tmp_path: Path) -> None:
    """Block → path, if the image is an EROFS; with a damaged superblock, as far as possible."""
    from erofs_edge.erofs import build
    from erofs_edge.verity.tree import append

    (tmp_path / "tree").mkdir()
    for name in ("first", "second"):
        (tmp_path / "tree" / name).write_bytes(name.encode() * 3000)
    image = tmp_path / "system.img"
    build(tmp_path / "tree", image, compression="none")
    data = image.read_bytes()
    root = append(image).root_hash.hex()
    raw = bytearray(image.read_bytes())
    raw[data.index(b"second" * 100) + 5000] ^= 1
    image.write_bytes(raw)
    result = CliRunner().invoke(cli, ["verity", "verify", str(image), "--root-hash", root])
    assert result.exit_code == 4
    assert "files hit: /second" in result.stderr
    record = CliRunner().invoke(cli, ["verity", "verify", str(image), "--root-hash", root, "--json"])
    assert json.JSONDecoder().raw_decode(record.stdout)[0]["files"] == ["/second"]


def test_an_image_that_was_cut_is_named(image: Path, tmp_path: Path) -> None:
    record = formatted(image)
    whole = tmp_path / "whole"
    whole.write_bytes(image.read_bytes())
    with image.open("r+b") as file:
        file.truncate(100 * 4096)
    result = run("repair", image, "--root-hash", record["root_hash"], "--from", whole)
    assert result.exit_code == 1 and f"{image}: offset " in result.stderr and "there are 409600" in result.stderr


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for verb in (["verify", "--root-hash", "00" * 32], ["repair", "--root-hash", "00" * 32, "--from", str(tmp_path)],
                 ["format"], ["dump"]):  # fmt: skip
        result = run(*verb, pipe)
        assert result.exit_code == 2 and f"{pipe}: a pipe, not a file" in result.stderr, result.output


def test_kills_leave_nothing(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    where = ("--hash-device", out / "tree", "--fec-device", out / "parity", "--root-hash-file", out / "root")
    kills_leave_nothing(out, "verity", "format", image, *where)
