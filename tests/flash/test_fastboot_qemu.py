# SPDX-License-Identifier: Apache-2.0
"""`flash --to qemu:fastboot` with real U-Boot: from empty to bootable, with the machine killed once, and then to
another system. Its effect on the disk is tested with the simulator in test_fastboot_uboot.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from sweep import started

from erofs_edge.cli.main import cli
from erofs_edge.errors import DeviceError, UsageError
from erofs_edge.flash.image import Image
from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.attach import attached, telling
from erofs_edge.qemu.flashing import CONSOLE, card_arguments, console_arguments, flashing_tree, script
from erofs_edge.simulator.images import disk_image
from erofs_edge.transport.fastboot.uboot import consents
from erofs_edge.u_boot.compile import FLASHING, fragments, patches

BOARD = "boards/qemu-aarch64.yaml"


def test_the_loader_for_it() -> None:
    """It obeys anyone who reaches it: no build may contain it, and it starts nothing."""
    text = "\n".join(path.read_text() for path in fragments(FLASHING))
    assert "CONFIG_FASTBOOT_OEM_RUN=y" in text and "CONFIG_ENV_IS_NOWHERE=y" in text
    said = script("lab")
    assert "setenv board lab" in said and said.endswith("fastboot udp")
    assert all(f"fastboot.{name}" in said for name in ("edge-buffer", "edge-disk")), "its consent"
    assert consents.__doc__
    at_its_console = script("lab", prompt=True)
    assert "setenv board lab" in at_its_console and "fastboot" not in at_its_console, "there it waits for commands"
    assert f"setenv stdin {CONSOLE}" in at_its_console and f"setenv stdout {CONSOLE}" in at_its_console
    assert any(f'device_set_name(dev, "{CONSOLE}")' in path.read_text() for path in patches(FLASHING))
    assert not any("console" in path.name for path in patches("qemu_arm64")), "no build's U-Boot has it"


def test_cards_have_sizes_of_their_own(tmp_path: Path) -> None:
    assert "if=none,id=disk0,format=raw,file=/a,,b" in card_arguments(Path("/a,b"), 1 << 31)
    with pytest.raises(UsageError, match="a power of two") as caught:
        card_arguments(tmp_path / "disk", 3 << 30)
    assert "qemu:nbd" in (caught.value.hint or "")
    assert "socket,id=line,path=/a,,b,server=on,wait=on" in console_arguments(Path("/a,b"))


def test_a_machine_that_fails_has_said_something(tmp_path: Path) -> None:
    log = tmp_path / "console.txt"
    for said, known, hint in (
        (b"MMC read: dev # 0 ... ", None, "its console ends with: MMC read: dev # 0 ..."),
        (b"MMC read", "pull the plug", "pull the plug"),
        (b"MMC read", "pull the plug, and run the same command again", "its console ends with: MMC read"),
        (b"", None, None),
    ):
        log.write_bytes(said)
        with pytest.raises(DeviceError) as caught, telling(log):
            raise DeviceError("the device does not answer", hint=known)
        assert caught.value.hint == hint


def test_its_device_tree_has_the_script() -> None:
    from erofs_edge.boot.fdt import parse
    from erofs_edge.boot.virt import virt_tree

    tree = parse(flashing_tree(virt_tree(cpu="cortex-a72", memory=1 << 30, cpus=1), "lab"))
    config = tree.root.at("/config")
    assert config is not None and config.props["bootcmd"] == script("lab").encode() + b"\0"


SYSTEM = """\
system: small
extends: edge-minimal
hostname: {hostname}
smoke:
  seconds: 900
  units: []
  commands: {{name: "test $(hostname) = {hostname}"}}
