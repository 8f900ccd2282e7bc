# SPDX-License-Identifier: Apache-2.0
"""What an installer medium carries, and its script on disks that are files: real dd, sha256sum and shell."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from uefi_sample import BOARD

from erofs_edge.disk import gpt
from erofs_edge.disk.layout import DiskLayout, Placement, write_disk
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsEdgeError, FormatError, ManifestError
from erofs_edge.installer import payload
from erofs_edge.installer.medium import Wanted, make_medium
from erofs_edge.installer.payload import MIB, pieces_of, write_payload
from erofs_edge.manifest.load import load_board
from erofs_edge.manifest.lockfile import load_lock, lock_path
from erofs_edge.sources.cache import Cache
from erofs_edge.trust.signer import open_signer
from erofs_edge.verity.tree import verify

SCRIPT = Path(payload.__file__).with_name("install.sh")
PROGRAMS = ("cat", "dd", "head", "sh", "sha256sum", "sleep", "tr")
NOTHING = ("mount", "insmod", "dmsetup", "blockdev", "sync")
SEED = b"seed"
KILLED = """
import os, signal, sys
from pathlib import Path
from erofs_edge.installer.medium import _folder_beside
with _folder_beside(Path(sys.argv[1])) as folder:
    (folder / "payload").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "PIECE", 2)


def disk_image(folder: Path) -> Path:
    """Two slots with the same 3 MiB, a hole inside, a small partition, an empty one."""
    system, state, out = folder / "system", folder / "state", folder / "disk.img"
    with system.open("wb") as file:
        file.write(b"head" * 1000)
        file.seek(2 * MIB + 5)
        file.write(b"tail")
    state.write_bytes(b"state" * 100)
    placements, entries, start = [], [], MIB
    for name, size, content in (
        ("system_a", 4, system), ("system_b", 4, system), ("misc", 1, state), ("data", 3, None),
    ):  # fmt: skip
        placements.append(Placement(name, start, size * MIB, content))
        first, last = start // 512, (start + size * MIB) // 512 - 1
        entries.append(gpt.Partition(name, gpt.TYPE_LINUX, gpt.guid_from(SEED, name), first, last))
        start += size * MIB
    table = gpt.Table(gpt.guid_from(SEED, ""), (start + MIB) // 512, tuple(entries))
    write_disk(DiskLayout(start + MIB, table, tuple(placements)), out)
    return out


def test_pieces_are_what_makes_a_disk_this_one(tmp_path: Path) -> None:
    image = disk_image(tmp_path)
    assert [(piece.name, piece.at, piece.count) for piece in pieces_of(image)] == [
        ("partition-table", 0, 1), ("system_a", 1, 2), ("system_a", 3, 1), ("system_b", 5, 2), ("system_b", 7, 1),
        ("misc", 9, 1), ("data", 10, 1), ("data", 12, 1), ("partition-table", 13, 1),
    ]  # fmt: skip
    raw = image.read_bytes()
    for piece in pieces_of(image):
        assert hashlib.sha256(raw[piece.at * MIB :][: piece.count * MIB]).hexdigest() == piece.digest
    (tmp_path / "no-table").write_bytes(bytes(4 * MIB))
    with pytest.raises(FormatError) as caught:
        pieces_of(tmp_path / "no-table")
    assert caught.value.where == f"{tmp_path / 'no-table'}: offset 0x200"


def test_the_payload_is_verified_and_has_equal_slots_once(tmp_path: Path) -> None:
    image, made = disk_image(tmp_path), []
    for name in ("one", "two"):
        pieces, info = write_payload(image, tmp_path / name, epoch=1)
        made.append((tmp_path / name).read_bytes())
        assert verify(tmp_path / name, info.root_hash).ok
    assert made[0] == made[1]
    with Image(tmp_path / "one") as opened:
        names = {name.decode() for name, _ in opened.walk()}
    assert {f"pieces/{piece.digest}" for piece in pieces} < names
    assert len([name for name in names if name.startswith("pieces/")]) == 6, "slots, and both ends of data, once"


def test_a_board_without_uefi_has_no_medium(tmp_path: Path) -> None:
    board = msgspec.structs.replace(BOARD, boot=msgspec.structs.replace(BOARD.boot, uefi=None))
    nothing: Any = None
    with pytest.raises(ManifestError, match="no UEFI firmware that could start a medium"):
        make_medium(board, nothing, tmp_path, tmp_path / "x", Wanted(), nothing, nothing)
    with pytest.raises(ErofsEdgeError, match=r"no disk.img here"):
        make_medium(BOARD, nothing, tmp_path, tmp_path / "x", Wanted(), nothing, nothing)


def test_what_a_medium_is_made_of_is_named_where_it_lacks(repository: Path, tmp_path: Path) -> None:
    board = load_board(repository / "boards/generic-uefi-arm64.yaml")
    disk_image(tmp_path)

    def make(path: Path) -> ErofsEdgeError:
        with pytest.raises(ErofsEdgeError) as caught:
            signer, lock = open_signer("dev:dev"), load_lock(lock_path(board.path))
            make_medium(board.value, lock, tmp_path, path, Wanted(), signer, Cache())
        return caught.value

    error = make(tmp_path / "none/installer.img")
    assert (error.where, error.message) == (
        str(tmp_path / "none/installer.img"),
        "cannot write: No such file or directory",
    )
    child = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "installer.img"], check=False)
    left = set(tmp_path.glob(".*"))
    assert child.returncode == -signal.SIGKILL and len(left) == 1
    error = make(tmp_path / "installer.img")
    assert (error.where, error.hint) == (str(tmp_path / "sign.crt"), "build again")
    assert not any(path.exists() for path in left), "what a killed one left is swept away"


