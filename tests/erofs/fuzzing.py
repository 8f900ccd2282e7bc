# SPDX-License-Identifier: Apache-2.0
"""A hostile case, and what it must not do; for the test suite and for tools/fuzz-erofs."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mutate import Field, fields, seal, value
from reader_trees import mkfs, noise, text
from reseal import Checksum

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.check import check
from erofs_edge.erofs.extract import extract
from erofs_edge.erofs.picture import svg
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.regions import map_image
from erofs_edge.errors import ErofsEdgeError, ErofsFormatError, UsageError

KINDS = [
    "-zlz4 -C16384 -T1",
    "-T1",
    "-zlz4 -Elegacy-compress -C16384",
    "--chunksize=4096 -Eforce-chunk-indexes",
    "-zlz4 -Eztailpacking -T1",
    "-zlz4 -Eall-fragments",
    "-zlz4 -Ededupe,fragments -C8192",
    "-b512 -zlz4 -C4096 -T1",
    "-zlz4 -E48bit,ztailpacking",
    "-zlz4hc -C16384 -E48bit,fragments",
    "-zlz4 -m4096",
    "-zlz4 -m4096 -E48bit,all-fragments --zD=1 --xattr-prefix=user.s -x1",
    "--chunksize=4096 --blobdev=BLOB -E48bit",
    "-zzstd -C16384 -Eztailpacking",
    "-zlzma -C16384",
    "-zdeflate -C8192 -Efragments",
    "-zlz4 -Elegacy-compress HEAD2",
    "-zlz4 -Elegacy-compress -C8192 HOLE",
    "--chunksize=8192",
    "-zzstd -C65536 -E48bit",
    "-zlz4 -b1024 -C8192 -Eztailpacking,dedupe",
]
"""options of mkfs.erofs, and two forms that it never writes: HEAD2: all heads are of the second type; HOLE: the first
extents of files are holes"""
EXTRACT_BYTES = 50 << 20
_CHECKSUM, _BLKSZBITS = ondisk.SUPER_OFFSET + 4, ondisk.SUPER_OFFSET + 12
_crc32c = ondisk.crc32c


class Patch(NamedTuple):
    """Bytes that replace those at an offset."""

    offset: int
    data: bytes
    told: str


class Base(NamedTuple):
    """An intact image, its fields and inode numbers, and its extra device, if any."""

    kind: str
    data: bytes
    fields: list[Field]
    nids: list[int]
    device: Path | None
    checksum: Checksum


def make_source(source: Path) -> Path:
    """A small tree with every kind of content."""
    (source / "d").mkdir(parents=True)
    (source / "d/f").write_bytes(text(700))
    (source / "mix").write_bytes(text(300) + noise(9000) + text(900))
    (source / "d/g").hardlink_to(source / "mix")
    (source / "twin").write_bytes(text(500) + b"x")
    (source / "link").symlink_to("d/f")
    os.mkfifo(source / "pipe")
    for name in "abc":
        (source / name).write_bytes(name.encode())
        os.setxattr(source / name, "user.s", b"shared value")
    os.setxattr(source / "d", "user.k", b"v1")
    (source / "many").mkdir()
    for number in range(17):  # more than a block of names
        (source / "many" / f"{number:0255d}").hardlink_to(source / "c")
    for number, path in enumerate(sorted(source.rglob("*"))):
        os.utime(path, ns=(0, 10**18 + number * 1001), follow_symlinks=False)
    os.utime(source, ns=(0, 10**18))
    return source


def make_base(kind: str, tool: str, source: Path, folder: Path) -> Base:
    """Make the image with mkfs.erofs and the options `kind`."""
    number = KINDS.index(kind)
    device = folder / f"blob{number}" if "BLOB" in kind else None
    if device:
        device.touch()
    path = folder / f"base{number}"
    times = [] if "-T1" in kind else ["-T1", "--mkfs-time"]
    options = ["--quiet", *times, *kind.replace("BLOB", str(device)).split()]
    mkfs(tool, path, source, [option for option in options if option not in ("HEAD2", "HOLE")])
    if "H" in kind:
        change_heads(path, kind.rsplit(maxsplit=1)[-1])
    with Image(path, devices=[device] if device else []) as image:
        nids = sorted({inode.nid for _, inode in image.walk()})
        data = path.read_bytes()
        checksum = Checksum(data, image.superblock.raw.blkszbits)
        return Base(kind, data, fields(image), nids, device, checksum)


def change_heads(path: Path, how: str) -> None:
    """Apply HEAD2 or HOLE, as in KINDS, to an image with full indexes."""
    data = bytearray(path.read_bytes())
    data[ondisk.SUPER_OFFSET + 80] |= ondisk.INCOMPAT_COMPR_HEAD2 if how == "HEAD2" else 0
    with Image(path) as image:
        for inode in {inode for _, inode in image.walk() if inode.is_compressed}:
            zmap = image.zmap(inode)
            for at in range(zmap.position, zmap.position + zmap.index_size, ondisk.FULL_INDEX.size):
                if data[at] & 3 != ondisk.LCLUSTER_HEAD1:
                    continue
                if how == "HEAD2":
                    data[at] |= ondisk.LCLUSTER_HEAD2
                elif at == zmap.position:
                    data[at + 1] |= ondisk.INDEX_HOLE >> 8
    path.write_bytes(seal(data))


def patches(base: Base, seed: int) -> list[Patch]:
    """Return a case's changes: mostly one to three fields, sometimes random bytes or a copy from elsewhere."""
    rng = random.Random(f"{base.kind} {seed}")
    found = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        way = rng.random()
        if way < 0.1:
            at = rng.randrange(ondisk.SUPER_OFFSET, len(base.data) - 8)
            found.append(Patch(at, rng.randbytes(rng.randrange(1, 8)), f"bytes at {at:#x}"))
            continue
        if way < 0.15:
            size = rng.choice([4, 8, 12, 32, 64, 512])
            at, start = (rng.randrange(ondisk.SUPER_OFFSET, len(base.data) - size + 1, 4) for _ in range(2))
            found.append(Patch(at, base.data[start : start + size], f"{size} bytes of {start:#x} at {at:#x}"))
            continue
        field = rng.choice(base.fields)
        old = int.from_bytes(base.data[field.offset : field.offset + field.size], "little")
        new = value(rng, old, field.size, base.nids)
        told = f"{field.name}: {old:#x} -> {new:#x}"
        found.append(Patch(field.offset, new.to_bytes(field.size, "little"), told))
    return found


