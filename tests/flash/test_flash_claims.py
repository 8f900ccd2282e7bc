# SPDX-License-Identifier: Apache-2.0
"""Only one program can write a target at a time; for reading it stays available."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from waiting import wait_for

from erofs_edge.cli.main import cli
from erofs_edge.errors import DeviceRefusedError
from erofs_edge.serve.export import FileExport
from erofs_edge.simulator.fastboot import FastbootDevice, serve_udp
from erofs_edge.simulator.images import disk_image
from erofs_edge.transport.claim import Claim, user_of
from erofs_edge.transport.fastboot.link import open_device

Oracle = Callable[[str], str]
HOLDS_A_FILE = """
from erofs_edge.flash.local import FileTarget
target = FileTarget(Path(sys.argv[1]), 0)
target.claim()
"""
SERVES_A_FILE = """
from erofs_edge.serve.export import FileExport
export = FileExport(Path(sys.argv[1]), writable=True)
"""
HOLDS_A_NAME = """
from erofs_edge.transport.claim import Claim
claim = Claim(sys.argv[1], "")
"""


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return [disk_image(tmp_path / f"v{number}.img", number) for number in (1, 2)]


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@contextmanager
def other(code: str, what: object) -> Iterator[subprocess.Popen[str]]:
    """Another program that uses something; killed in the end."""
    command = [sys.executable, "-c", f"import sys\nfrom pathlib import Path\n{code}\nprint(1, flush=True)\ninput()"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, str(what)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def nbdkit(oracle: Oracle, image: Path, *options: str) -> Iterator[str]:
    """A server of one file; yields its address."""
    socket = image.with_suffix(".socket")
    program = oracle("nbdkit")
    (plugin,) = Path(program).parent.parent.glob("roots/oracles-nbd/usr/lib/*/nbdkit/plugins/nbdkit-file-plugin.so")
    with subprocess.Popen([program, "-f", "-U", str(socket), *options, str(plugin), f"file={image}"]) as server:
        try:
            wait_for(server, socket)
            yield f"nbd+unix:///?socket={socket}"
        finally:
            server.terminate()


@pytest.mark.oracle
def test_a_read_only_export_can_be_looked_at(images: list[Path], tmp_path: Path, oracle: Oracle) -> None:
    v1, v2 = images
    disk = tmp_path / "disk.img"
    disk.write_bytes(v1.read_bytes())
    with nbdkit(oracle, disk, "-r") as address:
        assert run("flash", v2, "--to", address, "--plan").exit_code == 0
        assert run("flash", v1, "--to", address, "--verify-only").exit_code == 0
        assert run("flash", v2, "--to", address, "--verify-only").exit_code == 4
        shown = run("slots", "show", address)
        assert (shown.exit_code, "next" in shown.stdout) == (0, True)
        for words in (
            ("flash", v2, "--to", address, "--yes"),
            ("flash", v1, "--to", address, "--yes"),
            ("flash", v2, "--to", address, "--repair", "--yes"),
            ("slots", "activate", address, "b"),
            ("slots", "mark", address, "a", "good"),
        ):
            refused = run(*words)
            assert (refused.exit_code, refused.stdout) == (7, "")
            assert "the export is read-only" in refused.stderr
            assert "Comparing" not in refused.stderr and "Traceback" not in refused.stderr
    assert disk.read_bytes() == v1.read_bytes()


def test_a_file_that_is_served_for_writing(images: list[Path], tmp_path: Path) -> None:
    v1, v2 = images
    disk = tmp_path / "disk.img"
    disk.write_bytes(v1.read_bytes())
    with other(SERVES_A_FILE, disk) as server:
        refused = run("flash", v2, "--to", disk)
        assert (refused.exit_code, f"process {server.pid} (" in refused.stderr) == (7, True)
        FileExport(disk).close()
        with pytest.raises(DeviceRefusedError, match="another program is using it"):
            FileExport(disk, writable=True)
    assert disk.read_bytes() == v1.read_bytes()
    FileExport(disk, writable=True).close()


@pytest.mark.oracle
def test_two_programs_at_one_export(images: list[Path], tmp_path: Path, oracle: Oracle) -> None:
    v1, v2 = images
    disk = tmp_path / "disk.img"
    disk.write_bytes(v1.read_bytes())
    with nbdkit(oracle, disk) as address:
        with other(HOLDS_A_NAME, f"nbd {disk.with_suffix('.socket')} ") as holder:
            for words in (("flash", v2, "--to", address, "--yes"), ("slots", "activate", address, "b")):
                refused = run(*words)
                assert (refused.exit_code, refused.stdout) == (7, "")
                assert f"another program is using it: process {holder.pid} (" in refused.stderr
            assert run("flash", v1, "--to", address, "--verify-only").exit_code == 0
            assert run("slots", "show", address).exit_code == 0
            assert disk.read_bytes() == v1.read_bytes()
        # once killed, it no longer holds anything
        assert run("flash", v2, "--to", address, "--yes").exit_code == 0


def test_two_programs_at_one_file(images: list[Path], tmp_path: Path, repository: Path) -> None:
    v1, v2 = images
    disk = tmp_path / "disk.img"
    disk.write_bytes(v1.read_bytes())
    board = repository / "boards/qemu-aarch64.yaml"
    with other(HOLDS_A_FILE, disk) as holder:
        assert user_of(disk).startswith(f"process {holder.pid} (")
        for words in (
            ("flash", v2, "--to", disk),
            ("flash", board, "--image", v2, "--to", "qemu:nbd", "--disk", disk, "--allow-unsigned"),
        ):
            refused = run(*words)
            assert refused.exit_code == 7, refused.output
            assert f"another program is using it: process {holder.pid} (" in refused.stderr
        assert disk.read_bytes() == v1.read_bytes()
    assert run("flash", v2, "--to", disk).exit_code == 0


def test_a_program_started_by_the_loader_is_called_by_its_own_name(tmp_path: Path) -> None:
    """As QEMU is from our private prefix, whose libraries the system's loader would not find."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"open\n")
    loader = next(word for word in Path("/proc/self/maps").read_text().split() if Path(word).name.startswith("ld-"))
    command = [loader, "--argv0", "qemu-system-aarch64", shutil.which("tail") or "", "-f", str(disk)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said, who = process.stdout.readline(), user_of(disk)
        process.kill()
    assert (said, who) == (b"open\n", f"process {process.pid} (qemu-system-aarch64)")


def test_two_programs_at_one_fastboot_device() -> None:
    """Over UDP, the second would end the first one's session."""
    with serve_udp(FastbootDevice({"boot": bytearray(4096)})) as address:
        with open_device(address), pytest.raises(DeviceRefusedError, match="another program is using it"):
            open_device(address)
        open_device(address).link.close()
        with pytest.raises(DeviceRefusedError), open_device(address):
            raise DeviceRefusedError("what happens in between")
        open_device(address).link.close()


def test_names_are_told_apart() -> None:
    long = "x" * 200
    names = [f"{long}a", f"{long}b", f"a{long}", f"b{long}", "", "\udc80".encode("utf-8", "surrogateescape").hex()]
    claims = [Claim(f"test of names {name}", "here") for name in names]
    for name in names:
        with pytest.raises(DeviceRefusedError, match=r"here: another program is using it: process \d+"):
            Claim(f"test of names {name}", "here")
    for claim in claims:
        claim.release()
    for name in names:
        Claim(f"test of names {name}", "here").release()
