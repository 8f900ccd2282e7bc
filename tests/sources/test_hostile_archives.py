# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile archives against the readers of tar, deb and image layers: each gives one clear error or a tree,
with bounded memory and nothing left in the cache. Seeded, so that a failure comes again."""

from __future__ import annotations

import gzip
import json
import lzma
import random
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from sources.oci.images import Image, image, write_layout
from sources.samples import ar_bytes, deb_bytes, entry, tar_bytes

from erofs_edge.errors import FormatError, SourceError, VerificationError
from erofs_edge.manifest.supply import Oci
from erofs_edge.sources import decompress
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import read_deb
from erofs_edge.sources.debian.unpack import unpack
from erofs_edge.sources.oci.image import load_image, pin_image
from erofs_edge.sources.tar import read_tar
from erofs_edge.tree import FileTree

CLEAR = (SourceError, FormatError, VerificationError)
MEMORY = 64 << 20  # bytes that reading a small archive may take at its peak
CASES = 250
EXTREMES = [b"\0", b"\xff", b"7", b"8", b"-", b"\x80", b" ", b"/", b"../", b"\xff\xff\xff\xff\xff\xff\xff\xff"]

MEMBERS = [
    entry("./", kind=tarfile.DIRTYPE),
    entry("./usr/bin", kind=tarfile.DIRTYPE),
    entry("./bin", kind=tarfile.SYMTYPE, linkname="usr/bin"),
    entry("./bin/tool", b"tool" * 200, mode=0o4755),
    entry("./usr/bin/twin", kind=tarfile.LNKTYPE, linkname="./bin/tool"),
    entry("./dev/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
    entry("./" + "long/" * 40 + "x", b"1", pax_headers={"SCHILY.xattr.user.a": "b", "mtime": "1.5"}),
    entry("./sparse", b"xy", pax_headers={"GNU.sparse.size": "9", "GNU.sparse.map": "3,1,8,1"}),
    entry("./.wh.gone"),
]
WHOLE = tar_bytes(MEMBERS)
PACKED = {"plain": bytes, "gz": lambda data: gzip.compress(data, mtime=0), "xz": lzma.compress,
          "zst": zstandard.ZstdCompressor().compress}  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few of: bytes changed, numbers made extreme, a piece cut out, doubled, moved, or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(max(1, len(out)))
        kind = rng.randrange(6)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            piece = rng.choice(EXTREMES) * rng.choice((1, 1, 8))
            out[at : at + len(piece)] = piece
        elif kind == 2:
            del out[at : at + rng.choice((1, 12, 512, 4096))]
        elif kind == 3:
            block = at & -512
            out[block:block] = out[block : block + 512 * rng.choice((1, 2))]
        elif kind == 4:
            source = rng.randrange(max(1, len(out))) & -512
            out[at & -512 : (at & -512) + 512] = out[source : source + 512]
        else:
            del out[at:]
    return bytes(out)


def resealed(data: bytes) -> bytes:
    """The check sums of all headers made right, so that damage is met further inside."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


def use(tree: FileTree) -> None:
    """Everything that a writer would touch, contents in their first and last bytes."""
    for path, inode in tree.walk():
        assert path.startswith(b"/") and b".." not in path.split(b"/") and b"\0" not in path
        if inode.content is not None:
            size = inode.content.size
            assert 0 <= size <= 64 << 30
            assert len(inode.content.read(0, 4096)) == min(size, 4096)
            inode.content.read(max(0, size - 10), 20)


def as_tar(path: Path, cache: Cache) -> FileTree:
    return read_tar(path, cache)


def as_deb(path: Path, cache: Cache) -> FileTree:
    return unpack([read_deb(path, cache)])


def meet(tmp_path: Path, data: bytes, reader: Callable[[Path, Cache], FileTree], case: str) -> bool:
    """Read hostile bytes; whether they were refused."""
    path = tmp_path / "hostile"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        use(reader(path, Cache(tmp_path / "cache")))
    except CLEAR as error:
        assert str(error), case
        return True
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY, f"{case}: {peak} bytes"
    return False