def patched(base: Base, found: Sequence[Patch]) -> bytes:
    """Return the image of a case, with a correct checksum."""
    out = bytearray(base.data)
    changed: list[int] = []
    for patch in found:
        end = patch.offset + len(patch.data)
        out[patch.offset : end] = patch.data
        changed += range(patch.offset, end)
    if out[_BLKSZBITS] != base.data[_BLKSZBITS]:
        return seal(out)
    out[_CHECKSUM : _CHECKSUM + 4] = base.checksum.after(out, changed).to_bytes(4, "little")
    return bytes(out)


def remember_checksum(image: bytes) -> None:
    """Let the reader skip the checksum of this image, which would take a third of a case's time; others are
    computed."""
    size = 1 << (image[_BLKSZBITS] & 31)
    end = max(size, ondisk.SUPER_OFFSET + min(size, ondisk.SUPER_OFFSET))
    known = image[ondisk.SUPER_OFFSET : _CHECKSUM] + bytes(4) + image[_CHECKSUM + 4 : end]
    checksum = int.from_bytes(image[_CHECKSUM : _CHECKSUM + 4], "little")
    ondisk.crc32c = lambda data, crc=0xFFFFFFFF: checksum if data == known else _crc32c(data, crc)


def judge(path: Path, device: Path | None, *, write: bool) -> bool:
    """Use an image in every way. Return whether the check accepts it.

    Raises AssertionError, or the original exception, if anything but a result or a format error comes of it, if an
    image that the check accepts cannot be read, or if a file appears outside the destination.
    """
    devices = [device] if device else []
    try:
        report = check(path, devices=devices, jobs=1)
    except UsageError as error:  # the image says how many devices it has
        assert "extra devices" in error.message, error
        return False
    _read(lambda: _walk(path, devices), report.ok)
    if write:
        with tempfile.TemporaryDirectory(dir=path.parent) as inside:
            before = set(os.listdir(path.parent))
            try:
                _read(lambda: _extract(path, devices, Path(inside) / "out"), report.ok)
            finally:
                assert set(os.listdir(path.parent)) == before
                assert set(os.listdir(inside)) <= {"out"}
                shutil.rmtree(Path(inside) / "out", ignore_errors=True)
    return report.ok


def _read(use: Callable[[], None], accepted: bool) -> None:
    try:
        use()
    except ErofsFormatError as error:
        assert error.where is not None, error
        assert not accepted or "limit" in error.message or "regions" in error.message, error
    except ErofsEdgeError as error:  # the host refuses, say, a file of 2**62 bytes
        assert "cannot write" in error.message, error


def _walk(path: Path, devices: list[Path]) -> None:
    with Image(path, devices=devices) as image:
        tree = image.tree()
        for _, inode in tree.walk():
            if inode.is_file and inode.content is not None:
                inode.content.read(max(0, inode.size - 10_000), 10_000)
        svg(map_image(image), "x")


def _extract(path: Path, devices: list[Path], out: Path) -> None:
    with Image(path, devices=devices) as image:
        extract(image, out, limit=EXTRACT_BYTES, jobs=1)
