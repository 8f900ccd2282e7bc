# SPDX-License-Identifier: Apache-2.0
"""An encrypted data partition in real QEMU: made at first boot, opened by its key, untouched without it.

The key is a file on a second disk. Debian's kernel for arm64 has no driver for the TPM that QEMU's virt machine offers
(CONFIG_TCG_TIS is not set), so that way is tested with a software TPM alone, in tests/boot/test_crypt_tpm.py.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from test_road import console_until

from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.built import load_built, machine_command
from erofs_edge.qemu.machine import Wiring, find_qemu
from erofs_edge.qemu.scratch import Scratch, copy_sparse

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(3000)]
HEADER = 16 << 20
LUKS = b"LUKS\xba\xbe\0\2"


def key_disk(folder: Path, key: bytes, oracle: Callable[[str], str]) -> Path:
    """A disk with one partition called 'keys', an ext4 with the file /data.key."""
    files, system, disk = folder / "files", folder / "system.img", folder / "keys.img"
    files.mkdir(parents=True)
    (files / "data.key").write_bytes(key)
    subprocess.run([oracle("mke2fs"), "-q", "-F", "-t", "ext4", "-d", str(files), str(system), "8M"], check=True)
    with disk.open("wb") as file:
        file.truncate(12 << 20)
        file.seek(1 << 20)
        file.write(system.read_bytes())
    command = [oracle("sgdisk"), "-n", "1:2048:+8M", "-c", "1:keys", str(disk)]
    subprocess.run(command, check=True, capture_output=True)
    return disk


def drive(disk: Path | None) -> tuple[str, ...]:
    if disk is None:
        return ()
    return ("-drive", f"if=none,id=keys,format=raw,file={disk},snapshot=on", "-device", "virtio-blk-pci,drive=keys")


def test_data_is_encrypted_from_the_first_boot_on(
    edge: str, repository: Path, tmp_path: Path, oracle: Callable[[str], str]
) -> None:
    path = tmp_path / "safe.yaml"
    path.write_text(
        f"board: safe\nextends: {repository}/boards/qemu-aarch64.yaml\n"
        "disk: {partitions: {data: {encrypt: {key: file, partition: keys}}}}\n"
    )
    for command in (["lock", path], ["build", path, "-o", tmp_path / "out", "--relock-if-gone"]):
        done = subprocess.run([edge, *map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    keys = key_disk(tmp_path / "right", bytes(range(64)), oracle)
    foreign = key_disk(tmp_path / "wrong", bytes(range(1, 65)), oracle)
    board, built = load_board(path).value, load_built(tmp_path / "out")
    disk = copy_sparse(built.disk, tmp_path / "disk.img")

    def boot(extra: Path | None, mark: bytes) -> bytes:
        wiring = Wiring(disk, snapshot=False, extra=drive(extra))
        command = machine_command(board, built, find_qemu(), tmp_path, wiring)
        return console_until(command, mark)

    def head() -> bytes:
        with Scratch(disk, board) as scratch:
            return scratch.read("data", 0, HEADER + 4096)

    good = b"erofs-edge: slot a is good"
    console = boot(keys, good)
    assert b"data=/dev/mapper/data" in console and b"var=ext4:rw" in console
    first = head()
    assert first[:8] == LUKS and first[HEADER + 1080 : HEADER + 1082] != b"\x53\xef"
    assert any(first[HEADER:])
    assert b"data=/dev/mapper/data" in boot(keys, good)
    assert head()[:HEADER] == first[:HEADER], "opened, not made anew"
    # each is waited for as a whole: the console may be read in the middle of a line
    for extra, complaint in (
        (None, b"no partition is labelled 'keys', where the key should be"),
        (foreign, b"the key does not open it"),
    ):
        assert complaint in boot(extra, complaint)
    assert head()[:HEADER] == first[:HEADER]
