# SPDX-License-Identifier: Apache-2.0
"""Disks in use are refused, whatever uses them. The tests have a fake /sys and /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from erofs_edge.errors import DeviceError, DeviceRefusedError
from erofs_edge.flash import guard
from erofs_edge.flash.guard import Host, identify, refuse_unsafe

CARD = Path("/dev/sdx")


class Stage:
    """sdx (8:16) with sdx1 (8:17) and sdx2 (8:18), not in use; `mount`, `swap` and `hold` change that."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = Host(root / "sys", root / "proc")
        self.block = root / "sys/devices/usb1/block/sdx"
        (root / "sys/dev/block").mkdir(parents=True)
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
        (root / "proc/swaps").write_text("Filename Type Size Used Priority\n")
        self.device(self.block, "8:16", size="62333952", ro="0", removable="1")
        self.device(self.block / "sdx1", "8:17", partition="1")
        self.device(self.block / "sdx2", "8:18", partition="2")
        self.put(self.block / "queue/logical_block_size", "512")
        for name, text in (("vendor", "Acme   "), ("model", "Card Reader"), ("serial", "0042")):
            self.put(self.block / "device" / name, text)

    def put(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def device(self, folder: Path, devno: str, **files: str) -> None:
        (folder / "holders").mkdir(parents=True)
        for name, text in {"dev": devno, **files}.items():
            self.put(folder / name, text)
        (self.root / "sys/dev/block" / devno).symlink_to(folder)

    def hold(self, below: Path, name: str, devno: str) -> Path:
        folder = self.root / "sys/devices/virtual/block" / name
        if not folder.exists():
            self.device(folder, devno)
        (below / "holders" / name).symlink_to(folder)
        return folder

    def mount(self, devno: str, where: str, source: str = "/dev/none") -> None:
        with (self.root / "proc/self/mountinfo").open("a") as file:
            file.write(f"30 22 {devno} / {where} rw,relatime shared:1 - ext4 {source} rw\n")

    def check(self) -> None:
        refuse_unsafe(CARD, (8, 16), self.host)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_free_card_passes(stage: Stage) -> None:
    stage.check()
    found = identify(CARD, (8, 16), stage.host)
    assert (found.size, found.sector, found.model, found.serial) == (62333952 * 512, 512, "Acme Card Reader", "0042")
    assert found.removable


@pytest.mark.parametrize("devno", ["8:16", "8:17", "8:18"])
def test_mounted(devno: str, stage: Stage) -> None:
    stage.mount(devno, "/media/my\\040card")
    with pytest.raises(DeviceRefusedError, match="mounted on /media/my card") as caught:
        stage.check()
    assert caught.value.exit_code == 7
    assert caught.value.hint == "umount /media/my card"


@pytest.mark.parametrize("where", ["/", "/boot", "/usr", "/boot/efi"])
def test_running_system(where: str, stage: Stage) -> None:
    stage.mount("8:17", "/media/card")
    stage.mount("8:18", where)
    with pytest.raises(DeviceRefusedError, match=f"holds the running system: sdx2 is {where}$"):
        stage.check()


def test_system_on_lvm_upon_luks(stage: Stage) -> None:
    crypt = stage.hold(stage.block / "sdx2", "dm-0", "253:0")
    stage.hold(crypt, "dm-1", "253:1")
    stage.mount("253:1", "/")
    with pytest.raises(DeviceRefusedError, match="dm-1 is /"):
        stage.check()


def test_mount_of_a_partition_of_an_array(stage: Stage) -> None:
    array = stage.hold(stage.block, "md0", "9:0")
    stage.device(array / "md0p1", "259:0", partition="1")
    stage.mount("259:0", "/srv")
    with pytest.raises(DeviceRefusedError, match="md0p1 is mounted on /srv"):
        stage.check()


def test_held_but_not_mounted(stage: Stage) -> None:
    folder = stage.hold(stage.block / "sdx1", "dm-3", "253:3")
    stage.put(folder / "dm/name", "vg-data")
    with pytest.raises(DeviceRefusedError, match=r"sdx1 is in use by dm-3 \(vg-data\)"):
        stage.check()


def test_btrfs_is_mounted_under_another_number(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_devno", lambda path: {"/dev/sdx2": "8:18"}.get(path, ""))
    stage.mount("0:35", "/srv", "/dev/sdx2")
    with pytest.raises(DeviceRefusedError, match="sdx2 is mounted on /srv"):
        stage.check()


def test_swap(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_devno", lambda path: {"/dev/sdx1": "8:17"}.get(path, ""))
    with (stage.root / "proc/swaps").open("a") as file:
        file.write("/swapfile file 1 0 -2\n/dev/sdx1 partition 1 0 -2\n")
    with pytest.raises(DeviceRefusedError, match="sdx1 is swap"):
        stage.check()


def test_partition(stage: Stage) -> None:
    with pytest.raises(DeviceRefusedError, match="partition") as caught:
        refuse_unsafe(Path("/dev/sdx1"), (8, 17), stage.host)
    assert caught.value.hint == "--to /dev/sdx"


def test_read_only(stage: Stage) -> None:
    """It can be read, even while mounted; opening it for writing is refused."""
    assert not identify(CARD, (8, 16), stage.host).read_only
    stage.put(stage.block / "ro", "1")
    stage.mount("8:17", "/media/card", "/dev/sdx1")
    stage.check()
    assert identify(CARD, (8, 16), stage.host).read_only


def test_no_medium_and_no_device(stage: Stage) -> None:
    stage.put(stage.block / "size", "0")
    with pytest.raises(DeviceError, match="no medium"):
        identify(CARD, (8, 16), stage.host)
    with pytest.raises(DeviceError, match="no such"):
        refuse_unsafe(CARD, (9, 9), stage.host)


def test_odd_lines_do_no_harm(stage: Stage) -> None:
    with (stage.root / "proc/self/mountinfo").open("a") as file:
        file.write("\n1 2\n30 22 8:1 / /x rw -\n")
    stage.check()
    (stage.root / "proc/swaps").unlink()
    (stage.root / "proc/self/mountinfo").unlink()
    stage.check()
