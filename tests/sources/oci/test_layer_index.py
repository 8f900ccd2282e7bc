# SPDX-License-Identifier: Apache-2.0
"""Container images as EROFS images of metadata, whose devices are the layers' own archives."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from mounts import loop
from sources.oci.images import CODECS, digest, files, image, write_layout
from sources.samples import entry, tar_bytes

from erofs_edge.cli.main import cli
from erofs_edge.erofs.check import check
from erofs_edge.erofs.read import Image
from erofs_edge.manifest.supply import Oci
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.oci.image import load_image, pin_image
from erofs_edge.tree import FileTree

LOW = tar_bytes([entry("a", b"1" * 600), entry("gone", b"g"), entry("d/x", b"x" * 5000), entry("d/y", b"y")])
HIGH = tar_bytes([entry("a", b"2" * 700), entry(".wh.gone"), entry("d/z", b"z" * 9000)])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EROFS_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(*words: str) -> Result:
    return CliRunner().invoke(cli, ["fs", "build", "--oci-layout", "oci", "--layer-dir", "layers", "-o", "i", *words])


def contents(tree: FileTree) -> dict[bytes, bytes]:
    return {path: inode.read() for path, inode in tree.walk() if inode.is_file}


@pytest.mark.parametrize("codec", CODECS)
def test_layers_become_devices_under_their_diff_ids(folder: Path, codec: str) -> None:
    write_layout(folder / "oci", image([LOW, HIGH], codec))
    done = build("--json")
    assert done.exit_code == 0, done.output
    names = [digest(layer).removeprefix("sha256:") for layer in (LOW, HIGH)]
    assert json.loads(done.stdout)["devices"] == [f"layers/{name}" for name in names]
    devices = [folder / "layers" / name for name in names]
    assert [path.read_bytes() for path in devices] == [LOW, HIGH]
    oci, cache = Oci(layout="oci"), Cache()
    wanted = contents(load_image(oci, pin_image(oci, "arm64", cache).sha256, "arm64", cache))
    with Image("i", devices=devices) as opened:
        assert contents(opened.tree()) == wanted
        assert [slot.tag.decode() for slot in opened.superblock.devices] == names
        assert opened.superblock.size < 4096
    assert check("i", devices=devices).findings == []


def test_a_layer_that_comes_twice_is_one_device(folder: Path) -> None:
    """But its second coming counts: what was hidden between is there again."""
    hides = tar_bytes([entry(".wh.a"), entry("d/.wh.x")])
    write_layout(folder / "oci", image([LOW, hides, LOW]))
    done = build("--json")
    assert done.exit_code == 0, done.output
    devices = json.loads(done.stdout)["devices"]
    assert len(devices) == 2
    with Image("i", devices=devices) as opened:
        assert contents(opened.tree())[b"/d/x"] == b"x" * 5000


def test_layers_that_are_there_stay_and_damaged_ones_do_not(folder: Path) -> None:
    write_layout(folder / "oci", image([LOW, HIGH]))
    assert build().exit_code == 0
    first, second = sorted((folder / "layers").iterdir())
    before = first.stat().st_ino
    second.write_bytes(b"damaged")
    assert build().exit_code == 0
    assert first.stat().st_ino == before
    assert sorted(path.read_bytes() for path in (first, second)) == sorted([LOW, HIGH])
    assert sorted(path.name for path in (folder / "layers").iterdir()) == sorted([first.name, second.name])


def test_one_layer_is_a_layer(folder: Path) -> None:
    write_layout(folder / "oci", image([HIGH]))
    assert build().exit_code == 0
    with Image("i", devices=list((folder / "layers").iterdir())) as opened:
        assert set(contents(opened.tree())) == {b"/a", b"/d/z"}


@pytest.mark.root
@pytest.mark.skipif(sys.platform != "linux", reason="mounts")
def test_the_kernel_mounts_them(needs_root: None, folder: Path) -> None:
    write_layout(folder / "oci", image([LOW, HIGH, files(b="3")]))
    done = build("--json")
    (folder / "mnt").mkdir()
    with ExitStack() as stack:
        devices = map(Path, json.loads(done.stdout)["devices"])
        loops = [stack.enter_context(loop(device, "--read-only")) for device in devices]
        options = ",".join(["loop", "ro", *(f"device={name}" for name in loops)])
        subprocess.run(["mount", "-t", "erofs", "-o", options, "i", "mnt"], check=True)
        try:
            found = {p.relative_to("mnt").as_posix(): p.read_bytes() for p in Path("mnt").rglob("*") if p.is_file()}
        finally:
            subprocess.run(["umount", "mnt"], check=True)
    assert found == {"a": b"2" * 700, "d/x": b"x" * 5000, "d/y": b"y", "d/z": b"z" * 9000, "b": b"3"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arch", "riscv64"], "riscv64"),
        (["--tar-index", "x.tar"], "cannot be combined"),
        (["src"], "what to build from?"),
        (["-b", "4096"], "multiples of 512"),
    ],
)
def test_what_cannot_be(folder: Path, words: list[str], message: str) -> None:
    write_layout(folder / "oci", image([LOW]))
    (folder / "x.tar").write_bytes(LOW)
    (folder / "src").mkdir()
    done = build(*words)
    assert done.exit_code != 0
    assert message in done.output
    assert not (folder / "i").exists()


def test_a_folder_for_the_layers_is_asked_for(folder: Path) -> None:
    write_layout(folder / "oci", image([LOW]))
    done = CliRunner().invoke(cli, ["fs", "build", "--oci-layout", "oci", "-o", "i"])
    assert done.exit_code == 2
    assert "must be given together" in done.output