@pytest.mark.parametrize("codec", PACKED)
def test_damaged_tars(tmp_path: Path, codec: str) -> None:
    refused = 0
    for seed in range(CASES):
        rng = random.Random(f"tar {codec} {seed}")
        if codec == "plain":
            data = resealed(damaged(WHOLE, rng)) if seed % 2 else damaged(WHOLE, rng)
        elif seed % 2:
            data = PACKED[codec](resealed(damaged(WHOLE, rng)))
        else:
            data = damaged(PACKED[codec](WHOLE), rng)
        refused += meet(tmp_path, data, as_tar, f"{codec} {seed}")
    assert refused > CASES // 4, "the damage does not reach the reader"


@pytest.mark.parametrize("codec", ["plain", "xz"])
def test_damaged_packages(tmp_path: Path, codec: str) -> None:
    whole = deb_bytes(data=PACKED[codec](WHOLE), data_name="data.tar" + (".xz" if codec == "xz" else ""))
    refused = 0
    for seed in range(CASES):
        rng = random.Random(f"deb {codec} {seed}")
        data = damaged(whole, rng)
        if seed % 3 == 0:
            data = deb_bytes(data=PACKED[codec](resealed(damaged(WHOLE, rng))), data_name="data.tar")
        refused += meet(tmp_path, data, as_deb, f"{codec} {seed}")
    assert refused > CASES // 4


