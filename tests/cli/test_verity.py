# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge verity` from the outside: what it prints, what it exits with."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli
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


def test_format_twice_is_refused_with_a_way_out(image: Path) -> None:
    formatted(image)
    size = image.stat().st_size
    result = run("format", image)
    assert result.exit_code == 2
    assert "already" in result.stderr
    assert f"hint: to take it off: truncate -s 1228800 {image}" in result.stderr
    assert image.stat().st_size == size


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
    assert "is this the root hash of this image?" in result.stderr


def test_verify_finds_the_tree_in_a_padded_slot(image: Path) -> None:
    """A partition is larger than the image in it: the EROFS superblock says where the tree begins."""
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
    result = run("verify", image, "--root-hash", "00" * 32, "--hash-offset", "4096")
    assert (result.exit_code, "offset 0x1000" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("format", "IMAGE", "--salt", "xyz"),
        ("format", "IMAGE", "--uuid", "nope"),
        ("format", "IMAGE", "--data-block-size", "1000"),
        ("format", "missing"),
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
