# SPDX-License-Identifier: Apache-2.0
"""What tests mount goes with the process that did it, also where that is killed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mounts import loop
from waiting import eventually

from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.write import write_image
from erofs_edge.tree import FileTree

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("needs_root")]
PROGRAM = """
import subprocess, sys
from pathlib import Path
from mounts import loop, own_mounts
held, mounted, target = sys.argv[1:]
assert own_mounts()
with loop(Path(held), "--read-only"):
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", mounted, target], check=True)
    print(Path("/proc/self/mounts").read_text().count(f" {target} "), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    write_image(FileTree(), path, WriteOptions(compression="none"))
    return path


def attached(image: Path) -> bool:
    """Whether a loop device is of this file."""
    listed = subprocess.run(["losetup", "--associated", str(image)], capture_output=True, text=True, check=True)
    return str(image) in listed.stdout


def test_killed_it_leaves_no_mount_and_no_loop_device(image: Path, tmp_path: Path) -> None:
    (target := tmp_path / "mounted").mkdir()
    images = [image, Path(shutil.copy(image, tmp_path / "other"))]
    argv = [sys.executable, "-c", PROGRAM, *map(str, images), str(target)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "1\n"
        assert all(map(attached, images))
        assert str(target) not in Path("/proc/self/mounts").read_text(), "its mounts are its own"
        child.kill()
    assert eventually(lambda: not any(map(attached, images)))
    target.rmdir()


def test_a_loop_device_lasts_as_long_as_its_block(image: Path) -> None:
    with loop(image, "--read-only") as device:
        for _ in range(2):  # whoever opens and closes it meanwhile does not let go of it
            with device.open("rb") as file:
                assert file.read(2048) == image.read_bytes()[:2048]
        assert attached(image)
    assert eventually(lambda: not attached(image))
