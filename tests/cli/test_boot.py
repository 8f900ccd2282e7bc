# SPDX-License-Identifier: Apache-2.0
"""``erofs-edge boot``, with a fake QEMU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from erofs_edge.cli.main import cli

QEMU_TESTS = Path(__file__).parents[1] / "qemu"
sys.path.insert(0, str(QEMU_TESTS))
from fake_machine import BOARD_YAML, FakeQemu, make_build  # noqa: E402

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


def test_tamper(fake: FakeQemu) -> None:
    fake.plan(STOPPED)
    result = boot("--smoke", "--tamper", "system")
    assert result.exit_code == 0, result.output
    assert "stopped at stage 'verity'" in result.stdout
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
    ],
)
def test_usage(fake: FakeQemu, arguments: list[str], message: str) -> None:
    result = boot(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


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
