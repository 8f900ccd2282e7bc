# SPDX-License-Identifier: Apache-2.0
"""`flash --to qemu:serial` with real U-Boot: a whole system on a virtio disk, which starts; small images on an SD card.
The machine is killed once, then comes an update. Worse lines are tested in test_serial_line.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.boot.fdt import parse, string, write
from erofs_edge.flash.image import Image
from erofs_edge.simulator.images import disk_image
from erofs_edge.toolbox.emulator import find_qemu

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(3600)]
CARD = 64 << 20


@pytest.fixture
def board(tmp_path: Path, repository: Path) -> Path:
    """The stock board with its disk as a card."""
    path = tmp_path / "card.yaml"
    path.write_text(f"board: qemu-aarch64\nextends: {repository}/boards/qemu-aarch64.yaml\nboot: {{storage: mmc}}\n")
    return path


def kill_qemu_of(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to the machine that this command started."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if "qemu" in Path(f"/proc/{child}/cmdline").read_bytes().decode():
            os.kill(int(child), signal.SIGKILL)


def held(disk: Path, image: Path, names: str) -> bool:
    """Whether the disk has these partitions of the image."""
    with Image(image) as source:
        table = source.table()
    assert table is not None
    there, wanted = disk.read_bytes(), image.read_bytes()
    return all(there[a:b] == wanted[a:b] for name, (a, b) in table.places().items() if name in names.split())


def test_a_card_behind_the_console(edge: str, tmp_path: Path, repository: Path, board: Path) -> None:
    v1, v2 = (disk_image(tmp_path / f"v{number}.img", number) for number in (1, 2))
    disk = tmp_path / "card.img"
    disk.touch()
    os.truncate(disk, CARD)

    def words(image: Path, *more: str) -> list[str]:
        return [edge, "flash", str(board), "--image", str(image), "--to", "qemu:serial", "--disk", str(disk), *more]

    def flash(image: Path) -> dict[str, object]:
        done = subprocess.run([*words(image), "--json"], cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        record: dict[str, object] = json.loads(done.stdout)
        return record

    with subprocess.Popen(
        words(v1), cwd=repository, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        assert process.stderr
        said = ""
        for line in process.stderr:
            said += line
            if "Writing 'boot_a'" in line:  # done with that, and about to write the next
                kill_qemu_of(process)
                break
        said += process.stderr.read()
        assert process.wait() in (6, 8), said
    assert held(disk, v1, "boot_a") and not any(disk.read_bytes()[:4096]), said
    blank = flash(v1)
    assert held(disk, v1, "boot_a boot_b system_a system_b misc data")
    assert int(str(blank["bytes_on_wire"])) < 120_000  # of two slots that are alike, one is sent
    update = flash(v2)
    assert update["slot"] == "b" and held(disk, v1, "boot_a system_a") and held(disk, v2, "boot_b system_b")
    again = flash(v2)
    assert (again["bytes_written"], again["slot"]) == (0, None)
    wrong = subprocess.run(words(v1, "--verify-only"), cwd=repository, capture_output=True, text=True, check=False)
    assert wrong.returncode == 4, wrong.stderr


SYSTEM = """\
system: small
extends: edge-minimal
hostname: {hostname}
# what this system does not use need not go over such a line
exclude:
  - /usr/lib/aarch64-linux-gnu/gconv/**
  - /usr/lib/aarch64-linux-gnu/perl-base/**
  - /usr/bin/perl*
  - /usr/share/perl*/**
  - /usr/share/doc/**
smoke:
  seconds: 900
  units: []
  commands: {{name: "test $(hostname) = {hostname}"}}
"""


@pytest.fixture
def whole(tmp_path: Path, repository: Path) -> Path:
    """The stock board with a smaller disk."""
    path = tmp_path / "board.yaml"
    path.write_text(
        f"board: qemu-aarch64\nextends: {repository}/boards/qemu-aarch64.yaml\n"
        "disk: {size: 512M, partitions: {system: {size: 128M}}}\n"
    )
    shutil.copy(repository / "boards/qemu-aarch64.lock", path.with_suffix(".lock"))
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(SYSTEM.format(hostname=name))
        shutil.copy(repository / "manifests/edge-minimal.lock", tmp_path / f"{name}.lock")
    return path


@pytest.mark.timeout(7200)
def test_a_whole_system_over_the_console(edge: str, tmp_path: Path, repository: Path, whole: Path) -> None:
    """From empty to bootable, with the machine killed while it writes the system, and then to the other slot with the
    next."""
    first, second, disk = tmp_path / "first", tmp_path / "second", tmp_path / "disk.img"

    def run(*words: str) -> dict[str, object]:
        done = subprocess.run([edge, *words, "--json"], cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        record: dict[str, object] = json.loads(done.stdout)
        return record

    def words(out: Path) -> list[str]:
        return ["flash", str(whole), "-o", str(out), "--to", "qemu:serial", "--disk", str(disk)]

    def started_slot(out: Path) -> object:
        return run("boot", str(whole), "-o", str(out), "--disk", str(disk), "--smoke", "--timeout", "1800")["slot"]

    for out, name in ((first, "one"), (second, "two")):
        run("build", str(whole), "--system", str(tmp_path / f"{name}.yaml"), "-o", str(out), "--relock-if-gone")
    system = (first / "system.img").read_bytes()
    with subprocess.Popen(
        [edge, *words(first)], cwd=repository, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        place = place_of(first / "disk.img", "system_a")
        while not holds_at(disk, place + (4 << 20), system[4 << 20 : 5 << 20]):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.2)
        kill_qemu_of(process)
        process.communicate()
        assert process.returncode in (6, 8)
    assert not holds_at(disk, place, system)
    rest = run(*words(first))
    assert held(disk, first / "disk.img", "boot_a boot_b system_a system_b")
    regions = rest["regions"]
    assert isinstance(regions, list)
    written = {region["name"]: region["written"] for region in regions}
    assert written["boot_a"] == 0 < written["system_a"] < len(system), "what was there has not been sent again"
    slot = started_slot(first)
    update = run(*words(second))
    assert update["slot"] != slot
    assert started_slot(second) == update["slot"]
    # the boot has changed only the slot state and the data
    assert run(*words(second))["bytes_written"] == 0


def place_of(image: Path, name: str) -> int:
    """Return the position of a partition, in bytes."""
    with Image(image) as source:
        table = source.table()
    assert table is not None
    return table.places()[name][0]


def holds_at(disk: Path, offset: int, data: bytes) -> bool:
    """Whether a file, if it exists yet, has these bytes at this place."""
    if not disk.exists():
        return False
    with disk.open("rb") as file:
        file.seek(offset)
        return file.read(len(data)) == data


def test_debians_u_boot_for_the_raspberry_pi(
    edge: str, tmp_path: Path, repository: Path, stock: Callable[[str], Path]
) -> None:
    """In QEMU's raspi4b, on the mini UART like the real one: it prints CRC32, `4 Model B`, and has an empty slot beside
    its card's."""
    image, disk, console = disk_image(tmp_path / "v1.img", 1), tmp_path / "card.img", tmp_path / "console"
    disk.touch()
    os.truncate(disk, CARD)
    out = stock("rpi4")
    machine = subprocess.Popen(
        [
            str(find_qemu().program), "-M", "raspi4b", "-m", "2G", "-kernel", str(out / "u-boot.bin"),
            "-dtb", str(tree_without_screen(out / "boot.fit", tmp_path)), "-drive", f"if=sd,file={disk},format=raw",
            "-display", "none", "-serial", "null", "-serial", f"unix:{console},server=on,wait=on", "-monitor", "none",
        ]
    )  # fmt: skip
    try:
        while not console.exists():
            assert machine.poll() is None
        words = [edge, "flash", str(image), "--to", f"serial+unix://{console}", "--yes", "--json"]
        done = subprocess.run(words, cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        target = json.loads(done.stdout)["target"]
        assert (target["product"], target["size"], target["model"]) == ("4 Model B", CARD, "4 Model B mmc 0")
        again = subprocess.run([*words, "--resume"], cwd=repository, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["bytes_written"] == 0
    finally:
        machine.kill()
        machine.wait()
    assert held(disk, image, "boot_a boot_b system_a system_b misc data")


def tree_without_screen(fit: Path, folder: Path) -> Path:
    """The board's device tree without HDMI: QEMU spends most of its time on the pixels."""
    data = parse(fit.read_bytes()).root.at("/images/fdt")
    assert data is not None
    tree = parse(data.props["data"])
    for path in ("/soc/hdmi@7ef00700", "/soc/hdmi@7ef05700"):
        node = tree.root.at(path)
        assert node is not None
        node.props["status"] = string("disabled")
    path = folder / "tree.dtb"
    path.write_bytes(write(tree))
    return path
