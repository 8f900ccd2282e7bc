# SPDX-License-Identifier: Apache-2.0
"""Reading FAT: our own volumes, those of mkfs.fat and mtools, and hostile ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.disk.fat import build_fat
from erofs_edge.disk.fat_read import Volume
from erofs_edge.errors import FormatError

MIB = 1 << 20
EPOCH = 1_700_000_000
FILES: dict[str, bytes] = {
    "config.txt": b"arm_64bit=1\n",
    "KERNEL8.IMG": bytes(range(256)) * 700,
    "overlays/a long name of an overlay.dtbo": b"y" * 4096,
    "overlays/sub/αβγ.txt": b"z",
    "empty": b"",
    "x" * 255: b"longest",
} | {f"many/file number {i}.x": b"%d" % i for i in range(200)}


def opened(raw: bytes) -> Volume:
    return Volume(lambda offset, length: raw[offset : offset + length], len(raw))


def contents(volume: Volume) -> dict[str, bytes]:
    return {entry.path: volume.content(entry.clusters, entry.size) for entry in volume.files()}


@pytest.mark.parametrize(("size", "sector", "bits"), [(16 * MIB, 512, 16), (64 * MIB, 512, 32), (300 * MIB, 4096, 32)])
def test_round_trip(tmp_path: Path, size: int, sector: int, bits: int) -> None:
    build_fat(FILES, tmp_path / "v", size=size, label="fw", serial=0x1234ABCD, epoch=EPOCH, sector=sector)
    volume = opened((tmp_path / "v").read_bytes())
    assert (volume.bits, volume.label, volume.serial, volume.sector) == (bits, "FW", 0x1234ABCD, sector)
    assert contents(volume) == FILES


@pytest.mark.parametrize("bits", [16, 32])
def test_volumes_of_the_reference_tools(tmp_path: Path, oracle: Callable[[str], str], bits: int) -> None:
    image = tmp_path / "v"
    image.touch()
    os.truncate(image, 40 * MIB)
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"}
    subprocess.run(
        [oracle("mkfs.fat"), "-F", str(bits), "-s", "4" if bits == 16 else "1", "-n", "LABEL", image],
        check=True,
        capture_output=True,
    )
    wanted = {}
    for path, data in FILES.items():
        folder = ""
        for part in path.split("/")[:-1]:
            folder = f"{folder}/{part}"
            subprocess.run(
                [oracle("mmd"), "-i", image, "-D", "s", f"::{folder}"],
                capture_output=True,
                env=environment,
                check=False,
            )
        (tmp_path / "content").write_bytes(data)
        if path.isascii() and not path.startswith("many"):
            subprocess.run(
                [oracle("mcopy"), "-i", image, tmp_path / "content", f"::{path}"], check=True, env=environment
            )
            wanted[path] = data
    volume = opened(image.read_bytes())
    assert (volume.bits, volume.label) == (bits, "LABEL") and contents(volume) == wanted


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("fat") / "v"
    build_fat({"a/b": b"x" * 5000, "long name.txt": b"y"}, path, size=4 * MIB, label="fw", serial=1, epoch=EPOCH)
    return path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_hostile_volumes(small: bytes, data: st.DataObject) -> None:
    """Damage to the boot sector, the FAT and the directories gives a FormatError or files, never a hang."""
    raw = bytearray(small)
    used = 64 * 1024
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.one_of(st.integers(0, 100), st.integers(0, used)))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2, 700, 100]))])
    try:
        found = contents(opened(cut))
    except FormatError as error:
        assert error.where
    else:
        assert sum(map(len, found.values())) <= 64 * len(cut)
