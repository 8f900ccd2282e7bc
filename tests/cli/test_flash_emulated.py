# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge flash BOARD --to qemu:… --disk FILE`: what is refused before a machine is started, and the messages."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli
from erofs_edge.errors import BootCheckError, CapacityError, ErofsEdgeError, ToolError
from erofs_edge.flash import prepare, targets
from erofs_edge.flash.local import FileTarget
from erofs_edge.qemu import attach
from erofs_edge.simulator.images import disk_image

BOARD = """\
board: tiny
disk:
  partitions:
    boot: {size: 8M, slots: [a, b], content: fit}
    system: {size: 8M, slots: [a, b], content: system.yaml}
    misc: {size: 1M, content: slot-state}
boot:
  u_boot: {package: u-boot-qemu, path: /usr/lib/u-boot/u-boot.bin}
"""


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image for the board in tiny.yaml of the working folder. QEMU cannot be started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EROFS_EDGE_QEMU", str(tmp_path / "no-qemu"))
    (tmp_path / "tiny.yaml").write_text(BOARD)
    (tmp_path / "system.yaml").write_text("system: tiny\n")
    return disk_image(tmp_path / "v1.img", 1)


def flash(image: Path, disk: Path, *more: str, to: str = "qemu:nbd") -> Result:
    words = ["flash", "tiny.yaml", "--image", image, "--to", to, "--disk", disk, "--allow-unsigned", *more]
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_what_is_no_file_is_no_disk(image: Path, tmp_path: Path) -> None:
    """A device behind QEMU would be written without any check, mounted or not."""
    os.mkfifo(tmp_path / "pipe")
    for disk in (tmp_path / "pipe", Path("/dev/null")):
        refused = flash(image, disk)
        assert (refused.exit_code, f"{disk}: the disk of an emulated board is a file" in refused.stderr) == (2, True)
        assert "signatures" not in refused.stderr


def test_the_image_itself(image: Path) -> None:
    before = image.read_bytes()
    refused = flash(image, image)
    assert (refused.exit_code, "the target is the image itself" in refused.stderr) == (2, True), refused.output
    assert image.read_bytes() == before


@pytest.mark.root
def test_a_disk_that_cannot_be_written(image: Path, tmp_path: Path, needs_root: None) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(image.read_bytes())
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", disk], check=True)
        for more in ([], ["--plan"]):
            refused = flash(image, disk, *more)
            assert refused.exit_code == 7, refused.output
            assert "disk.img: the emulated board's disk cannot be written" in refused.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_look_at_a_disk_that_is_not_there_makes_none(image: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    plan = flash(image, disk, "--plan")
    assert plan.exit_code == 0 and f"{disk} (new file)" in plan.output, plan.output
    missing = flash(image, disk, "--verify-only")
    assert missing.exit_code == 1 and str(disk) in missing.stderr, missing.output
    assert not disk.exists()


def attached_fails(monkeypatch: pytest.MonkeyPatch, error: ErofsEdgeError, disk: Path, *, held: bool) -> None:
    """The machine's start fails this way; `held`: another flash has the disk by then, until the test ends."""

    @contextmanager
    def fails(*_: object) -> Iterator[str]:
        if held:
            FileTarget(disk, 0).claim()
        raise error
        yield ""

    monkeypatch.setattr(attach, "attached", fails)


def test_two_that_were_started_at_once(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU's own lock decides, and that is not reported as a failure of QEMU."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(image.read_bytes())
    error = ToolError('QEMU ended with exit code 1: Failed to get "write" lock')
    attached_fails(monkeypatch, error, disk, held=False)
    assert flash(image, disk).exit_code == 1
    attached_fails(monkeypatch, error, disk, held=True)
    refused = flash(image, disk)
    assert (refused.exit_code, "disk.img: another program " in refused.stderr) == (7, True)


def test_errors_name_the_disk_and_no_address_of_this_run(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(image.read_bytes())
    address = "provisions://127.0.0.1:4?tls-certificates=x"
    for error, told in (
        (CapacityError("too small", where="provision://127.0.0.1:4"), f"error: {disk}: too small"),
        (CapacityError("it failed", where="provision://127.0.0.1:4: offset 0x10"), f"{disk}: offset 0x10: it failed"),
        (BootCheckError("no board", where="elsewhere"), "error: elsewhere: no board"),
        (BootCheckError("no board"), "error: no board"),
    ):

        @contextmanager
        def attached(*_: object) -> Iterator[str]:
            yield address

        def find_target(to: str, image: Path | None, error: ErofsEdgeError = error) -> Iterator[object]:
            assert to == address
            raise error

        monkeypatch.setattr(attach, "attached", attached)
        monkeypatch.setattr(targets, "find_target", find_target)
        failed = flash(image, disk)
        assert (failed.exit_code, told in failed.stderr) == (error.exit_code, True), failed.output


def test_whoever_stops_a_comparison_has_left_the_target_as_it_was(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tmp_path / "card.img"
    card.write_bytes(image.read_bytes())
    real = prepare.hold

    def ctrl_c(*arguments: object) -> bool:
        signal.raise_signal(signal.SIGINT)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare, "hold", ctrl_c)
    stopped = CliRunner().invoke(cli, ["flash", str(image), "--to", str(card)])
    assert stopped.exit_code == 130 and "is incomplete" not in stopped.stderr, stopped.output
    assert card.read_bytes() == image.read_bytes()
