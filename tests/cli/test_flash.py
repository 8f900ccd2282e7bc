# SPDX-License-Identifier: Apache-2.0
"""The `flash` command on files. Block devices are in tests/flash."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli
from erofs_edge.disk import gpt
from erofs_edge.flash.local import FileTarget
from erofs_edge.writing import write_exactly

MIB = 1 << 20
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


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["flash", *map(str, arguments)])


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with boards/tiny.yaml and its disk image under out/tiny."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards/tiny.yaml").write_text(BOARD)
    (tmp_path / "boards/system.yaml").write_text("system: tiny\n")
    out = tmp_path / "out/tiny"
    out.mkdir(parents=True)
    part = gpt.Partition("boot_a", gpt.TYPE_LINUX, gpt.guid_from(b"t", "boot_a"), 2048, 3 * 2048 - 1)
    head, tail = gpt.encode(gpt.Table(gpt.guid_from(b"t", ""), 4 * 2048, (part,)))
    with (out / "disk.img").open("wb") as file:
        file.truncate(4 * MIB)
        write_exactly(file.fileno(), head, 0)
        write_exactly(file.fileno(), b"content " * 1000, MIB)
        write_exactly(file.fileno(), tail, 4 * MIB - len(tail))
    return out


@pytest.mark.parametrize("what", ["boards/tiny.yaml", "out/tiny", "out/tiny/disk.img"])
def test_board_folder_or_image(what: str, built: Path, tmp_path: Path) -> None:
    result = run(what, "--to", "card.img")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "card.img").read_bytes() == (built / "disk.img").read_bytes()


def test_lines_have_fastboots_shape(built: Path) -> None:
    result = run(built, "--to", "card.img")
    lines = result.stderr.splitlines()
    steps = [line for line in lines if "OKAY" in line]
    assert all(re.fullmatch(r".{50} OKAY \[ *\d+\.\d{3}s\]", line) for line in steps)
    assert [line[:50].rstrip() for line in steps] == [
        "Checking the image's signatures",
        "Erasing old table",
        "Writing 'boot_a' (8 KB)",
        "Verifying 'boot_a'",
        "Writing 'gpt backup' (20 KB)",
        "Writing 'gpt' (20 KB)",
        "Verifying 'gpt backup'",
        "Verifying 'gpt'",
    ]
    assert re.fullmatch(r"Finished\. Total time: \d+\.\d{3}s", lines[-1])
    table = [line.split() for line in result.stdout.splitlines()]
    assert table[0][0] == "region"
    assert [row[-1] for row in table[1:]] == ["yes"] * 3


def test_plan_touches_nothing(built: Path, tmp_path: Path) -> None:
    result = run(built, "--to", "card.img", "--plan", "--json")
    record = json.loads(result.stdout)
    assert [(r["name"], r["start"], r["size"]) for r in record["regions"]] == [
        ("boot_a", MIB, 2 * MIB),
        ("gpt backup", 3 * MIB, MIB),
        ("gpt", 0, MIB),
    ]
    assert all(r["data"] + r["zeros"] == r["size"] for r in record["regions"])
    assert "nothing was changed" in run(built, "--to", "card.img", "--plan").stderr
    assert not (tmp_path / "card.img").exists()


def test_json_record(built: Path) -> None:
    record = json.loads(run(built, "--to", "card.img", "--json").stdout)
    assert record["target"]["kind"] == "file"
    assert all(r["verified"] == r["size"] == r["written"] + r["zeroed"] + r["kept"] for r in record["regions"])
    record = json.loads(run(built, "--to", "card.img", "--json", "--resume", "--no-verify").stdout)
    assert {r["name"]: r["written"] for r in record["regions"]} == {"boot_a": 0, "gpt backup": 0, "gpt": 0}
    assert all(r["verified"] == r["size"] for r in record["regions"])


def test_a_board_that_was_not_built(built: Path) -> None:
    (built / "disk.img").unlink()
    result = run("boards/tiny.yaml", "--to", "card.img")
    assert result.exit_code == 1
    assert "hint: erofs-edge build boards/tiny.yaml" in result.stderr
    result = run("boards/tiny.yaml", "-o", "elsewhere", "--to", "card.img")
    assert "elsewhere/disk.img" in result.stderr
    assert "build boards/tiny.yaml -o elsewhere" in result.stderr


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("out", "neither a file nor a block device"),
        ("missing/card.img", "no such device or folder"),
        ("/dev/does-not-exist", "no such device or folder"),
        ("/dev/null", "neither a file nor a block device"),
        ("out/tiny/disk.img", "the target is the image itself"),
        ("udp:192.0.2.1", "neither an address nor an existing file"),
        ("fastboot:usb", "neither an address nor an existing file"),
    ],
)
def test_targets_that_make_no_sense(target: str, message: str, built: Path) -> None:
    before = (built / "disk.img").read_bytes()
    result = run(built, "--to", target)
    assert (result.exit_code, message in result.stderr) == (2, True)
    assert (built / "disk.img").read_bytes() == before


def test_a_file_may_have_a_name_like_an_address(built: Path) -> None:
    for _ in range(2):  # new, and there
        assert run(built, "--to", "./udp:1").exit_code == 0
    assert run(built, "--to", "udp:1", "--verify-only").exit_code == 0


PASSWD = b"root:x:0:0:root:/root:/bin/bash\n" * 100


@pytest.mark.parametrize(
    ("there", "more", "code"),
    [
        (PASSWD, (), 7),
        (PASSWD, ("--whole",), 0),
        (b"", (), 0),
        (bytes(5000), (), 0),
        (bytes(510) + b"\x55\xaa" + b"another disk" * 300, (), 0),
        (PASSWD + bytes(4 * MIB), (), 0),  # as large as a card: it may hold anything
    ],
)
def test_a_file_that_is_something_else(
    there: bytes, more: tuple[str, ...], code: int, built: Path, tmp_path: Path
) -> None:
    """An existing file that would have to grow: most likely a mistyped name."""
    (tmp_path / "passwd").write_bytes(there)
    result = run(built, "--to", "passwd", "--yes", *more)
    assert result.exit_code == code, result.output
    now = (tmp_path / "passwd").read_bytes()
    if code:
        assert now == there
        assert "does not look like a disk image, and would grow" in result.stderr
    else:
        assert now[: 4 * MIB] == (built / "disk.img").read_bytes()


def test_failed_verification_exits_with_4(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FileTarget.read
    monkeypatch.setattr(FileTarget, "read", lambda self, o, n: real(self, o, n).replace(b"content", b"CONTENT"))
    result = run(built, "--to", "card.img")
    assert result.exit_code == 4
    assert "FAILED" in result.stderr
    assert "reads back differently in 2 block(s) of 4096 bytes, at byte 0x100000, 0x101000" in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["boards", "out"]


def test_ctrl_c_leaves_no_file(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(FileTarget, "write", interrupt)
    result = run(built, "--to", "card.img")
    assert result.exit_code == 130
    assert "--resume" not in result.stderr  # there is nothing that could be resumed
    assert sorted(os.listdir(tmp_path)) == ["boards", "out"]
    (tmp_path / "card.img").write_bytes(bytes(8192))
    result = run(built, "--to", "card.img")
    assert result.exit_code == 130 and "run the same command with --resume (instead of --whole or" in result.stderr


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)], ids=["Ctrl-C", "SIGTERM"])
def test_who_stops_it_is_told_that_the_target_is_not_complete(
    stop: BaseException, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "card.img").write_bytes(bytes(4 * MIB))

    def stopped(self: FileTarget, offset: int, data: bytes) -> None:
        raise stop

    monkeypatch.setattr(FileTarget, "write", stopped)
    result = run("out/tiny", "--to", "card.img")
    assert result.exit_code
    assert "the target is incomplete" in result.output


@pytest.mark.parametrize("option", ["--verify-only", "--plan"])
def test_a_disk_that_cannot_be_read(option: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was written: there is nothing to resume, and --verify-only would refuse it."""

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "card.img").write_bytes((built / "disk.img").read_bytes())
    monkeypatch.setattr(FileTarget, "read", fail)
    result = run(built, "--to", "card.img", option)
    assert result.exit_code == 8, result.stderr
    assert result.stderr.splitlines()[-1] == "hint: run the same command again"


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EROFS])
def test_a_file_that_must_not_be_written_can_be_looked_at(
    reason: int, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tmp_path / "card.img"
    card.write_bytes((built / "disk.img").read_bytes())
    real = os.open

    def refuse(path: str, flags: int, *more: int, **options: int) -> int:
        if Path(path) == Path("card.img") and flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(reason, os.strerror(reason), path)
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert run(built, "--to", "card.img", "--verify-only").exit_code == 0
    card.write_bytes(card.read_bytes().replace(b"content", b"CONTENT"))
    assert run(built, "--to", "card.img", "--verify-only").exit_code == 4
    assert run(built, "--to", "card.img", "--plan").exit_code == 0
    result = run(built, "--to", "card.img")
    assert result.exit_code == 7
    assert result.stderr.splitlines()[-2:] == [
        "erofs-edge: error: card.img: no permission to write to the file",
        "hint: --plan, --verify-only and `slots show` work without writing",
    ]
    assert b"CONTENT" in card.read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--plan", "--verify-only"), "--plan and --verify-only cannot be combined"),
        (("--repair", "--full"), "--repair and --full cannot be combined"),
        (("--whole", "--slot", "a"), "--whole and --slot cannot be combined"),
        (("--resume", "--whole"), "--resume and --whole cannot be combined"),
        (("--resume", "--full"), "--resume and --full cannot be combined"),
        (("--verify-only", "--whole"), "--verify-only and --whole cannot be combined"),
        (("--verify-only", "--no-verify"), "--verify-only and --no-verify cannot be combined"),
        (("--from", "out/tiny/disk.img", "--whole"), "--from and --whole cannot be combined"),
        (("-o", "out/tiny"), "there is no board here"),
        (("--channel-root", "out/tiny/disk.img"), "--channel-root needs --from URL"),
        (("--disk", "x.img"), "--disk is for a board in QEMU"),
    ],
)
def test_options_that_do_not_go_together_are_named(
    options: tuple[str, ...], words: str, built: Path, tmp_path: Path
) -> None:
    result = run(built, "--to", "card.img", *options)
    assert (result.exit_code, words in result.stderr) == (2, True), result.output
    assert not (tmp_path / "card.img").exists()


