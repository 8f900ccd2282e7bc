# SPDX-License-Identifier: Apache-2.0
"""Images with compressed chunks, as Nydus's own builder writes them: decoded into devices; and hostile ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest
import zstandard
from click.testing import CliRunner
from devices import mounted_differences
from test_rafs import small, tree, write
from test_rafs_hostile import NAME, from_nydus
from treediff import diff
from writer_trees import Repeated, file

from erofs_edge.cli.fs import fs
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsEdgeError, ErofsFormatError, UsageError
from erofs_edge.rafs import ondisk
from erofs_edge.rafs.blake3 import blake3
from erofs_edge.rafs.check import check_rafs
from erofs_edge.rafs.decode import decode_blobs
from erofs_edge.rafs.read import read_rafs
from erofs_edge.tree import FileTree

Codec = Callable[[bytes], bytes]
CODECS: dict[str, Codec] = {
    "lz4_block": lambda data: bytes(lz4.block.compress(data, store_size=False)),
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


def compressed(made: FileTree, folder: Path, codec: str, chunk_size: int = 65536) -> Path:
    """Return a bootstrap in `folder`, with its blob in `folder`/blobs: our output, with chunks compressed where that
    saves space, packed without gaps; ids, sizes and flags are then those of Nydus."""
    (blobs := folder / "blobs").mkdir()
    info, (plain,) = write(made, folder, chunk_size=chunk_size)
    rafs, content = read_rafs(info.path), plain.read_bytes()
    boot, out = bytearray(info.path.read_bytes()), io.BytesIO()
    for number, chunk in enumerate(rafs.chunks):
        data = content[chunk.offset : chunk.offset + chunk.size]
        packed = CODECS[codec](data)
        flags = int(len(packed) < len(data))
        stored = packed if flags else data
        new = chunk._replace(flags=flags, stored=len(stored), offset=out.tell())
        ondisk.CHUNK.pack_into(boot, rafs.chunk_table + number * ondisk.CHUNK.size, *new)
        out.write(stored)
    name = hashlib.sha256(out.getvalue()).hexdigest()
    (blob,) = rafs.blobs
    # a blob whose own chunk table is elsewhere
    features = blob.features | ondisk.BLOB_CHUNK_INFO_V2
    new_blob = blob._replace(
        id=name.encode(), compression=ondisk.COMPRESSIONS.index(codec), stored=out.tell(), features=features,
        ci_size=blob.chunks * ondisk.CONTEXT_V2_SIZE,
    )  # fmt: skip
    ondisk.BLOB.pack_into(boot, rafs.blob_table, *new_blob)
    boot[ondisk.DEVICES_AT : ondisk.DEVICES_AT + 64] = name.encode()
    info.path.write_bytes(boot)
    (blobs / name).write_bytes(out.getvalue())
    plain.unlink()
    return info.path


@pytest.mark.parametrize("codec", CODECS)
def test_decoded_blobs_are_devices(codec: str, tmp_path: Path) -> None:
    boot = compressed(tree(), tmp_path, codec)
    (raw,) = (tmp_path / "blobs").iterdir()
    assert [str(f) for f in check_rafs(boot, [raw]).findings] == [
        f"warning: blob 0 ({codec}) is no device for Linux: decode it: fs blobs --decode"
    ]
    (out := tmp_path / "out").mkdir()
    done = list[tuple[int, int]]()
    devices = decode_blobs(read_rafs(boot), raw.parent, out, lambda *at: done.append(at))
    assert devices == [out / raw.name]
    assert done[-1][0] == done[-1][1]
    with Image(boot, devices=devices) as opened:
        assert diff(opened.tree(), tree()) == []


@pytest.mark.root
def test_linux_mounts_what_was_decoded(needs_root: None, tmp_path: Path) -> None:
    boot = compressed(tree(), tmp_path, "zstd")
    (out := tmp_path / "out").mkdir()
    assert mounted_differences(boot, decode_blobs(read_rafs(boot), tmp_path / "blobs", out), tree()) == []


def test_chunks_as_large_as_the_format_has(tmp_path: Path) -> None:
    made = FileTree()
    made.add("f", file(Repeated(20 << 20)))
    boot = compressed(made, tmp_path, "zstd", ondisk.CHUNK_MAX)
    (out := tmp_path / "out").mkdir()
    with Image(boot, devices=decode_blobs(read_rafs(boot), tmp_path / "blobs", out)) as opened:
        assert diff(opened.tree(), made) == []


@pytest.mark.parametrize("codec", CODECS)
def test_a_blob_that_is_another(codec: str, tmp_path: Path) -> None:
    """Whichever byte is changed, nothing is written; `fs check` names the same chunk."""
    boot = compressed(small(), tmp_path, codec)
    (blob,) = (tmp_path / "blobs").iterdir()
    rafs, good = read_rafs(boot), blob.read_bytes()
    (out := tmp_path / "out").mkdir()
    first = next(chunk for chunk in rafs.chunks if chunk.flags)
    for at in {0, first.stored // 2, first.stored - 1}:
        bad = bytearray(good)
        bad[first.offset + at] ^= 0x55
        blob.write_bytes(bad)
        with pytest.raises(ErofsFormatError, match=f"chunk {first.number} "):
            decode_blobs(rafs, blob.parent, out)
        assert any(f"chunk {first.number} of blob 0" in f.message for f in check_rafs(boot, [blob]).errors)
    blob.write_bytes(good[: len(good) - 1])
    with pytest.raises(ErofsFormatError, match="chunk"):
        decode_blobs(rafs, blob.parent, out)
    assert list(out.iterdir()) == []


def test_sizes_that_lie(tmp_path: Path) -> None:
    """A stream of more bytes than the table says, and a size that no chunk has: bounded and refused."""
    boot = compressed(small(), tmp_path, "gzip")
    rafs = read_rafs(boot)
    number, chunk = next((n, c) for n, c in enumerate(rafs.chunks) if c.flags)
    raw = bytearray(boot.read_bytes())
    (out := tmp_path / "out").mkdir()
    for changed, said in (
        (chunk._replace(size=chunk.size - 1), f"has {chunk.size} bytes, not {chunk.size - 1}"),
        (chunk._replace(flags=ondisk.CHUNK_COMPRESSED | 8), "stored in an unknown way"),
    ):
        ondisk.CHUNK.pack_into(raw, rafs.chunk_table + number * ondisk.CHUNK.size, *changed)
        boot.write_bytes(raw)
        with pytest.raises(ErofsFormatError, match=said):
            decode_blobs(read_rafs(boot), tmp_path / "blobs", out)
    struct.pack_into("<Q", raw, rafs.blob_table + 88, ondisk.STORED_MAX)
    large = chunk._replace(stored=0xFFFF_FFFF)
    ondisk.CHUNK.pack_into(raw, rafs.chunk_table + number * ondisk.CHUNK.size, *large)
    boot.write_bytes(raw)
    with pytest.raises(ErofsFormatError, match="has 4294967295 bytes for"):
        decode_blobs(read_rafs(boot), tmp_path / "blobs", out)


def test_what_is_not_decoded(tmp_path: Path) -> None:
    (boot := tmp_path / "boot").write_bytes(from_nydus())
    (blobs := tmp_path / "blobs").mkdir()
    (out := tmp_path / "out").mkdir()
    with pytest.raises(ErofsEdgeError, match="cannot open the blob: No such file"):
        decode_blobs(read_rafs(boot), blobs, out)
    with pytest.raises(UsageError, match="would take the place of the blobs"):
        decode_blobs(read_rafs(boot), blobs, blobs)
    with pytest.raises(UsageError, match="the folder for the blobs does not exist"):
        decode_blobs(read_rafs(boot), blobs, tmp_path / "none")
    raw = bytearray(from_nydus())
    # batches, with the larger chunk table that they need
    struct.pack_into("<I", raw, 4096 + 84, 0x7000_0021 | ondisk.BLOB_BATCH | ondisk.BLOB_CHUNK_INFO_V2)
    struct.pack_into("<QQ", raw, 4096 + 120, 48, 48)
    boot.write_bytes(raw)
    (blobs / NAME.decode()).write_bytes(bytes(20000))
    with pytest.raises(UsageError, match="encrypted, in batches or an archive"):
        decode_blobs(read_rafs(boot), blobs, out)


def test_the_digests_of_nydus(tmp_path: Path) -> None:
    """Its builder uses BLAKE3 by default."""
    raw, parts = bytearray(from_nydus()), (b"a" * 4096, b"b" * 904)
    packed = [CODECS["zstd"](data) for data in parts]
    for number, (data, stored) in enumerate(zip(parts, packed, strict=True)):
        struct.pack_into("<32sIII", raw, 4 * 4096 + 80 * number, blake3(data), 0, 1, len(stored))
    (boot := tmp_path / "boot").write_bytes(raw)
    (blobs := tmp_path / "blobs").mkdir()
    (out := tmp_path / "out").mkdir()
    (blobs / NAME.decode()).write_bytes(packed[0].ljust(2000) + packed[1].ljust(18000))
    run = CliRunner()
    done = run.invoke(fs, ["blobs", str(boot), "--blob-dir", str(blobs), "--decode", str(out)], catch_exceptions=False)
    assert f"device={out / NAME.decode()}" in done.stdout
    with Image(boot, devices=[out / NAME.decode()]) as image:
        assert image.read(image.lookup("/f"), 0, 9999) == b"a" * 4096 + b"b" * 904
    (blobs / NAME.decode()).write_bytes(packed[0].ljust(2000) + CODECS["zstd"](b"c" * 904).ljust(18000))
    with pytest.raises(ErofsFormatError, match="chunk 1 does not match its digest"):
        decode_blobs(read_rafs(boot), blobs, out)
    done = run.invoke(fs, ["blobs", str(boot), "--decode", str(out)])
    assert isinstance(done.exception, UsageError)


@pytest.mark.parametrize(
    ("size", "digest"),
    [
        (0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
        (1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
        (1023, "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11"),
        (1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"),
        (1025, "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"),
        (2048, "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a"),
        (2049, "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030"),
        (3072, "b98cb0ff3623be03326b373de6b9095218513e64f1ee2edd2525c7ad1e5cffd2"),
        (5120, "9cadc15fed8b5d854562b26a9536d9707cadeda9b143978f319ab34230535833"),
        (31744, "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47"),
        (102400, "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"),
    ],
)
def test_the_published_values_of_blake3(size: int, digest: str) -> None:
    """Of the bytes 0 to 250, repeated: BLAKE3's own test vectors."""
    assert blake3((bytes(range(251)) * (size // 251 + 1))[:size]).hex() == digest
