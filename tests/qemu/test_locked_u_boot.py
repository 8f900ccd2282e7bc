# SPDX-License-Identifier: Apache-2.0
"""The ways round a signed FIT: each is open in Debian's U-Boot and closed in the one that tools/build-u-boot makes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.boot.fdt import cells, parse, write
from erofs_edge.boot.firmware import script_image
from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.built import load_built
from erofs_edge.qemu.machine import control_tree, dump_tree, find_qemu, machine_arguments, qemu_of

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(900)]
BOARD = "boards/qemu-aarch64.yaml"
COMMANDS = ("booti", "bootefi", "go", "source", "bootelf", "saveenv", "mw", "sysboot", "loadb")
TRIES = "; ".join(f"echo try {name}; help {name}" for name in COMMANDS)
LEGACY = "virtio scan; virtio read 50000000 0 8; echo try legacy; bootm 50000000"
Boot = Callable[[bool, str], str]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> bytes:
    """Compiled twice, in folders of different length: the same bytes."""
    found = set()
    for name in ("one", "another-one"):
        out = tmp_path_factory.mktemp(name)
        command = [sys.executable, "tools/build-u-boot", str(out)]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found.add((out / "u-boot-nodtb.bin").read_bytes())
    assert len(found) == 1
    return found.pop()


@pytest.fixture
def boot(locked: bytes, stock: Callable[[str], Path], repository: Path, tmp_path: Path) -> Boot:
    """boot(ours, script): the console of a U-Boot that runs a script, then is typed at for some seconds."""
    board, built = load_board(repository / BOARD).value, load_built(stock("qemu-aarch64"))
    emulator, qemu = find_qemu(), qemu_of(load_board(repository / BOARD).value)
    disk = tmp_path / "disk"
    disk.write_bytes(script_image("echo legacy script ran", name="x", epoch=0).ljust(1 << 20, b"\0"))
    assert board.qemu

    def run(ours: bool, script: str) -> str:
        machine = parse(control_tree(dump_tree(emulator, qemu, built.u_boot), built.key, script))
        machine.root.children["config"].props["bootdelay"] = cells(0xFFFFFFFE)
        tree, bios = tmp_path / "tree.dtb", tmp_path / "locked.bin"
        tree.write_bytes(write(machine))
        bios.write_bytes(locked + bytes(-len(locked) % 8) + tree.read_bytes())
        arguments = (
            machine_arguments(qemu, bios) if ours else [*machine_arguments(qemu, built.u_boot), "-dtb", str(tree)]
        )
        command = [
            str(emulator.program), *arguments, "-serial", "stdio", "-monitor", "none", "-no-reboot",
            "-drive", f"if=none,id=d,format=raw,file={disk}", "-device", "virtio-blk-pci,drive=d",
        ]  # fmt: skip
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, bufsize=0) as process:
            assert process.stdin is not None and process.stdout is not None
            for _ in range(12):
                time.sleep(0.5)
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(b"\x03\necho ty''ped\n")
            process.kill()
            return process.stdout.read().decode(errors="replace")

    return run


def test_commands_that_start_what_nobody_signed(boot: Boot) -> None:
    stock, ours = boot(False, TRIES), boot(True, TRIES)
    unknown = [name for name in COMMANDS if f"Unknown command '{name}' - try 'help' without arguments" in ours]
    assert unknown == list(COMMANDS)
    open_in_stock = {
        name for name in COMMANDS if f"Unknown command '{name}' - try 'help' without arguments" not in stock
    }
    assert {"booti", "bootefi", "go", "source", "saveenv"} <= open_in_stock


def test_a_legacy_image(boot: Boot) -> None:
    assert "Legacy Image" in boot(False, LEGACY)
    ours = boot(True, LEGACY)
    assert "try legacy" in ours
    assert "Wrong Image Type" in ours or "Wrong Image Format" in ours
    assert "Legacy Image" not in ours


def test_the_prompt(boot: Boot) -> None:
    """Ctrl-C and keys after the script has ended: stock U-Boot takes commands then."""
    script = "echo the script has ended"
    assert "typed" in boot(False, script)
    ours = boot(True, script)
    assert "the script has ended" in ours
    assert "typed" not in ours