@pytest.mark.parametrize("can", [True, False])
def test_a_new_file_has_no_name_before_the_end(can: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a kill leaves nothing behind, if the file system supports unnamed files."""
    opened = os.open

    def plain(path: object, flags: int, *args: object, **words: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return opened(path, flags, *args, **words)  # type: ignore[call-overload, no-any-return]

    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        can = False
    if not can:
        monkeypatch.setattr(os, "open", plain)
    target = FileTarget(tmp_path / "new", 1 << 16)
    target.write(4096, b"content")
    assert len(os.listdir(tmp_path)) == (0 if can else 1)
    target.close()
    assert os.listdir(tmp_path) == []
    (tmp_path / f".new.{os.getpid()}.tmp").write_bytes(b"of another with this number that was killed")
    target = FileTarget(tmp_path / "new", 1 << 16)
    target.write(4096, b"content")
    target.finish()
    target.close()
    assert os.listdir(tmp_path) == ["new"]
    assert (tmp_path / "new").read_bytes() == bytes(4096) + b"content" + bytes((1 << 16) - 4103)


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for what in (["--image", pipe], [pipe]):
        result = run(*what, "--to", tmp_path / "card.img")
        assert result.exit_code == 2 and f"{pipe}: a pipe, not an image" in result.stderr, result.output
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_file_without_the_zeros_at_the_images_end_does_not_hold_it(tmp_path: Path) -> None:
    image, card = tmp_path / "disk.img", tmp_path / "card.img"
    image.write_bytes(b"content".ljust(1 << 16, b"e"))
    card.write_bytes(image.read_bytes())
    os.truncate(image, 1 << 20)
    os.truncate(card, 1 << 18)
    result = run(image, "--to", card, "--verify-only")
    assert result.exit_code == 4 and "the file has 262144 bytes, the image 1048576" in result.stderr
    assert card.stat().st_size == 1 << 18
    assert run(image, "--to", card).exit_code == 0 and card.read_bytes() == image.read_bytes()
    result = run(image, "--to", card, "--verify-only")
    assert result.exit_code == 0, result.output


def test_an_emulated_board_that_cannot_be_is_refused_before_anything_is_read(built: Path) -> None:
    for to, words in (("qemu:nix", "known: qemu:serial"), ("qemu:nbd", "needs a BOARD and --disk")):
        result = run(built, "--to", to)
        assert (result.exit_code, words in result.stderr) == (2, True), result.output
        assert "signatures" not in result.stderr
