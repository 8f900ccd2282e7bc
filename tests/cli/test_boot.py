# SPDX-License-Identifier: Apache-2.0
"""``erofs-edge boot``, with a fake QEMU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from erofs_edge.cli.main import cli

QEMU_TESTS = Path(__file__).parents[1] / "qemu"
sys.path.insert(0, str(QEMU_TESTS))
from fake_machine import BOARD_YAML, FakeQemu, make_build  # noqa: E402
from waiting import eventually  # noqa: E402

GOOD = (QEMU_TESTS / "data/good.txt").read_bytes().decode()
STOPPED = (QEMU_TESTS / "data/tampered-system.txt").read_bytes().decode()
KEY = generate_private_key(65537, 2048)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQemu:
    (tmp_path / "fake").mkdir()
    fake = FakeQemu(tmp_path / "fake")
    monkeypatch.setenv("EROFS_EDGE_QEMU", str(fake.program))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "board.yaml").write_text(BOARD_YAML)
    (tmp_path / "lab.yaml").write_text("system: lab\npackages: [systemd]\n")
    (tmp_path / "out").mkdir()
    make_build(tmp_path / "out/lab", KEY)
    return fake


def boot(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["boot", "board.yaml", *arguments])


def test_smoke(fake: FakeQemu) -> None:
    fake.plan(GOOD)
    result = boot("--smoke")
    assert result.exit_code == 0, result.output
    timeline = [line.split(" s  ")[1] for line in result.stderr.splitlines()]
    assert timeline == [
        "U-Boot", "slot chosen", "FIT signed", "FIT verified", "kernel", "initramfs", "dm-verity active", "EROFS root",
        "data", "switch to the root file system", "guest report", "login prompt",
    ]  # fmt: skip
    assert "slot a is up" in result.stdout
    assert "data=/dev/vda6" in result.stdout


def test_the_output_folder_can_be_named(fake: FakeQemu) -> None:
    fake.plan(GOOD)
    Path("out/lab").rename("elsewhere")
    assert boot("--smoke").exit_code == 1
    assert boot("--smoke", "-o", "elsewhere").exit_code == 0


def test_smoke_as_json(fake: FakeQemu) -> None:
    fake.plan(GOOD)
    record = json.loads(boot("--smoke", "--json").stdout)
    assert (record["board"], record["slot"], record["qemu"], record["tamper"]) == ("lab", "a", "10.0.2", None)
    assert record["report"]["var"] == "ext4:rw"
    assert [stage["stage"] for stage in record["stages"]][-1] == "login"


def test_a_boot_that_fails(fake: FakeQemu) -> None:
    fake.plan(GOOD.replace("slot=a var", "slot=b var"))
    result = boot("--smoke")
    assert result.exit_code == 9
    assert "stage 'guest report': slot=b where slot=a was expected" in result.stderr
    assert "  | erofs-edge: report" in result.stderr
    assert json.loads(boot("--smoke", "--json").stdout)["error"]["exit_code"] == 9
    assert "hint: --log FILE saves the whole console" in result.stderr
    assert "hint: the whole console is in kept.txt" in boot("--smoke", "--log", "kept.txt").stderr
    assert Path("kept.txt").read_text().endswith("login: ")


def test_tamper(fake: FakeQemu) -> None:
    fake.plan(STOPPED)
    result = boot("--smoke", "--tamper", "system")
    assert result.exit_code == 0, result.output
    assert "stopped at stage 'dm-verity active'" in result.stdout
    fake.plan(GOOD)
    assert boot("--tamper", "system").exit_code == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timeout", "5"], "need --smoke"),
        (["--json"], "need --smoke"),
        (["--smoke", "--forward", "1:2"], "no network"),
        (["--forward", "x:22"], "is not HOST:GUEST"),
        (["--forward", "0:22"], "is not HOST:GUEST"),
        (["--smoke", "--tamper", "nothing"], "unknown scenario 'nothing'"),
        (["--smoke", "--slot", "c"], "no slot 'c'"),
        (["--smoke", "--slot", ""], "no slot ''"),
        (["--slot", ""], "no slot ''"),
        (["--forward", "22:22", "--forward", "22:80"], "port 22 of this machine twice"),
        (["--smoke", "--timeout", "nan"], "'nan' is not a number of seconds"),
        (["--smoke", "--timeout", "inf"], "is not in the range"),
        (["--smoke", "--timeout", "1e300"], "is not in the range"),
        (["--smoke", "--disk", ""], "a folder, not a disk"),
        (["--disk", "out/lab/disk.img"], "must stay as it was built"),
        (["--keep", "--disk", "out/lab/disk.img"], "must stay as it was built"),
        (["--keep"], "--keep needs --disk"),
        (["--keep", "--disk", "own", "--scenario", "unit"], "cannot be combined with --slot, --tamper or --scenario"),
        (["--falls-back", "--slot", "b"], "--falls-back and --scenario choose the slot themselves"),
        (["--u-boot", "--falls-back"], "--u-boot cannot be combined with --falls-back"),
        (["--u-boot", "--tamper", "loader"], "--u-boot cannot be combined with --falls-back"),
        (["--trace", "new"], "--trace needs --diskless"),
        (["--diskless"], "--diskless needs --smoke"),
        (["--diskless", "--smoke", "--slot", "b"], "cannot be combined with options about a disk or its slots"),
        (["--diskless", "--smoke", "--forward", "1:2"], "cannot be combined with options about a disk or its slots"),
        (["--smoke", "--log", "out/lab/disk.img"], "--log would overwrite a file that this boot uses"),
        (["--smoke", "--disk", "own", "--log", "own"], "--log would overwrite a file that this boot uses"),
        (
            ["--smoke", "--diskless", "--data", "new", "--log", "new"],
            "--log would overwrite a file that this boot uses",
        ),
    ],
)
def test_usage(fake: FakeQemu, arguments: list[str], message: str) -> None:
    result = boot(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not any("file=" in word for call in fake.calls for word in call), "a machine was started"


def test_a_missing_disk(fake: FakeQemu) -> None:
    for words in ((), ("--smoke",), ("--keep",), ("--falls-back",)):
        result = boot("--disk", "gone.img", *words)
        assert (result.exit_code, "gone.img: there is no such disk" in result.stderr) == (1, True), result.stderr
        assert "hint: erofs-edge flash BOARD --to FILE" in result.stderr


def test_only_a_file_keeps_what_is_written(fake: FakeQemu) -> None:
    """A device would be written without any of the checks of `flash`: mounted, the system's own."""
    for words in ((), ("--keep",)):
        result = boot("--disk", "/dev/null", *words)
        assert (result.exit_code, "/dev/null: only a file can keep" in result.stderr) == (7, True), result.stderr


