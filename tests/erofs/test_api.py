# SPDX-License-Identifier: Apache-2.0
"""The documented interface: cheap to import; takes directories and trees, gives files that behave like files."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erofs_edge import erofs
from erofs_edge.erofs import arguments
from erofs_edge.erofs.options import WriteOptions
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


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("baseline", b"x", "baseline is bytes; it must be str or os.PathLike, or None"),
        ("blob", 3, "blob is int; it must be str or os.PathLike, or None"),
        ("bases", 5, "bases is int; it must be str or os.PathLike, or several of them"),
        ("archives", ["a", None], r"archives\[1\] is NoneType; it must be str or os.PathLike"),
        ("block_size", "4096", "block_size is str; it must be int"),
        ("block_size", None, "block_size is NoneType; it must be int"),
        ("block_size", True, "block_size is bool; it must be int"),
        ("level", "9", "level is str; it must be int, or None"),
        ("epoch", 1.5, "epoch is float; it must be int, or None"),
        ("compression", 5, "compression is int; it must be str"),
        ("compression", None, "compression is NoneType; it must be str"),
        ("dedupe", "no", "dedupe is str; it must be bool"),
        ("fragments", True, "fragments is bool; it must be str"),
        ("uuid", 16, "uuid is int; it must be bytes or str, or None"),
        ("volume_name", 1, "volume_name is int; it must be bytes or str"),
        ("xattr_prefixes", b"user.", "xattr_prefixes is bytes; it must be several of bytes or str"),
        ("rules", ["*.gz"], r"rules\[0\] is str; it must be CompressionRule"),
        ("profile", "/bin/sh", "profile is str; it must be several of Use, bytes or str"),
        ("profile", [1], r"profile\[0\] is int; it must be Use, bytes or str"),
        ("kernel", 6.6, "kernel is float; it must be Kernel or str, or None"),
        ("cache", "/tmp", "cache is str; it must be CompressionCache, or None"),
        ("meter", 1, "meter is int; it must be Meter, or None"),
        ("progress", 1, r"progress is int; it must be a function of \(done, total\), or None"),
    ],
)
def test_an_option_of_the_wrong_type_is_named(name: str, value: object, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=f"^{wanted}$"):
        erofs.build(FileTree(), tmp_path / "out", **{name: value})
    assert os.listdir(tmp_path) == []


def test_arguments_of_the_wrong_type_are_named(path: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, Callable[..., object], tuple[Any, ...], dict[str, Any]]] = [
        ("source is int; it must be FileTree, str or os.PathLike", erofs.build, (3, tmp_path / "out"), {}),
        ("out is NoneType; it must be str or os.PathLike", erofs.build, (FileTree(), None), {}),
        ("path is NoneType; it must be str or os.PathLike", erofs.open, (None,), {}),
        ("path is bytes; it must be str or os.PathLike", erofs.open, (b"x",), {}),
        ("devices is int; it must be str or os.PathLike, or several of them", erofs.open, (path,), {"devices": 1}),
        ("offset is str; it must be int", erofs.open, (path,), {"offset": "0"}),
    ]
    for wanted, call, given, words in calls:
        with pytest.raises(TypeError) as caught:
            call(*given, **words)
        assert str(caught.value) == wanted


def test_words_that_are_none_of_those_there_are(tmp_path: Path) -> None:
    for name, words in (("times", "keep, fixed, clamp"), ("fragments", "none, tails, all"), ("inode_form", "auto, ")):
        with pytest.raises(UsageError, match=f"{name} is 'some'") as caught:
            erofs.build(FileTree(), tmp_path / "out", **{name: "some"})
        assert caught.value.hint is not None and words in caught.value.hint


def test_values_that_nothing_can_have_are_usage_errors(path: Path, tmp_path: Path) -> None:
    for name in ("blob", "baseline", "bases"):
        with pytest.raises(UsageError, match="has a NUL"):
            erofs.build(FileTree(), tmp_path / "out", **{name: "a\0b"})
    for size in (0, -4096, 1 << 70):
        with pytest.raises(UsageError, match=f"block size {size} is not"):
            erofs.build(FileTree(), tmp_path / "out", block_size=size)
    with pytest.raises(UsageError, match="path has a NUL"):
        erofs.open("a\0b")
    for offset in (-4096, -(1 << 70)):
        with pytest.raises(UsageError, match="cannot be read from byte -"):
            erofs.open(path, offset=offset)


def test_every_option_has_a_type(tmp_path: Path) -> None:
    """Each default is of its option's type."""
    defaults = {name: getattr(WriteOptions(), name) for name in WriteOptions.__annotations__}
    erofs.build(FileTree(), tmp_path / "one", **defaults)
    erofs.build(FileTree(), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    for kind in WriteOptions.__annotations__.values():
        plain = str(kind).removesuffix(" | None")
        assert plain in arguments._TYPES or plain.startswith("Literal"), kind


def test_names_may_be_text_and_a_kernel_its_version(tmp_path: Path) -> None:
    tree = FileTree()
    tree.add("a/b", Inode(0o100644, content=BytesContent(b"x")))
    for name, (label, prefix, used) in {
        "one": ("edge", "user.x", "/a/b"),
        "two": (b"edge", b"user.x", b"/a/b"),
    }.items():
        erofs.build(tree, tmp_path / name, volume_name=label, xattr_prefixes=[prefix], profile=[used])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with pytest.raises(UsageError, match=r"zstd needs 6\.10"):
        erofs.build(tree, tmp_path / "three", compression="zstd", kernel="6.6")


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
    with pytest.raises(ErofsEdgeError, match="a pipe, not an image"):
        erofs.open(tmp_path / "pipe")
