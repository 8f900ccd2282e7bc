# SPDX-License-Identifier: Apache-2.0
"""Payloads: read by unsquashfs and the kernel, at every block size; and their layout."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.bundle.squashfs import ALIGN, squashfs
from erofs_edge.errors import FormatError

EPOCH = 1_700_000_000


def write(path: Path, files: dict[str, bytes], block_size: int = 4096) -> None:
    payload = squashfs([(name, len(data)) for name, data in files.items()], epoch=EPOCH, block_size=block_size)
    with path.open("wb") as handle:
        handle.write(payload.head)
        for name, data in files.items():
            assert payload.places[name] % ALIGN == 0
            handle.seek(payload.places[name])
            handle.write(data)
        handle.seek(payload.tables)
        handle.write(payload.tail)
        assert handle.tell() <= payload.size and payload.size % ALIGN == 0
        handle.truncate(payload.size)


def samples(count: int = 1) -> dict[str, bytes]:
    chance = random.Random(5)
    files = {"system.img": chance.randbytes(9_000_001), "manifest": b"x\n", "empty": b"", "one-block": bytes(4096)}
    return files | {f"{number:03}{'n' * 120}": chance.randbytes(number) for number in range(count)}


@pytest.mark.oracle
@pytest.mark.parametrize(("block_size", "count"), [(4096, 1), (65536, 250), (1 << 20, 3)])
def test_unsquashfs_reads_it(tmp_path: Path, oracle: Callable[[str], str], block_size: int, count: int) -> None:
    files = samples(count)
    write(tmp_path / "image", files, block_size)
    out = tmp_path / "out"
    command = [oracle("unsquashfs"), "-q", "-n", "-strict-errors", "-d", str(out), str(tmp_path / "image")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    assert all(path.stat().st_mtime == EPOCH for path in out.iterdir())


@pytest.mark.root
def test_the_kernel_reads_it(tmp_path: Path, needs_root: None) -> None:
    files = samples(250)
    write(tmp_path / "image", files)
    (tmp_path / "at").mkdir()
    subprocess.run(["mount", "-t", "squashfs", "-o", "loop,ro", tmp_path / "image", tmp_path / "at"], check=True)
    try:
        assert {path.name: path.read_bytes() for path in (tmp_path / "at").iterdir()} == files
    finally:
        subprocess.run(["umount", tmp_path / "at"], check=True)


def test_golden_bytes() -> None:
    payload = squashfs([("b", 5000), ("a", 3)], epoch=1)
    assert payload.places == {"b": 4096, "a": 12288} and payload.tables == 16384 and payload.size == 20480
    assert payload.head[:12].hex() == "687371730300000001000000"
    assert payload.tail[:18].hex() == "9c80" + "0900a401" + "00000000" + "01000000" + "01000000"


def test_what_no_folder_can_hold() -> None:
    for names in (["a", "a"], ["a/b"], [""], [".."], ["n" * 256], [f"{n}" for n in range(257)], []):
        with pytest.raises(FormatError, match="need names"):
            squashfs([(name, 1) for name in names], epoch=0)
    for size in (2048, 5000, 2 << 20):
        with pytest.raises(FormatError, match="a squashfs block of"):
            squashfs([("a", 1)], epoch=0, block_size=size)