@dataclass
class Machine:
    """A folder that stands for the machine: its medium, its disks by name, and what the script may call."""

    place: Path
    image: Path

    def disk(self, name: str, data: bytes = b"", *, size: int | None = None, read_only: bool = False) -> Path:
        path, folder = self.place / "dev" / name, self.place / "sys/block" / name
        folder.mkdir(parents=True)
        with path.open("wb") as file:
            file.write(data)
            file.truncate(size if size is not None else self.image.stat().st_size)
        (folder / "ro").write_text(f"{int(read_only)}\n")
        (folder / "size").write_text(f"{path.stat().st_size // 512}\n")
        return path

    def run(self, **values: str) -> str:
        """What the script says, on the console."""
        config = {"TITLE": "lab", "LABEL": "medium", "DISK": "", "OVERWRITE": "", "SECTORS": "8", "BLOCK_SIZE": "4096",
                  "MEBIBYTES": str(self.image.stat().st_size // MIB)} | values  # fmt: skip
        (self.place / "config").write_text("".join(f"{name}='{value}'\n" for name, value in config.items()))
        text = re.sub(
            r"(?<![\w./}*])/(sys|proc|dev|config|modules|missing|payload)\b", rf"{self.place}/\1", SCRIPT.read_text()
        )
        text = text.replace("PATH=/bin ", f"PATH={self.place}/bin ").replace("turns=300", "turns=2")
        text = text.replace(f"if={self.place}/dev/zero", "if=/dev/zero").replace(
            f"2>{self.place}/dev/null", "2>/dev/null"
        )
        done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False, timeout=200)
        assert done.stderr == ""
        return done.stdout.replace(str(self.place), "")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    image = disk_image(tmp_path)
    place = tmp_path / "machine"
    for folder in ("bin", "dev", "modules", "payload/pieces", "proc/sys/vm", "sys/block/sda/sda1"):
        (place / folder).mkdir(parents=True)
    for name in PROGRAMS:
        found = shutil.which(name)
        assert found
        (place / "bin" / name).symlink_to(found)
    for name in NOTHING:
        (place / "bin" / name).write_text("#!/bin/sh\n")
        (place / "bin" / name).chmod(0o755)
    # the machine ends: so does the script
    (place / "bin/poweroff").write_text("#!/bin/sh\nkill $PPID\n")
    (place / "bin/poweroff").chmod(0o755)
    (place / "bin/sleep").unlink()
    (place / "bin/sleep").write_text("#!/bin/sh\n")
    (place / "bin/sleep").chmod(0o755)
    (place / "sys/block/sda/sda1/partition").write_text("1\n")
    (place / "sys/block/sda/sda1/uevent").write_text("DEVNAME=sda1\nPARTNAME=medium\n")
    raw, lines = image.read_bytes(), []
    for piece in pieces_of(image):
        (place / "payload/pieces" / piece.digest).write_bytes(raw[piece.at * MIB :][: piece.count * MIB])
        lines.append(f"{piece.at} {piece.count} {piece.digest} {piece.name}\n")
    (place / "payload/list").write_text("".join(lines))
    return Machine(place, image)


def test_a_blank_disk_becomes_the_image(machine: Machine) -> None:
    disk = machine.disk("vda")
    machine.disk("loop0")
    machine.disk("small", size=MIB)
    machine.disk("locked", read_only=True)
    assert "installer: verified 11 MiB on /dev/vda, remove the medium" in machine.run()
    assert disk.read_bytes() == machine.image.read_bytes()
    assert "FAILED: /dev/vda is not blank, it is left as it is" in machine.run()


def test_a_disk_that_is_not_blank_is_left_unless_it_was_said(machine: Machine) -> None:
    size = machine.image.stat().st_size
    disk = machine.disk("vda", b"something" * 100_000)
    before = disk.read_bytes()
    assert "FAILED: /dev/vda is not blank, it is left as it is" in machine.run()
    assert disk.read_bytes() == before
    assert "verified 11 MiB on /dev/vda" in machine.run(OVERWRITE="yes")
    assert disk.stat().st_size == size
    raw = disk.read_bytes()
    for piece in pieces_of(machine.image):
        assert hashlib.sha256(raw[piece.at * MIB :][: piece.count * MIB]).hexdigest() == piece.digest


def test_a_disk_without_its_driver(machine: Machine) -> None:
    (machine.place / "modules/1").mkdir()
    (machine.place / "modules/1/000-nvme.ko").touch()
    (machine.place / "bin/insmod").write_text("#!/bin/sh\nexit 1\n")
    reason = "no disk of 14 MiB that can be written (modules that did not load: 000-nvme.ko )"
    assert f"FAILED: {reason}" in machine.run()


def test_which_disk(machine: Machine) -> None:
    machine.disk("small", size=MIB)
    assert "FAILED: no disk of 14 MiB that can be written" in machine.run()
    one, two = machine.disk("nvme0n1"), machine.disk("vda")
    assert "FAILED: more than one disk could be meant: nvme0n1 vda" in machine.run()
    assert not any(one.read_bytes()) and not any(two.read_bytes())
    assert "verified 11 MiB on /dev/vda" in machine.run(DISK="vda")
    assert not any(one.read_bytes())
    assert "FAILED: no disk sdx of 14 MiB that can be written" in machine.run(DISK="sdx")


def test_a_disk_that_loses_data_gets_no_table(machine: Machine) -> None:
    """A piece that does not arrive as the list says it: found when it is read back, and the disk starts nothing."""
    disk = machine.disk("vda")
    lines = (machine.place / "payload/list").read_text().splitlines(keepends=True)
    digest = lines[3].split()[2]
    (machine.place / "payload/pieces" / digest).write_bytes(b"other" * 1000)
    assert "FAILED: /dev/vda does not keep what is written to it: system_a at MiB 1" in machine.run()
    assert not any(disk.read_bytes()[:MIB])


def test_a_larger_disk_that_is_left_half_written_has_no_old_table(machine: Machine) -> None:
    size = machine.image.stat().st_size + 3 * MIB + 512
    disk = machine.disk("vda", b"old " * (size // 4), size=size)
    digest = (machine.place / "payload/list").read_text().splitlines()[3].split()[2]
    (machine.place / "payload/pieces" / digest).write_bytes(b"other" * 1000)
    assert "FAILED: /dev/vda does not keep" in machine.run(OVERWRITE="yes")
    raw = disk.read_bytes()
    assert len(raw) == size and b"old " in raw
    assert not any(raw[:MIB]) and not any(raw[-MIB:])


def test_a_medium_of_another_build(machine: Machine) -> None:
    machine.disk("vda")
    assert "FAILED: no partition is labelled 'other'" in machine.run(LABEL="other")
