# SPDX-License-Identifier: Apache-2.0
"""Real block devices: loop devices, as root."""

from __future__ import annotations

import errno
import itertools
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import mounts
import pytest
from click.testing import CliRunner

from erofs_edge.cli.main import cli
from erofs_edge.simulator.images import disk_image

MIB = 1 << 20
Loop = Callable[..., Path]

pytestmark = pytest.mark.root


@pytest.fixture
def loop(needs_root: None, tmp_path: Path) -> Iterator[Loop]:
    numbers = itertools.count()

    def attach(size: int, *options: str, content: bytes | None = None) -> Path:
        backing = tmp_path / f"backing{next(numbers)}"
        backing.write_bytes(b"\xa5" * size if content is None else content)
        return stack.enter_context(mounts.loop(backing, *options))

    with ExitStack() as stack:
        yield attach


def flash(image: Path, device: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["flash", str(image), "--to", str(device), *options])
    return done.exit_code, done.output


def content(device: Path, size: int) -> bytes:
    with device.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read(size)


@pytest.mark.parametrize("size", [12, 16])
def test_written_and_read_back(size: int, image: Path, loop: Loop) -> None:
    device = loop(size * MIB)
    code, output = flash(image, device, "--yes")
    assert code == 0, output
    assert content(device, 12 * MIB) == image.read_bytes()
    if size == 16:
        assert content(device, 16 * MIB)[15 * MIB :] == bytes(MIB)
    code, output = flash(image, device, "--yes", "--resume")
    assert code == 0, output


def test_sectors_of_4096_bytes(image: Path, image_4k: Path, loop: Loop) -> None:
    device = loop(12 * MIB, "--sector-size", "4096")
    code, output = flash(image_4k, device, "--yes")
    assert code == 0, output
    assert content(device, 12 * MIB) == image_4k.read_bytes()
    code, output = flash(image, device, "--yes")
    assert code == 1
    assert "the device has 4096" in output


def test_nothing_without_a_yes(image: Path, loop: Loop) -> None:
    device = loop(12 * MIB)
    code, output = flash(image, device)
    assert (code, "--yes" in output) == (2, True)
    code, output = flash(image, device, "--plan")
    assert code == 0
    assert content(device, 12 * MIB) == b"\xa5" * (12 * MIB)


@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 130), (b"y\n", 0)])
def test_asks_at_a_terminal(answer: bytes, code: int, image: Path, loop: Loop) -> None:
    device = loop(12 * MIB)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from erofs_edge.cli.main import main; main()", "flash", image, "--to", device]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        os.write(ours, answer)
        _, told = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == code
    assert f"{device} (12.0 MiB, fixed): everything on it will be lost".encode() in told
    assert (content(device, 12 * MIB) == image.read_bytes()) == (code == 0)


def test_refusals(image: Path, loop: Loop, tmp_path: Path) -> None:
    small = loop(11 * MIB)
    code, output = flash(image, small, "--yes")
    assert (code, "needs 1048576 more" in output) == (1, True)
    locked = loop(12 * MIB, "--read-only")
    code, output = flash(image, locked, "--yes")
    assert (code, "read-only" in output) == (7, True)
    for device, size in ((small, 11), (locked, 12)):
        assert content(device, size * MIB) == b"\xa5" * (size * MIB)


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    return done.exit_code, done.output


def attempts(image: Path, device: Path) -> Iterator[tuple[int, str]]:
    """Yield everything that would write to it."""
    yield flash(image, device, "--yes")
    yield flash(image, device, "--repair", "--yes")
    yield run("slots", "activate", device, "b")
    yield run("slots", "mark", device, "a", "good")


def test_a_read_only_disk_can_be_looked_at(loop: Loop, tmp_path: Path) -> None:
    v1, v2 = (disk_image(tmp_path / f"v{number}.img", number) for number in (1, 2))
    device = loop(v1.stat().st_size, "--read-only", content=v1.read_bytes())
    before = content(device, v1.stat().st_size)
    code, output = flash(v2, device, "--plan", "--json")
    assert (code, '"read_only": true' in output) == (0, True), output
    assert flash(v1, device, "--verify-only")[0] == 0
    assert flash(v2, device, "--verify-only")[0] == 4
    code, output = run("slots", "show", device)
    assert (code, "next" in output) == (0, True), output
    for code, output in attempts(v1, device):
        assert (code, "the device is read-only" in output, "write-protect switch" in output) == (7, True, True), output
    assert content(device, v1.stat().st_size) == before


def test_a_disk_of_others_can_be_looked_at(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a user who may read it, but not write."""
    image = disk_image(tmp_path / "image.img", 1)
    device = loop(image.stat().st_size, content=image.read_bytes())
    real = os.open

    def refusing(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if str(path) == str(device) and flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, mode)

    monkeypatch.setattr("erofs_edge.flash.local.os.open", refusing)
    assert flash(image, device, "--verify-only")[0] == 0
    assert run("slots", "show", device)[0] == 0
    for code, output in attempts(image, device):
        assert (code, "no permission to write to the device" in output, "as root" in output) == (7, True, True), output


def test_a_mounted_disk_is_refused(image: Path, loop: Loop, oracle: Callable[[str], str], tmp_path: Path) -> None:
    device, mount = loop(12 * MIB), tmp_path / "mount"
    mount.mkdir()
    subprocess.run([oracle("mke2fs"), "-q", "-t", "ext4", device], check=True)
    subprocess.run(["mount", device, mount], check=True)
    try:
        before = content(device, 12 * MIB)
        code, output = flash(image, device, "--yes")
        assert (code, f"mounted on {mount}" in output) == (7, True)
        assert content(device, 12 * MIB) == before
    finally:
        subprocess.run(["umount", mount], check=True)
    assert flash(image, device, "--yes")[0] == 0


def test_the_system_disk_is_refused(image: Path, needs_root: None) -> None:
    root = os.stat("/").st_dev
    folder = Path(f"/sys/dev/block/{os.major(root)}:{os.minor(root)}")
    if not folder.exists():
        pytest.skip("the root is on no block device (a container)")
    folder = folder.resolve()
    disk = folder.parent if (folder / "partition").exists() else folder
    code, output = flash(image, Path("/dev") / disk.name, "--yes")
    assert (code, "running system" in output) == (7, True)
