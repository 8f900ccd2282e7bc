# SPDX-License-Identifier: Apache-2.0
"""The provisioning system as files: the same each time, complete, signed; and who may be flashed in QEMU."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.boot.contents import unpack_initramfs
from erofs_edge.boot.cpio import read_cpio

BOARD = "boards/qemu-aarch64.yaml"
Edge = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(edge: str, repository: Path) -> Edge:
    def command(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [edge, *map(str, words)], cwd=repository, capture_output=True, text=True, check=False, timeout=200
        )

    return command


@pytest.mark.oracle
def test_the_same_locks_give_the_same_complete_and_signed_system(
    run: Edge, tmp_path: Path, oracle: Callable[[str], str]
) -> None:
    for name in ("one", "two"):
        done = run("provision", BOARD, "-o", tmp_path / name, "--json")
        assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout)["files"]
    for name, size in sizes.items():
        data = (tmp_path / "one" / name).read_bytes()
        assert data == (tmp_path / "two" / name).read_bytes()
        assert len(data) == size
    assert sizes["initramfs"] < 16 << 20
    members = {m.name.decode(): m for m in read_cpio(unpack_initramfs((tmp_path / "one/initramfs").read_bytes()))}
    programs = ("busybox", "nbdkit", "zstd", "veritysetup", "gdd", "work", "control")
    for wanted in ("init", *(f"bin/{name}" for name in programs)):
        assert members[wanted].data, wanted
    modules = " ".join(name for name in members if name.startswith("modules/"))
    assert "-virtio_net.ko" in modules and "-virtio_blk.ko" in modules
    assert any(name.endswith("nbdkit-file-plugin.so") for name in members)
    listed = subprocess.run(
        [oracle("dumpimage"), "-l", tmp_path / "one/provision.fit"], capture_output=True, text=True, check=True
    )
    assert "provisioning" in listed.stdout and "sha256,rsa2048" in listed.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((BOARD, "--to", "qemu:carrier-pigeon", "--disk", "x.img"), "unknown address"),
        ((BOARD, "--to", "qemu:nbd"), "--disk FILE"),
        (("README.md", "--to", "qemu:nbd", "--disk", "x.img"), "needs a BOARD"),
        (("README.md", "--to", "x.img", "--disk", "x.img"), "a board in QEMU"),
        (("boards/qemu-aarch64-locked.yaml", "--to", "qemu:serial", "--disk", "x.img"), "no U-Boot prompt"),
    ],
)
def test_what_cannot_be_flashed_in_qemu_is_told(
    run: Edge, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    words = tuple(str(tmp_path / word) if word == "x.img" else word for word in words)
    more = ("--image", str(image)) if "boards/" in words[0] and "qemu:" in words[2] else ()
    done = run("flash", *words, *more)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