def test_damaged_images(tmp_path: Path) -> None:
    """Digests are right, so that documents and layers are believed at first."""
    refused = 0
    for seed in range(CASES // 2):
        rng = random.Random(f"image {seed}")
        layers = [WHOLE, resealed(damaged(WHOLE, rng)) if seed % 2 else WHOLE]
        made = image(layers, rng.choice(("", "+gzip", "+zstd")))
        if seed % 2 == 0:
            text = damaged(made.manifest, rng)
            made = Image(dict(made.blobs), text)
            made.descriptor = made.add(text, "application/vnd.oci.image.manifest.v1+json")
        folder = write_layout(tmp_path / f"layout{seed}", made)
        try:
            oci, cache = Oci(layout=str(folder)), Cache(tmp_path / "cache")
            use(load_image(oci, pin_image(oci, "arm64", cache).sha256, "arm64", cache))
        except CLEAR as error:
            assert str(error)
            refused += 1
    assert refused > CASES // 8


def raw_header(name: bytes, size: bytes, kind: bytes = b"0", **fields: bytes) -> bytes:
    """One tar header with its fields taken as they are."""
    places = {"mode": (100, 8), "uid": (108, 8), "mtime": (136, 12), "linkname": (157, 100), "devmajor": (329, 8)}
    header = bytearray(512)
    header[: len(name)] = name
    header[124 : 124 + len(size)] = size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    for key, value in fields.items():
        at, length = places[key]
        header[at : at + length] = value.ljust(length, b"\0")[:length]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


END = bytes(1024)
HUGE = b"\x80" + (1 << 80).to_bytes(11, "big")
BY_HAND = {
    "absurd size": raw_header(b"x", b"77777777777") + END,
    "size beyond 64 bits": raw_header(b"x", HUGE) + END,
    "negative size": raw_header(b"x", b"\xff" * 12) + END,
    "long name of a gigabyte": raw_header(b"././@LongLink", b"10000000000", b"L") + END,
    "sparse of absurd size": tar_bytes(
        [entry("x", b"", pax_headers={"GNU.sparse.size": "9223372036854775807", "GNU.sparse.map": "0,0"})]
    ),
    "device number": raw_header(b"x", b"0", b"3", devmajor=b"7777777") + END,
    "owner": raw_header(b"x", b"0", uid=b"\xff" * 8) + END,
    "escape by a name": raw_header(b"usr/../../etc/passwd", b"0") + END,
    "absolute name": raw_header(b"/etc/passwd", b"0") + END,
    "escape by a hard link": raw_header(b"x", b"0", b"1", linkname=b"../../etc/shadow") + END,
    "hard link to itself": raw_header(b"x", b"0", b"1", linkname=b"x") + END,
    "file below a file": raw_header(b"x", b"0") + raw_header(b"x/y", b"0") + END,
    "comes twice": raw_header(b"x", b"0") + raw_header(b"x", b"0") + END,
    "below a symlink that leads out": raw_header(b"x", b"0", b"2", linkname=b"/nowhere")
    + raw_header(b"x/y", b"0") + END,
    "symlinks in a circle": raw_header(b"a", b"0", b"2", linkname=b"b") + raw_header(b"b", b"0", b"2", linkname=b"a")
    + raw_header(b"a/x", b"0") + END,
    "very deep": raw_header(b"././@LongLink", b"%011o" % 6000, b"L") + (b"a/" * 3000).ljust(6144, b"\0")
    + raw_header(b"a", b"0") + END,
    "no end": raw_header(b"x", b"0"),
    "socket": raw_header(b"x", b"0", b"s") + END,
    "second volume": raw_header(b"x", b"0", b"M") + END,
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_what_a_tar_may_not_do(tmp_path: Path, name: str) -> None:
    assert meet(tmp_path, BY_HAND[name], as_tar, name)
    assert meet(tmp_path, gzip.compress(BY_HAND[name]), as_tar, name)
    assert meet(tmp_path, deb_bytes(data=BY_HAND[name]), as_deb, name)
    assert not list((tmp_path / "cache").glob("tmp/*"))


@pytest.mark.parametrize("where", ["tar", "data", "control", "layer"])
@pytest.mark.parametrize("codec", ["gz", "xz", "zst"])
def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, where: str) -> None:
    monkeypatch.setattr(decompress, "BOMB_FREE", 1 << 20)
    monkeypatch.setattr("erofs_edge.sources.debian.deb.MAX_CONTROL", 8 << 20)
    if codec == "gz" and where != "control":
        monkeypatch.setattr(decompress, "BOMB_RATIO", 100)
    bomb = PACKED[codec](raw_header(b"./control", b"%011o" % (32 << 20)) + bytes(32 << 20) + END)
    if where == "layer":
        media = {"gz": "+gzip", "xz": "+gzip", "zst": "+zstd"}[codec]
        made = Image()
        config = {"architecture": "arm64", "os": "linux", "rootfs": {"diff_ids": ["sha256:" + "0" * 64]}}
        document = {
            "schemaVersion": 2,
            "config": made.add(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
            "layers": [made.add(bomb, f"application/vnd.oci.image.layer.v1.tar{media}")],
        }
        made.descriptor = made.add(json.dumps(document).encode(), "application/vnd.oci.image.manifest.v1+json")
        oci, cache = Oci(layout=str(write_layout(tmp_path / "layout", made))), Cache(tmp_path / "cache")
        with pytest.raises(SourceError, match="layer 1: decompression bomb"):
            load_image(oci, pin_image(oci, "arm64", cache).sha256, "arm64", cache)
        return
    data = bomb
    if where == "data":
        data = deb_bytes(data=bomb, data_name=f"data.tar.{codec}")
    elif where == "control":
        data = ar_bytes([("debian-binary", b"2.0\n"), (f"control.tar.{codec}", bomb), ("data.tar", tar_bytes([]))])
    assert meet(tmp_path, data, as_tar if where == "tar" else as_deb, f"{codec} {where}")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()], "nothing is kept"


def test_a_window_that_needs_all_memory(tmp_path: Path) -> None:
    """zstd frames may ask for windows of terabytes, xz for dictionaries of 4 GiB: neither is allocated."""
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, 0xFF]) + b"\x01\x00\x00"
    assert meet(tmp_path, frame, as_tar, "zstd window")
    packed = bytearray(lzma.compress(WHOLE, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]))
    at = packed.index(b"\x21\x01", 12)
    packed[at + 2] = 40
    size = (packed[12] + 1) * 4
    packed[8 + size : 12 + size] = struct.pack("<I", zlib.crc32(packed[12 : 8 + size]))
    assert meet(tmp_path, bytes(packed), as_tar, "xz dictionary")