@contextmanager
def machine_with(disk: Path, *, reads: bool) -> Iterator[None]:
    """The locks that QEMU has on a disk (block/file-posix.c): shared ones, on bytes that stand for permissions."""
    code = "import fcntl, struct, sys; file = open(sys.argv[1], 'rb')\n"
    code += "for byte in map(int, sys.argv[2:]):\n"
    code += "    fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_RDLCK, 0, byte, 1, 0))\n"
    code += "print(flush=True); input()"
    command = [sys.executable, "-c", code, str(disk), "100", *([] if reads else ["101"]), "201", "203"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield
        process.communicate(b"\n")


def test_a_disk_in_use(fake: FakeQemu) -> None:
    """QEMU would only say so once it has started; with --slot, the disk would have been changed by then."""
    fake.plan(GOOD)
    disk = Path("own.img")
    shutil.copy("out/lab/disk.img", disk)
    before = disk.read_bytes()
    with machine_with(disk, reads=False):
        for words in (
            (),
            ("--slot", "b"),
            ("--smoke",),
            ("--smoke", "--slot", "b"),
            ("--keep",),
            ("--scenario", "unit"),
        ):
            result = boot("--disk", str(disk), *words)
            assert (result.exit_code, "own.img: another program is using it: process" in result.stderr) == (7, True)
    with machine_with(disk, reads=True):
        assert boot("--disk", str(disk), "--keep").exit_code == 7
        assert boot("--disk", str(disk), "--smoke").exit_code == 0
    assert disk.read_bytes() == before


def test_a_pipe_is_no_disk(fake: FakeQemu) -> None:
    """Nor is it waited for."""
    os.mkfifo("pipe")
    for words in ((), ("--smoke",), ("--scenario", "unit"), ("--tamper", "system")):
        result = boot("--disk", "pipe", *words)
        assert (result.exit_code, "pipe: a pipe, not a disk" in result.stderr) == (2, True), result.stderr


def test_the_terminal(fake: FakeQemu, capfd: pytest.CaptureFixture[str]) -> None:
    fake.plan("hello from the machine\n")
    result = boot("--slot", "b", "--forward", "2222:22")
    assert result.exit_code == 0, result.output
    assert "hello from the machine" in capfd.readouterr().out
    assert "slot b. Ctrl-A X quits; changes to the disk are discarded" in result.stderr
    command = " ".join(fake.calls[-1])
    assert "-serial mon:stdio" in command
    assert "hostfwd=tcp:127.0.0.1:2222-:22" in command
    assert "-no-reboot" not in command
    assert "snapshot=on" in command


def test_qemu_fails_at_the_terminal(fake: FakeQemu) -> None:
    fake.plan(code=3)
    result = boot()
    assert result.exit_code == 1
    assert "QEMU ended with exit code 3" in result.stderr


def test_the_terminal_with_a_disk_of_its_own(fake: FakeQemu) -> None:
    fake.plan()
    disk = Path("my.img")
    Path("out/lab/disk.img").rename(disk)
    Path("out/lab/disk.img").write_bytes(b"")
    result = boot("--disk", "my.img", "--slot", "b")
    assert "changes are kept in my.img" in result.stderr
    command = " ".join(fake.calls[-1])
    assert "file=my.img" in command
    assert "snapshot" not in command
    assert fake.disk_seen == disk.read_bytes()
    assert b"BOOT_ORDER=B A" in disk.read_bytes()[5 << 20 : 6 << 20]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_machine_at_the_terminal_ends_with_us(fake: FakeQemu, number: signal.Signals) -> None:
    fake.plan(60)
    command = [sys.executable, "-m", "erofs_edge", "boot", "board.yaml", "--slot", "b"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
        assert eventually((fake.folder / "disk-seen").exists)
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        child.send_signal(number)
        code = child.wait(60)
    assert len(children) == 1 and eventually(lambda: not running(children[0]))
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert (code, fake.terminated, list(Path("out/lab").glob(".run-*"))) == (128 + number, True, [])


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_qemu(fake: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EROFS_EDGE_QEMU", "/nowhere/qemu")
    result = boot("--smoke")
    assert result.exit_code == 1
    assert "hint: erofs-edge tools fetch" in result.stderr


def test_a_board_that_cannot_be_emulated(fake: FakeQemu) -> None:
    Path("board.yaml").write_text(BOARD_YAML.replace("qemu: {}\n", ""))
    for arguments in ([], ["--smoke"]):
        result = boot(*arguments)
        assert result.exit_code == 3
        assert "no qemu section" in result.stderr


def test_a_board_that_is_not_built_is_named_in_the_users_words(tmp_path: Path) -> None:
    out = tmp_path / "none"
    done = CliRunner().invoke(cli, ["boot", "qemu-aarch64", "-o", str(out)])
    assert done.exit_code == 1 and f"{out}: nothing has been built here" in done.stderr
    assert done.stderr.splitlines()[1] == f"hint: erofs-edge build qemu-aarch64 -o {out}"
