# SPDX-License-Identifier: Apache-2.0
"""RAFS v6: Nydus reads what we write, and Linux mounts it with the blobs as devices."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from devices import extracted_differences, mounted_differences
from treediff import diff
from writer_check import kernel_differences
from writer_trees import Repeated, file, noise, rich_tree

from erofs_edge.cli.fs import fs
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsEdgeError, SourceError, UsageError
from erofs_edge.rafs.check import check_rafs
from erofs_edge.rafs.read import read_rafs
from erofs_edge.rafs.write import RafsInfo, RafsOptions, write_rafs
from erofs_edge.tree import FileTree, Inode

GOLDEN = {
    "bootstrap": "0bd6ec9dab028f675724603fabac2a9868b0f3f65d3f0b0aed7d9d6bfbaf5829",
    "blob": "0cf5ef70d68d794171170fba6a8ff82aa0a13ea279a35686c3bfecc8bbce54d7",
}
LINK = 0o120777


def tree() -> FileTree:
    made = rich_tree()
    made.remove("large")
    made.add("nothing", file(b""))
    made.add("far", Inode(LINK, target=b"t" * 4090))
    made.add("wide/zeros", file(Repeated(3 << 20)))
    for number in range(700):  # more than a block of names
        made.add(f"many/{number:04}-{'n' * 20}", file(b"%d" % number))
    return made


def write(made: FileTree, folder: Path, name: str = "boot", **options: Any) -> tuple[RafsInfo, list[Path]]:
    """Write an image. Return the result, and the blobs in the order of the devices."""
    info = write_rafs(made, folder / name, folder, RafsOptions(**options))
    return info, [folder / blob for blob in info.blobs]


def small() -> FileTree:
    made = FileTree()
    made.add("a", file(b"a" * 5000, mtime_ns=1))
    made.add("b", file(noise(9000), xattrs={b"user.k": b"v"}))
    made.add("same", file(b"a" * 5000))
    return made


@pytest.mark.parametrize("chunk", [4096, 1 << 20])
def test_our_reader_reads_it(tmp_path: Path, chunk: int) -> None:
    info, blobs = write(tree(), tmp_path, chunk_size=chunk)
    with Image(info.path, devices=blobs) as opened:
        assert diff(opened.tree(), tree()) == []
    assert check_rafs(info.path, blobs).findings == []
    assert info.blob is not None
    assert hashlib.sha256(info.blob.read_bytes()).hexdigest() == info.blob.name
    assert info.new < info.chunks, "equal chunks are there once"


@pytest.mark.root
def test_linux_mounts_it(needs_root: None, tmp_path: Path) -> None:
    """With the blobs as devices; appended to the bootstrap, at their addresses; and as files, without loop devices."""
    base = small()
    write(base, tmp_path, "base", chunk_size=65536)
    made = tree()
    for name in ("a", "b"):
        made.add(f"of-base/{name}", base.root.children[name.encode()])
    info, blobs = write(made, tmp_path, chunk_size=65536, bases=(tmp_path / "base",))
    assert len(blobs) == 2
    assert mounted_differences(info.path, blobs, made) == []
    joined = bytearray(info.path.read_bytes())
    with Image(info.path, devices=blobs) as opened:
        for slot, blob in zip(opened.superblock.devices, blobs, strict=True):
            joined += bytes((slot.uniaddr << 12) - len(joined)) + blob.read_bytes()[: slot.blocks << 12]
    (tmp_path / "joined").write_bytes(joined)
    assert kernel_differences(tmp_path / "joined", made) == []
    (target := tmp_path / "mnt").mkdir()
    library = ctypes.CDLL(None, use_errno=True)
    given = ",".join(f"device={blob}" for blob in blobs).encode()
    if library.mount(os.fsencode(info.path), os.fsencode(target), b"erofs", 1, given):
        assert ctypes.get_errno() == 15, "ENOTBLK from a kernel that mounts block devices alone"
        return
    try:
        assert (target / "of-base/b").read_bytes() == noise(9000)
    finally:
        library.umount(os.fsencode(target))


@pytest.mark.oracle
def test_fsck_erofs_agrees(oracle: Callable[[str], str], tmp_path: Path) -> None:
    info, blobs = write(tree(), tmp_path)
    assert extracted_differences(oracle, info.path, blobs, tree()) == []


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    """These are the bytes, which were checked against Nydus's rules."""
    found = []
    for name in ("one", "two"):
        (folder := tmp_path / name).mkdir()
        info, (blob,) = write(small(), folder, chunk_size=4096)
        found.append((hashlib.sha256(info.path.read_bytes()).hexdigest(), blob.name))
    assert found[0] == found[1] == (GOLDEN["bootstrap"], GOLDEN["blob"])


