# SPDX-License-Identifier: Apache-2.0
"""The documented interface: cheap to import, directories and trees in, files out that behave like files."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from erofs_edge import erofs
from erofs_edge.errors import ErofsEdgeError, UsageError
from erofs_edge.tree import BytesContent, FileTree, Inode


@pytest.fixture
def data() -> bytes:
    return random.Random(7).randbytes(5000) + b"compressible " * 40_000 + bytes(70_000)


@pytest.fixture
def path(data: bytes, tmp_path: Path) -> Path:
    root = Inode(0o40755)
    root.children[b"f"] = Inode(0o100644, content=BytesContent(data))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("inner", data)
    root.children[b"z.zip"] = Inode(0o100644, content=BytesContent(packed.getvalue()))
    erofs.build(FileTree(root), tmp_path / "image", compression="lz4", pcluster=16384)
    return tmp_path / "image"


def test_importing_the_package_loads_nothing() -> None:
    code = "import erofs_edge.erofs, sys; print([m for m in sys.modules if m.startswith('erofs_edge.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['erofs_edge.erofs']"
    with pytest.raises(AttributeError, match="no attribute 'close'"):
        erofs.close  # type: ignore[attr-defined]  # noqa: B018


def test_a_directory_and_its_tree_give_the_same_image(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x").write_bytes(b"x" * 9000)
    first = erofs.build(tmp_path / "d", str(tmp_path / "one"), compression="lz4")
    with erofs.open(str(tmp_path / "one")) as image:
        second = erofs.build(image.tree(), tmp_path / "two", compression="lz4")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert first.uuid == second.uuid
    with pytest.raises(UsageError, match="unknown options: a, b"):
        erofs.build(tmp_path / "d", tmp_path / "three", b=1, a=2)


def test_options_that_are_paths_may_be_text(path: Path, tmp_path: Path) -> None:
    out, blob = tmp_path / "out", tmp_path / "blob"
    with erofs.open(path) as image:
        tree = image.tree()
        for baseline in (str(path), path):
            again = erofs.build(tree, str(out), baseline=baseline, compression="lz4", pcluster=16384)
            assert again.changed_blocks == 0 and out.read_bytes() == path.read_bytes()
        erofs.build(tree, out, blob=str(blob), chunk_size=4096, compression="none")
        for bases, devices in ((str(out), str(blob)), ([str(out)], [blob]), ((out,), (str(blob),))):
            erofs.build(tree, tmp_path / "above", bases=bases, base_devices=devices, compression="none")
            assert (tmp_path / "above").stat().st_size < blob.stat().st_size // 2
        erofs.build(tree, out, baseline=None)


def test_a_file_behaves_like_a_file(path: Path, data: bytes) -> None:
    plain = io.BytesIO(data)
    rng = random.Random(1)
    with erofs.open(path) as image, image.open("f") as handle, io.BufferedReader(image.open("/f"), 1 << 16) as buffered:
        for _ in range(300):
            whence = rng.choice([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
            offset = rng.randrange(-len(data) - 50, len(data) + 50)
            length = rng.choice([0, 1, 100, 5000, 100_000])
            base = {io.SEEK_SET: 0, io.SEEK_CUR: plain.tell(), io.SEEK_END: len(data)}[whence]
            if base + offset < 0:
                with pytest.raises(ValueError, match="negative"):
                    handle.seek(offset, whence)
                continue
            place = plain.seek(base + offset)
            assert handle.seek(offset, whence) == handle.tell() == place
            assert buffered.seek(place) == place
            expected = plain.read(length)
            assert handle.read(length) == expected
            assert buffered.read(length) == expected
        with pytest.raises(ValueError, match="unknown whence 9"):
            handle.seek(0, 9)
        handle.seek(7)
        assert handle.read() == data[7:]
        assert handle.read() == b""
        assert (handle.readable(), handle.seekable(), handle.writable()) == (True, True, False)
    for use in (handle.tell, handle.read, lambda: handle.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_other_modules_can_use_the_file(path: Path, data: bytes) -> None:
    with erofs.open(path) as image, zipfile.ZipFile(image.open("z.zip")) as archive:
        assert archive.read("inner") == data


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ErofsEdgeError, match="cannot map the image"):
        erofs.open(tmp_path / "pipe")