"""


@pytest.fixture
def board(tmp_path: Path, repository: Path) -> Path:
    """The stock board with less on a smaller disk: U-Boot reads an emulated card at a few MB per second."""
    path = tmp_path / "board.yaml"
    path.write_text(
        f"board: qemu-aarch64\nextends: {repository / BOARD}\n"
        "disk: {size: 512M, partitions: {system: {size: 128M}}}\n"
    )
    shutil.copy(repository / "boards/qemu-aarch64.lock", path.with_suffix(".lock"))
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(SYSTEM.format(hostname=name))
        shutil.copy(repository / "manifests/edge-minimal.lock", tmp_path / f"{name}.lock")
    return path


def run(words: list[str], repository: Path) -> dict[str, object]:
    done = subprocess.run([*words, "--json"], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record: dict[str, object] = json.loads(done.stdout)
    return record


def kill_qemu_of(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to the machine that this command started."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if "qemu" in Path(f"/proc/{child}/cmdline").read_bytes().decode():
            os.kill(int(child), signal.SIGKILL)


@pytest.mark.long
@pytest.mark.qemu
@pytest.mark.timeout(3600)
@pytest.mark.xdist_group("qemu")
def test_empty_to_bootable_and_on_to_the_next_system(edge: str, tmp_path: Path, repository: Path, board: Path) -> None:
    first, second, disk = tmp_path / "first", tmp_path / "second", tmp_path / "disk.img"
    for out, name in ((first, "one"), (second, "two")):
        system = ["--system", str(tmp_path / f"{name}.yaml")]
        run([edge, "build", str(board), *system, "-o", str(out), "--relock-if-gone"], repository)

    def flash(out: Path) -> list[str]:
        return [edge, "flash", str(board), "-o", str(out), "--to", "qemu:fastboot", "--disk", str(disk)]

    def started_slot(out: Path) -> object:
        words = [edge, "boot", str(board), "-o", str(out), "--disk", str(disk), "--smoke", "--timeout", "1500"]
        return run(words, repository)["slot"]

    with subprocess.Popen(
        flash(first), cwd=repository, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if "Writing 'boot_a'" in line:
                with suppress(ProcessLookupError):
                    kill_qemu_of(process)
                break
        process.stderr.read()
        assert process.wait() in (6, 8)
    record = run(flash(first), repository)
    assert int(str(record["bytes_written"])) > 0 and int(str(record["bytes_on_wire"])) > 0
    slot = started_slot(first)
    record = run(flash(second), repository)
    assert record["slot"] != slot
    assert started_slot(second) == record["slot"]
    # the boot has changed only the slot state and the data
    assert run(flash(second), repository)["bytes_written"] == 0


@pytest.mark.long
@pytest.mark.qemu
@pytest.mark.timeout(1200)
@pytest.mark.xdist_group("qemu")
def test_real_u_boot_takes_small_images(tmp_path: Path, repository: Path) -> None:
    """Empty, an update, the same again, a corrupted byte, an image without its table: the card gets the expected
    content, and correct parts are not written."""
    v1, v2 = (disk_image(tmp_path / f"v{number}.img", number) for number in (1, 2))
    disk = tmp_path / "card.img"
    disk.write_bytes(bytes(64 << 20))
    with Image(v1) as source:
        table = source.table()
    assert table is not None
    with attached(load_board(repository / BOARD), tmp_path, "fastboot", disk) as address:

        def flash(image: Path, *options: str) -> dict[str, object]:
            result = CliRunner().invoke(cli, ["flash", str(image), "--to", address, "--yes", "--json", *options])
            assert result.exit_code == 0, result.output
            record: dict[str, object] = json.loads(result.stdout)
            return record

        def held(image: Path, names: str) -> bool:
            there, wanted = disk.read_bytes(), image.read_bytes()
            return all(there[a:b] == wanted[a:b] for name, (a, b) in table.places().items() if name in names.split())

        blank = flash(v1)
        assert held(v1, "boot_a boot_b system_a system_b misc data")
        update = flash(v2)
        assert update["slot"] == "b" and held(v1, "boot_a system_a") and not held(v1, "boot_b system_b")
        assert started(bytearray(disk.read_bytes()[: v2.stat().st_size])).slot == "B"  # type: ignore[union-attr]
        again = flash(v2)
        assert (again["bytes_written"], again["slot"]) == (0, None)
        assert int(str(blank["bytes_written"])) > int(str(update["bytes_written"])) > 0
        wrong = CliRunner().invoke(cli, ["flash", str(v1), "--to", address, "--verify-only"])
        assert wrong.exit_code == 4, wrong.output