def test_what_nydus_asks_of_it(tmp_path: Path) -> None:
    """Nydus's own rules (v6.rs, validate), written again, and applied to the bytes without our structures."""
    write(small(), tmp_path, "base", chunk_size=4096)
    made = small()
    made.add("c", file(noise(20_000, 3)))
    info, blobs = write(made, tmp_path, chunk_size=4096, bases=(tmp_path / "base",))
    data = info.path.read_bytes()

    def word(at: int, form: str = "I") -> int:
        return int(struct.unpack_from("<" + form, data, at)[0])

    assert len(data) % 4096 == 0
    assert word(1024) == 0xE0F5E1E2
    assert word(1032) & 0x40000000
    assert word(1028) == word(1024 + 44) == word(1024 + 84, "H") == data[1024 + 13] == 0
    assert data[1024 + 12] == 12
    assert word(1024 + 16, "Q") == len(made.root.children) + 1
    assert word(1024 + 80) == 0x4 | 0x8
    assert (word(1024 + 86, "H"), word(1024 + 88, "H") * 128) == (2, 1408)
    flags, table, size, chunk, chunks_at, chunks_size = struct.unpack_from("<QQIIQQ", data, 1152)
    assert flags & (1 | 2 | 0x40 | 0x80) == 1, "compressed by nothing"
    assert flags & (4 | 8) == 8, "sha256"
    assert flags & 0x20, "there are attributes"
    assert (chunk, size, table % 4096, chunks_at % 4096, chunks_size % 80) == (4096, 512, 0, 0, 0)
    assert 1408 + 2 * 128 <= table <= table + size <= chunks_at <= chunks_at + chunks_size <= len(data)
    known = set()
    for at in range(chunks_at, chunks_at + chunks_size, 80):
        digest, blob, flag, stored, length, offset, address, _, number, _ = struct.unpack_from(
            "<32sIIIIQQQII", data, at
        )
        assert (flag, stored, offset % 4096, offset) == (0, length, 0, address)
        content = blobs[blob].read_bytes()[offset : offset + stored]
        assert hashlib.sha256(content).digest() == digest
        known.add((number & 0xFFFF, number >> 16 << 8 | blob + 1, address // 4096))
    for number, path in enumerate(blobs):
        entry = table + number * 256
        assert data[entry : entry + 64] == data[1408 + number * 128 :][:64] == path.name.encode()
        index, size, count, compression, digester, features = struct.unpack_from("<6I", data, entry + 64)
        assert (index, size, compression, digester, features) == (number, 4096, 0, 1, 1 | 0x40000000)
        stored, plain = struct.unpack_from("<QQ", data, entry + 88)
        assert plain == word(1408 + number * 128 + 64) * 4096
        assert path.stat().st_size == stored
        assert word(entry + 108) == 0, "the table of chunks is not compressed"
        offset, packed, table_size = struct.unpack_from("<QQQ", data, entry + 112)
        assert (offset, packed, table_size) == (plain, 16 * count, 16 * count)
        raw = path.read_bytes()
        header = struct.unpack_from("<IIIIQQQ", raw, offset + packed)
        assert header == (0xB10BB10B, features, 0, count, offset, packed, table_size)
        assert raw[offset + packed + 4092 : offset + packed + 4096] == header[:1][0].to_bytes(4, "little")
    with Image(info.path, devices=blobs) as opened:
        for name, inode in opened.walk():
            if name in (b"a", b"b", b"c", b"same"):
                raw = data[-(-inode.body // 8) * 8 :]
                assert {struct.unpack_from("<HHI", raw, 8 * i) for i in range(-(-inode.size // 4096))} <= known


def test_what_a_base_has_is_not_stored_again(tmp_path: Path) -> None:
    base, _ = write(small(), tmp_path, "base", chunk_size=4096)
    same, blobs = write(small(), tmp_path, "same", chunk_size=4096, bases=(base.path,))
    assert (same.blob, same.blobs, same.new) == (None, base.blobs, 0)
    assert check_rafs(same.path, blobs).findings == []
    made = small()
    made.remove("b")
    made.add("c", file(noise(20_000, 3)))
    more, blobs = write(made, tmp_path, "more", chunk_size=4096, bases=(base.path,))
    assert (more.new, more.blobs[0]) == (5, base.blobs[0])
    assert check_rafs(more.path, blobs).findings == []
    with Image(more.path, devices=blobs) as opened:
        assert diff(opened.tree(), made) == []
    third = FileTree()
    third.add("c", file(noise(20_000, 3)))
    last, blobs = write(third, tmp_path, "third", chunk_size=4096, bases=(more.path,))
    assert last.blobs == more.blobs[1:], "a blob that nothing is of is no device"
    assert check_rafs(last.path, blobs).findings == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"base", "same", "more", "third", *more.blobs})


@pytest.mark.root
def test_files_without_content(needs_root: None, tmp_path: Path) -> None:
    """Then there is no blob, and no block count, which Nydus would refuse."""
    made = FileTree()
    made.add("empty", file(b""))
    info, blobs = write(made, tmp_path)
    assert (info.blob, blobs) == (None, [])
    assert read_rafs(info.path).blobs == ()
    assert struct.unpack_from("<I", info.path.read_bytes(), 1024 + 36) == (0,)
    assert check_rafs(info.path).findings == []
    assert kernel_differences(info.path, made) == []


def test_blobs_of_another_kind_are_no_base(tmp_path: Path) -> None:
    base, _ = write(small(), tmp_path, "base", chunk_size=4096)
    with pytest.raises(UsageError, match="the base has chunks of 4096 bytes, this image has 8192"):
        write(small(), tmp_path, bases=(base.path,), chunk_size=8192)
    raw = bytearray(base.path.read_bytes())
    raw[4096 + 76] = 3  # zstd
    base.path.write_bytes(raw)
    with pytest.raises(UsageError, match=r"blob [0-9a-f]{64} of the base is compressed"):
        write(small(), tmp_path, bases=(base.path,), chunk_size=4096)
    with pytest.raises(UsageError, match="chunks of 5000 bytes"):
        RafsOptions(chunk_size=5000)
    with pytest.raises(UsageError, match="the folder for the blobs does not exist"):
        write_rafs(small(), tmp_path / "boot", tmp_path / "none")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    with pytest.raises(SourceError, match="cannot write"):
        write_rafs(small(), tmp_path / "none" / "boot", blobs)
    assert list(blobs.iterdir()) == [], "no blob that nothing refers to is left behind"


def test_a_blob_that_is_another(tmp_path: Path) -> None:
    info, (blob,) = write(small(), tmp_path, chunk_size=4096)
    raw = blob.read_bytes()
    blob.write_bytes(raw[:100] + b"!" + raw[101:])
    found = [finding.message for finding in check_rafs(info.path, [blob]).errors]
    assert found == ["blob 0 is the wrong one: its sha256 is not its id", "chunk 0 of blob 0 does not match its digest"]
    blob.write_bytes(raw[: len(raw) - 4096])
    assert [f.message for f in check_rafs(info.path, [blob]).errors] == [
        f"blob 0 has {len(raw) - 4096} bytes, not {len(raw)}"
    ]
    with pytest.raises(UsageError, match="the image has 1 blobs, 2 are given"):
        check_rafs(info.path, [blob, blob])
    with pytest.raises(ErofsEdgeError, match="cannot open the image"):
        check_rafs(info.path, [tmp_path / "missing"])


def test_on_the_command_line(tmp_path: Path) -> None:
    (source := tmp_path / "src").mkdir()
    (source / "f").write_bytes(noise(70_000))
    (blobs := tmp_path / "blobs").mkdir()
    boot = tmp_path / "boot"
    run = CliRunner()
    given = ["rafs", str(source), "-o", str(boot), "--blob-dir", str(blobs), "--chunksize", "64K", "-T", "0", "--json"]
    done = run.invoke(fs, given, catch_exceptions=False)
    (blob,) = json.loads(done.stdout)["blobs"]
    done = run.invoke(fs, ["blobs", str(boot), "--json"], catch_exceptions=False)
    assert json.loads(done.stdout) == [
        {"id": blob, "size": 81920, "data": 73728, "chunks": 2, "compression": "none", "digest": "sha256",
         "is_device": True}
    ]  # fmt: skip
    done = run.invoke(fs, ["check", str(boot), "--device", str(blobs / blob)], catch_exceptions=False)
    assert "clean: 2 inodes" in done.stdout
    (blobs / blob).write_bytes(bytes(81920))
    done = run.invoke(fs, ["check", str(boot), "--device", str(blobs / blob)], catch_exceptions=False)
    assert "its sha256 is not its id" in done.stdout
