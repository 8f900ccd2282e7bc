# SPDX-License-Identifier: Apache-2.0
"""boot.scr against mkimage; the files of a firmware partition."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.boot.firmware import firmware_files, package_file, script_image
from erofs_edge.errors import ManifestError, SourceError
from erofs_edge.manifest.load import load_board
from erofs_edge.manifest.model import Board, PackageFile
from erofs_edge.tree import BytesContent, FileTree, Inode

EPOCH = 1_700_000_000


@pytest.mark.parametrize("script", ["echo hello\nbootm\n", "x" * 7001])
def test_script_image_is_that_of_mkimage(script: str, tmp_path: Path, oracle: Callable[[str], str]) -> None:
    (tmp_path / "boot.txt").write_text(script)
    options = ["-A", "arm64", "-O", "linux", "-T", "script", "-C", "none", "-n", "a board"]
    command = [oracle("mkimage"), *options, "-d", "boot.txt", "boot.scr"]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert script_image(script, name="a board", epoch=EPOCH) == (tmp_path / "boot.scr").read_bytes()


def packages() -> dict[str, FileTree]:
    """What boards/rpi4.yaml takes from packages, with each file's own path as its content."""
    trees: dict[str, FileTree] = {"u-boot-rpi": FileTree(), "raspi-firmware": FileTree()}
    for name, path in (
        ("u-boot-rpi", "/usr/lib/u-boot/rpi_arm64/u-boot.bin"),
        ("raspi-firmware", "/usr/lib/raspi-firmware/start4.elf"),
        ("raspi-firmware", "/usr/lib/raspi-firmware/fixup4.dat"),
    ):
        trees[name].add(path, Inode(0o100644, content=BytesContent(path.encode())))
    return trees


@pytest.fixture
def rpi4(repository: Path) -> Board:
    return load_board(repository / "boards/rpi4.yaml").value


def test_files_of_the_raspberry_pi(rpi4: Board) -> None:
    files = firmware_files(rpi4, packages(), u_boot=b"loader", script="bootm\n", dtb=b"tree with key", epoch=EPOCH)
    assert list(files) == ["bcm2711-rpi-4-b.dtb", "boot.scr", "config.txt", "fixup4.dat", "start4.elf", "u-boot.bin"]
    assert files["bcm2711-rpi-4-b.dtb"] == b"tree with key"
    assert files["u-boot.bin"] == b"loader"
    assert b"arm_64bit=1\n" in files["config.txt"]
    assert b"kernel=u-boot.bin\n" in files["config.txt"]
    assert files["boot.scr"] == script_image("bootm\n", name="rpi4", epoch=EPOCH)


def test_two_files_of_one_name_are_refused(rpi4: Board) -> None:
    import msgspec

    clash = PackageFile(package="raspi-firmware", path="/usr/lib/raspi-firmware/start4.elf", to="CONFIG.TXT")
    boot = msgspec.structs.replace(rpi4.boot, firmware=[clash])
    board = msgspec.structs.replace(rpi4, boot=boot)
    with pytest.raises(ManifestError, match=r"two files named config\.txt"):
        firmware_files(board, packages(), u_boot=b"", script="", dtb=None, epoch=EPOCH)


def test_missing_package_and_file_are_named() -> None:
    with pytest.raises(SourceError, match="package other is not among"):
        package_file(packages(), PackageFile(package="other", path="/x"))
    with pytest.raises(SourceError, match=r"raspi-firmware has no file /usr/lib/start\.elf"):
        package_file(packages(), PackageFile(package="raspi-firmware", path="/usr/lib/start.elf"))
