# SPDX-License-Identifier: Apache-2.0
"""The whole road in real QEMU: U-Boot checks the FIT, the initramfs opens verity, Debian starts from it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from first_boot import PATIENCE, FirstBoot

from erofs_edge.disk import rollback
from erofs_edge.disk.slots import STATE_SIZE, decode_state
from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.built import load_built, machine_command
from erofs_edge.qemu.machine import Wiring, find_qemu
from erofs_edge.qemu.scratch import Scratch, copy_sparse
from erofs_edge.qemu.stages import TROUBLE
from erofs_edge.qemu.tamper import TAMPERS

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(1500)]
BOARD = "boards/qemu-aarch64.yaml"
EXT4_UUID = 1024 + 0x68
"""the byte of an ext4 where its superblock has s_uuid, 16 bytes that mke2fs makes anew each time"""
Smoke = Callable[..., dict[str, Any]]


@pytest.mark.long
def test_a_good_boot_raises_the_minimum_and_an_older_build_is_refused_from_then_on(
    stock: Callable[[str], Path], edge: str, repository: Path, tmp_path: Path
) -> None:
    """Version 2 runs and is found good; version 1, signed by the same key, is written to both slots and refused."""
    outs = {}
    for version in (2, 1):
        file = tmp_path / f"v{version}.yaml"
        file.write_text(f"board: qemu-aarch64\nextends: {repository / BOARD}\nsign: {{rollback_index: {version}}}\n")
        shutil.copy(repository / "boards/qemu-aarch64.lock", file.with_suffix(".lock"))
        outs[version] = tmp_path / f"out{version}"
        command = [edge, "build", str(file), "-o", str(outs[version]), "--relock-if-gone"]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    board = load_board(tmp_path / "v2.yaml").value
    built = load_built(outs[2])
    disk = copy_sparse(built.disk, tmp_path / "disk.img")
    command = machine_command(board, built, find_qemu(), tmp_path, Wiring(disk, snapshot=False))
    console_until(command, b"erofs-edge: slot a is good")
    old = (outs[1] / "boot.fit").read_bytes()
    with Scratch(disk, board, writable=True) as scratch:
        assert rollback.decode(scratch.read("misc", 0, 256 << 10)) == 2
        for slot in "ab":
            scratch.write(f"boot_{slot}", 0, old)
    console = console_until(command, b"erofs-edge: no slot boots")
    assert b"erofs-edge: slot is too old: a has version 1, the minimum is 2" in console
    assert b"Starting kernel" not in console


@pytest.fixture
def smoke(stock: Callable[[str], Path], edge: str, repository: Path, tmp_path: Path) -> Smoke:
    """Boot the stock build with further options; the record that `--json` prints. The image must stay as it is."""
    out = stock("qemu-aarch64")

    def run(*options: str) -> dict[str, Any]:
        before = (out / "disk.img").stat()
        log = tmp_path / "console.log"
        command = [edge, "boot", BOARD, "-o", str(out), "--smoke", "--json", "--timeout", PATIENCE, "--log", str(log)]
        command += options
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        console = log.read_text(errors="replace")[-6000:] if log.exists() else ""
        assert done.returncode == 0, f"{done.stderr}\n{console}"
        after = (out / "disk.img").stat()
        assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        record: dict[str, Any] = json.loads(done.stdout)
        return record

    return run


def root_hash(out: Path) -> str:
    return str(json.loads((out / "release.json").read_text())["system"]["root_hash"])


def test_slot_a_boots_verified_to_the_login_prompt(first_boot: FirstBoot) -> None:
    record = first_boot.record
    names = [stage["stage"] for stage in record["stages"]]
    expected = [
        "u-boot", "slot", "signature", "fit", "kernel", "initramfs", "verity", "root", "data", "switch-root",
    ]  # fmt: skip
    assert [name for name in names if name in expected] == expected
    assert {"report", "login"} <= set(names)
    assert record["slot"] == "a"
    report = record["report"]
    assert report["root"] == "erofs" and report["dm"] == "verity" and report["status"] == "V"
    assert report["roothash"] == root_hash(first_boot.out)
    assert report["var"] == "ext4:rw" and report["fec"] == "0"


@pytest.mark.long
def test_slot_b_boots_when_it_is_the_active_one(smoke: Smoke) -> None:
    record = smoke("--slot", "b")
    assert record["slot"] == record["report"]["slot"] == "b"


# One each of what U-Boot, the boot script and the kernel must refuse; the others run with `make test-boot`.
USUAL = ("wrong-key", "downgrade", "superblock")
# Those of vbmeta partitions need a board that has some: test_avb_board.py.
STOPPED = [name for name, tamper in TAMPERS.items() if tamper.stop is not None and tamper.content != "vbmeta"]


@pytest.mark.parametrize(
    "tamper", [pytest.param(name, marks=[] if name in USUAL else [pytest.mark.long]) for name in STOPPED]
)
def test_what_was_damaged_or_forged_does_not_boot(smoke: Smoke, tamper: str) -> None:
    record = smoke("--tamper", tamper)
    stop = TAMPERS[tamper].stop
    assert stop is not None
    assert record["stopped_at"] == stop.stage
    assert record["damage"] and TROUBLE[stop.evidence].search(record["evidence"])


@pytest.mark.long
def test_what_error_correction_repairs_does_boot(smoke: Smoke) -> None:
    record = smoke("--tamper", "fec")
    assert int(record["report"]["fec"]) >= 2
    assert record["report"]["status"] == "V"


def test_another_key_does_not_boot(
    stock: Callable[[str], Path], edge: str, repository: Path, tmp_path: Path, oracle: Callable[[str], str]
) -> None:
    """The same build in front of a U-Boot that knows another key: refused, exit code 9, the stage is named."""
    out = tmp_path / "out"
    shutil.copytree(stock("qemu-aarch64"), out, copy_function=_link)
    key = tmp_path / "other.pem"
    subprocess.run([oracle("openssl"), "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    public = out / "sign.pub.pem"
    public.unlink()
    subprocess.run(
        [oracle("openssl"), "rsa", "-in", str(key), "-pubout", "-out", str(public)], check=True, capture_output=True
    )
    command = [edge, "boot", BOARD, "-o", str(out), "--smoke", "--timeout", PATIENCE]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert "Failed to verify required signature" in done.stderr


def test_a_system_that_came_up_gives_its_slot_the_attempts_back(
    stock: Callable[[str], Path], repository: Path, tmp_path: Path
) -> None:
    """A disk that keeps what is written, started twice: as it is, and then with the other slot active and damage that
    error correction repairs. Each slot has its attempts again, and the second finds the first one's data partition."""
    board = load_board(repository / BOARD).value
    built = load_built(stock("qemu-aarch64"))
    disk = copy_sparse(built.disk, tmp_path / "disk.img")
    file_system = b""
    for slot in "ab":
        command = machine_command(board, built, find_qemu(), tmp_path, Wiring(disk, snapshot=False))
        console = console_until(command, f"erofs-edge: slot {slot} is good".encode())
        report = last_report(console)
        assert (report["slot"], report["root"], report["dm"], report["status"]) == (slot, "erofs", "verity", "V")
        assert report["roothash"] == built.root_hash and report["var"] == "ext4:rw"
        with Scratch(disk, board, writable=True) as scratch:
            state, copy = decode_state(scratch.read("misc", 0, STATE_SIZE))
            assert state.left[slot.upper()] == 4 and copy == 0, "U-Boot took one, the system says that the slot is good"
            kept = scratch.read("data", EXT4_UUID, 16)
            if slot == "a":
                assert any(kept) and int(report["fec"]) == 0
                file_system = kept
                scratch.activate("b")
                assert len(scratch.damage(TAMPERS["fec"])) == 4, "two places in each slot"
    assert int(report["fec"]) >= 2
    assert kept == file_system, "found, not made again"


def last_report(console: bytes) -> dict[str, str]:
    """What the guest said about itself."""
    (*_, line) = re.findall(r"erofs-edge: report (.*)", console.decode(errors="replace"))
    return dict(pair.split("=", 1) for pair in line.split())


def console_until(command: list[str], mark: bytes, seconds: float = 700, count: int = 1) -> bytes:
    """What the machine says until the mark has come `count` times; it is ended then."""
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)
    timer = threading.Timer(seconds, machine.kill)
    timer.start()
    console = b""
    try:
        assert machine.stdout is not None
        while console.count(mark) < count:
            piece = machine.stdout.read(4096)
            assert piece, console[-3000:].decode(errors="replace")
            console += piece
        return console
    finally:
        timer.cancel()
        machine.kill()
        machine.wait()


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
