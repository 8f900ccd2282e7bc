# SPDX-License-Identifier: Apache-2.0
"""An emulated board that is to be flashed and does not come up: who says why."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from fake_machine import BOARD, FakeQemu

from erofs_edge.errors import BootCheckError, ToolError
from erofs_edge.manifest.load import Loaded, load_board
from erofs_edge.manifest.model import Board
from erofs_edge.provision.initramfs import Provisioning
from erofs_edge.qemu import attach


@pytest.fixture
def loaded(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded[Board]:
    """A small board whose provisioning system needs no packages."""
    parts = Provisioning("0", b"kernel", b"initramfs", None, 0)
    monkeypatch.setattr(attach, "kept_provisioning", lambda *_, **__: parts)
    stock = load_board(repository / "boards/qemu-aarch64.yaml")
    return replace(stock, value=BOARD)


@pytest.mark.parametrize(
    ("complaint", "console", "told"),
    [
        ("cannot set up guest memory\n", "[    0.1] Linux", "code 1: cannot set up guest memory"),
        ("", "[    0.1] Linux\r\npanic\r\n", "code 1: [ 0.1] Linux panic"),
        ("", "", "code 1: no message"),
    ],
)
def test_a_qemu_that_ends_has_said_why(
    loaded: Loaded[Board], fake_qemu: FakeQemu, tmp_path: Path, complaint: str, console: str, told: str
) -> None:
    fake_qemu.plan(complaint=complaint, serial=console, code=1)
    with pytest.raises(ToolError) as caught, attach.attached(loaded, tmp_path, "nbd", tmp_path / "disk.img"):
        pass
    assert told in caught.value.message
    assert caught.value.hint is None


def test_a_machine_that_is_silent_or_cannot(
    loaded: Loaded[Board], fake_qemu: FakeQemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu.plan(30.0, serial="erofs-edge: provisioning failed: no disk vda\r\n")
    disk = tmp_path / "disk.img"
    with pytest.raises(BootCheckError, match="failed: no disk vda"), attach.attached(loaded, tmp_path, "nbd", disk):
        pass
    monkeypatch.setattr(attach, "START", 0.3)
    fake_qemu.plan(30.0)
    silent = r"not ready after 0\.3 s; its last output: nothing"
    with pytest.raises(BootCheckError, match=silent), attach.attached(loaded, tmp_path, "nbd", disk):
        pass


def test_an_emulated_board_starts_without_what_it_has_no_use_for(
    loaded: Loaded[Board], fake_qemu: FakeQemu, tmp_path: Path
) -> None:
    """Nothing there is run ahead or read by others, and no cipher of the kernel is used: without all that the start
    takes two thirds of the work. It is said of this machine alone: a board's own start is not touched."""
    fake_qemu.plan(30.0, serial="erofs-edge: provisioning ready: /dev/vda\r\n")
    with attach.attached(loaded, tmp_path, "nbd", tmp_path / "disk.img") as address:
        assert address.startswith("provision://127.0.0.1:")
    said = fake_qemu.calls[-1]
    words = said[said.index("-append") + 1].split()
    assert {"nokaslr", "mitigations=off", "cryptomgr.notests", "edge.disk=vda"} <= set(words)
    assert not {"mitigations=off", "cryptomgr.notests"} & set(loaded.value.boot.cmdline)


def test_a_machine_of_a_killed_host_leaves_its_folder_to_the_next(
    loaded: Loaded[Board], fake_qemu: FakeQemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernel, initramfs and private keys of TLS lie there."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    fake_qemu.plan(30.0, serial="erofs-edge: provisioning ready: /dev/vda\r\n")
    code = "import os, signal\nfrom erofs_edge.writing import scratch_folder\nwith scratch_folder('qemu') as folder:\n"
    code += "    (folder / 'kernel').write_bytes(b'x')\n    os.kill(os.getpid(), signal.SIGKILL)"
    words = [sys.executable, "-c", code]
    subprocess.run(words, env=os.environ | {"TMPDIR": str(temporary)}, check=False)
    (dead,) = temporary.iterdir()
    with attach.attached(loaded, tmp_path, "nbd", tmp_path / "disk.img"):
        (alive,) = temporary.iterdir()
        assert alive != dead
        with attach.attached(loaded, tmp_path, "nbd", tmp_path / "other.img"):
            assert alive.exists() and len(list(temporary.iterdir())) == 2
    assert list(temporary.iterdir()) == []


def test_a_disk_without_content_gets_the_boards_size(
    loaded: Loaded[Board], fake_qemu: FakeQemu, tmp_path: Path
) -> None:
    fake_qemu.plan(30.0, serial="erofs-edge: provisioning ready: /dev/vda\r\n")
    made, touched, small = (tmp_path / name for name in ("made.img", "touched.img", "small.img"))
    touched.touch()
    small.write_bytes(b"mine")
    for disk in (made, touched, small):
        with attach.attached(loaded, tmp_path, "nbd", disk):
            pass
    assert [disk.stat().st_size for disk in (made, touched, small)] == [16 << 20, 16 << 20, 4]
