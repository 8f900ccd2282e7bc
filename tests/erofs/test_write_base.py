# SPDX-License-Identifier: Apache-2.0
"""Images on bases: what is in those is not stored again, and all readers see the whole tree."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compare import differences
from devices import extracted_differences, mounted_differences, own_differences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_write_48bit import far_away
from writer_check import write
from writer_trees import Repeated, file, mixed, noise, rich_tree, text

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.bases import open_bases
from erofs_edge.erofs.check import check
from erofs_edge.erofs.gate import parse_kernel
from erofs_edge.erofs.loans import Device, Loans
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.plan import Node
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsEdgeError, ErofsFormatError, UsageError
from erofs_edge.tree import BytesContent, FileTree

BLOCK = 4096
WAYS: list[dict[str, Any]] = [
    {"compression": "none"},
    {"compression": "none", "inline_tails": False, "block_size": 512},
    {"compression": "none", "chunk_size": 4096},
    {"compression": "lz4", "pcluster": 65536},
    {"compression": "lz4", "pcluster": 16384, "dedupe": True},
    {"compression": "zstd", "pcluster": 65536, "ztailpacking": True},
    {"compression": "lzma", "pcluster": 65536, "level": 1},
    {"compression": "deflate", "full_index": True},
    {"compression": "lz4", "pcluster": 65536, "wide": True},
    {"compression": "lz4", "fragments": "tails"},
]


def old_tree() -> FileTree:
    tree = rich_tree()
    tree.remove("large")
    return tree


def new_tree() -> FileTree:
    tree = old_tree()
    tree.remove("sizes/text-131072")
    tree.add("new/noise", file(noise(50_000, 77)))
    tree.add("new/text", file(text(90_000, 78)))
    tree.add("new/again", file(mixed(300_000, 99), 0o600))
    tree.add("new/changed", file(noise(131_072, 21)[:70_000] + b"changed" + noise(131_072, 21)[70_007:]))
    return tree


@pytest.mark.root
@pytest.mark.parametrize("blob", [False, True], ids=["", "blob"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_only_what_is_new_is_stored(needs_root: None, tmp_path: Path, way: dict[str, Any], blob: bool) -> None:
    base, image = tmp_path / "base", tmp_path / "i"
    first = write(old_tree(), base, **way)
    own = {"blob": tmp_path / "blob"} if blob else {}
    info = write(new_tree(), image, bases=(base,), **way, **own)
    if "fragments" not in way:
        assert info.lent > 40
        assert info.size + info.device_blocks * info.block_size < first.size / 3
    assert list(info.devices) == ([tmp_path / "blob"] if blob else []) + [base]
    assert own_differences(image, info.devices, new_tree()) == []
    assert mounted_differences(image, info.devices, new_tree()) == []
    assert info.minimum_kernel >= (5, 16)


@pytest.mark.oracle
@pytest.mark.root
@pytest.mark.parametrize("blob", [False, True], ids=["", "blob"])
def test_fsck_agrees_where_each_chunk_names_its_device(
    oracle: Callable[[str], str], needs_root: None, tmp_path: Path, blob: bool
) -> None:
    """fsck.erofs 1.9.4 looks for flat and compressed data of the common address space in the image itself, and
    truncates files that end in a hole."""
    tree, more = FileTree(), FileTree()
    for i in range(20):
        tree.add(f"{i}", file(noise(5_000 * i + 1, i)))
        more.add(f"{i}", file(noise(5_000 * i + 1, i + i // 15)))
    base, image = tmp_path / "base", tmp_path / "i"
    how: dict[str, Any] = {"compression": "none", "inline_tails": False, "chunk_size": 8192}
    write(tree, base, compression="none", inline_tails=False)
    info = write(more, image, bases=(base,), **how, **({"blob": tmp_path / "blob"} if blob else {}))
    assert 10 < info.lent < 20
    assert extracted_differences(oracle, image, info.devices, more) == []
    assert mounted_differences(image, info.devices, more) == []


@pytest.mark.root
def test_three_layers(needs_root: None, tmp_path: Path) -> None:
    """base + vendor + app; each is mounted with the devices it needs, and no others."""
    trees = [FileTree(), FileTree(), FileTree()]
    for i in range(30):
        for tree in trees[i // 10 :]:
            tree.add(f"d{i}/f", file(mixed(20_000 + i, i)))
    base, vendor, app = (tmp_path / name for name in ("base", "vendor", "app"))
    write(trees[0], base, compression="lz4")
    write(trees[1], vendor, compression="zstd", bases=(base,))
    with pytest.raises(UsageError, match=r"data on device 1 \([0-9a-f-]{36}\), which is not given") as caught:
        write(trees[2], app, compression="none", bases=(vendor,))
    assert caught.value.hint == "name the file: --base-device FILE"
    for how in ({"bases": (vendor,), "base_devices": (base,)}, {"bases": (vendor, base)}):
        info = write(trees[2], app, compression="none", **how)
        assert info.devices == (vendor, base)
        assert info.lent == 20
        assert own_differences(app, info.devices, trees[2]) == []
        assert mounted_differences(app, info.devices, trees[2]) == []
    assert write(trees[0], app, compression="none", bases=(vendor,), base_devices=(base,)).devices == (base,)


@pytest.mark.root
def test_versions_as_chunks_store_what_changed(needs_root: None, tmp_path: Path) -> None:
    """A file in which one block changed shares all others, also with the version before the last."""
    data = bytearray(noise(100 * BLOCK, 5))
    made: list[Path] = []
    for version in range(3):
        data[version * 9 * BLOCK : version * 9 * BLOCK + 5] = b"%05d" % version
        tree = FileTree()
        tree.add("model", file(bytes(data)))
        tree.add(f"{version}", file(noise(BLOCK, version)))
        image, blob = tmp_path / f"{version}", tmp_path / f"{version}.blob"
        info = write(
            tree, image, compression="none", chunk_size=BLOCK, blob=blob,
            bases=tuple(made[-2:-1]), base_devices=tuple(made[1::2]),
        )  # fmt: skip
        assert info.device_blocks == (101 if not version else 2)
        assert own_differences(image, info.devices, tree) == []
        assert mounted_differences(image, info.devices, tree) == []
        made += [image, blob]
    # images of metadata alone are not used as devices of later ones
    assert [path.name for path in info.devices] == ["2.blob", "1.blob", "0.blob"]


@pytest.mark.root
def test_a_file_is_device_enough_for_newer_kernels(needs_root: None, tmp_path: Path) -> None:
    """Mounted by the system call; mount(8) would make a loop device of the image, which requires block devices for the
    others."""
    base, image = tmp_path / "base", tmp_path / "i"
    write(old_tree(), base, compression="lz4")
    write(new_tree(), image, compression="lz4", bases=(base,))
    (target := tmp_path / "mnt").mkdir()
    library = ctypes.CDLL(None, use_errno=True)
    given = [os.fsencode(image), os.fsencode(target), b"erofs", 1, b"device=" + os.fsencode(base)]
    if library.mount(*given):
        assert ctypes.get_errno() == errno.ENOTBLK, "a kernel that mounts block devices alone says so"
        return
    try:
        assert differences(new_tree(), target) == []
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_the_same_whatever_the_jobs(tmp_path: Path) -> None:
    write(old_tree(), tmp_path / "base", compression="lz4")
    found = set()
    for jobs in (1, 2, 8):
        write(new_tree(), tmp_path / "i", compression="lz4", bases=(tmp_path / "base",), jobs=jobs)
        found.add((tmp_path / "i").read_bytes())
    assert len(found) == 1


def test_golden_device_table(tmp_path: Path) -> None:
    """The base's UUID as text, its blocks, and the image's blocks as the start of its numbers."""
    tree = FileTree()
    tree.add("f", file(noise(10 * BLOCK, 1)))
    base = write(tree, tmp_path / "base", compression="none", uuid=bytes(range(16)))
    info = write(tree, tmp_path / "i", compression="none", bases=(tmp_path / "base",))
    data = (tmp_path / "i").read_bytes()
    raw = ondisk.Superblock(*ondisk.SUPERBLOCK.unpack(data[1024:1152]))
    assert raw.extra_devices == 1
    assert data[raw.devt_slotoff * 128 :][:128] == (
        b"00010203-0405-0607-0809-0a0b0c0d0e0f".ljust(64, b"\0")
        + base.blocks.to_bytes(4, "little")
        + info.blocks.to_bytes(4, "little")
        + bytes(56)
    )
    with Image(tmp_path / "i", devices=[tmp_path / "base"]) as opened:
        inode = opened.lookup("/f")
        assert inode.layout == ondisk.LAYOUT_CHUNK_BASED
        assert opened.backing.read(-(-inode.body // 8) * 8, 8, "entry") == bytes.fromhex("0000010001000000")


def test_nothing_in_common_needs_no_device(tmp_path: Path) -> None:
    trees = FileTree(), FileTree()
    for i, tree in enumerate(trees):
        tree.add("f", file(noise(9 * BLOCK, i)))
    write(trees[0], tmp_path / "base", compression="none")
    info = write(trees[1], tmp_path / "i", compression="none", bases=(tmp_path / "base",))
    assert (info.devices, info.lent) == ((), 0)
    assert "device_table" not in info.features or info.minimum_kernel == (5, 16)
    assert own_differences(tmp_path / "i", [], trees[1]) == []


def test_a_device_of_another_build_is_refused(tmp_path: Path) -> None:
    image, base, other = tmp_path / "i", tmp_path / "base", tmp_path / "other"
    write(old_tree(), base, compression="none")
    write(new_tree(), other, compression="none")
    write(new_tree(), image, compression="none", bases=(base,))
    with pytest.raises(ErofsFormatError, match=r"device 1 is the wrong one: .*, the file is image") as caught:
        Image(image, devices=[other])
    assert caught.value.where == str(other)
    other.write_bytes(bytes(base.stat().st_size))
    with pytest.raises(ErofsFormatError, match="the file is no image"):
        Image(image, devices=[other])
    assert "device 1 is the wrong one" in str(check(image, devices=[other]).findings[0])


def test_a_blob_of_another_build_is_found_by_check(tmp_path: Path) -> None:
    image, blob = tmp_path / "i", tmp_path / "blob"
    tree = FileTree()
    tree.add("f", file(noise(9 * BLOCK, 1)))
    write(tree, image, compression="none", chunk_size=BLOCK, blob=blob)
    assert check(image, devices=[blob]).ok
    data = bytearray(blob.read_bytes())
    data[5000] ^= 1
    blob.write_bytes(data)
    findings = check(image, devices=[blob]).findings
    assert [f.message for f in findings] == ["device 1 is the wrong one: the sha256 of its content is not its tag"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"base_devices": (Path("x"),)}, "devices of bases need a base"),
        ({"bases": (Path("base"),), "baseline": Path("base")}, "extra device cannot keep"),
        ({"bases": (Path("base"),), "kernel": parse_kernel("5.15")}, "--blobdev needs 5.16"),
        ({"bases": (Path("base"),), "block_size": 512}, "the base has blocks of 4096 bytes"),
        ({"bases": (Path("i"),)}, "are the same file"),
        ({"bases": (Path("junk"),)}, "the base .*junk cannot be used: not an EROFS image"),
        ({"bases": (Path("missing"),)}, "cannot open the image"),
    ],
)
def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(old_tree(), Path("base"), compression="none")
    Path("i").write_bytes(Path("base").read_bytes())
    Path("junk").write_bytes(bytes(10_000))
    with pytest.raises(ErofsEdgeError, match=message):
        write(new_tree(), Path("i"), compression="none", **how)
    assert Path("i").read_bytes() == Path("base").read_bytes()


@pytest.mark.root
def test_devices_beyond_32_bits(needs_root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base of more than 2**32 blocks, nearly all of it a hole: its files need 48-bit addresses, in every form."""
    tree, more = FileTree(), FileTree()
    for i in range(4):
        for made in (tree, more):
            made.add(f"flat{i}", file(noise(512 * i + 100, i)))
            made.add(f"text{i}", file(text(9_000 * i + 5_000, i)))
    more.add("new", file(noise(9_000, 99)))
    base, image = tmp_path / "base", tmp_path / "i"
    with far_away(monkeypatch):
        write(tree, base, block_size=512, compression="lz4", pcluster=4096, uuid=bytes(16 * [7]))
    for how in ({}, {"chunk_size": 1024}):
        info = write(more, image, block_size=512, compression="lz4", bases=(base,), **how)
        assert info.lent == 7
        assert info.minimum_kernel == (6, 15)
        assert own_differences(image, info.devices, more) == []
        assert mounted_differences(image, info.devices, more) == []


contents = st.lists(
    st.one_of(
        st.builds(noise, st.integers(1, 20_000), st.integers(0, 3)),
        st.builds(text, st.integers(1, 40_000), st.integers(0, 3)),
        st.builds(lambda n: bytes(n * 512), st.integers(1, 9)),
        st.builds(lambda n, s: noise(n * 512, s) + bytes(1024) + b"end", st.integers(1, 9), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.root
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    old=contents,
    new=contents,
    ways=st.tuples(*[st.sampled_from([0, 1, 2, 3])] * 2),
    kept=st.integers(0, 6),
)
def test_any_two_trees_through_the_kernel(
    needs_root: None, old: list[bytes], new: list[bytes], ways: tuple[int, int], kept: int
) -> None:
    how: list[dict[str, Any]] = [
        {"compression": "none"},
        {"compression": "lz4", "pcluster": 2048, "ztailpacking": True},
        {"compression": "none", "chunk_size": 512},
        {"compression": "zstd", "pcluster": 4096, "dedupe": True, "wide": True},
    ]
    trees = FileTree(), FileTree()
    for tree, files in zip(trees, (old, [*old[:kept], *new]), strict=True):
        for i, data in enumerate(files):
            tree.add(f"{i}", file(BytesContent(data), xattrs={b"user.k": b"v" * (40 * i)} if i % 2 else {}))
    with tempfile.TemporaryDirectory() as folder:
        base, image = Path(folder) / "base", Path(folder) / "i"
        write(trees[0], base, block_size=512, **how[ways[0]])
        info = write(trees[1], image, block_size=512, bases=(base,), **how[ways[1]])
        assert own_differences(image, info.devices, trees[1]) == []
        assert mounted_differences(image, info.devices, trees[1]) == []


def test_hostile_bases_end_in_errors_of_ours(tmp_path: Path) -> None:
    """Every field of a base's inodes and tables set to nonsense: an ErofsEdgeError, or an image that reads
    correctly."""
    import random

    from mutate import fields, seal, value

    tree = FileTree()
    for i in range(5):
        tree.add(f"{i}", file(mixed(9_000 * i + 5_000, i)))
    tree.add("zeros", file(Repeated(50_000)))
    base = tmp_path / "base"
    rng = random.Random(3)
    outcomes: set[str] = set()
    for way in (
        {"compression": "lz4"},
        {"compression": "none", "chunk_size": 4096},
        {"compression": "lz4", "wide": True},
    ):
        write(tree, base, **way)
        good = base.read_bytes()
        with Image(base) as opened:
            places = fields(opened)
        for _ in range(60):
            data = bytearray(good)
            field = rng.choice(places)
            old = int.from_bytes(data[field.offset : field.offset + field.size], "little")
            new = value(rng, old, field.size, [36]) & (1 << 8 * field.size) - 1
            data[field.offset : field.offset + field.size] = new.to_bytes(field.size, "little")
            base.write_bytes(seal(data))
            try:
                info = write(tree, tmp_path / "i", compression="none", bases=(base,))
            except ErofsEdgeError as error:
                outcomes.add("error")
                assert error.where
            else:
                outcomes.add("built")
                with Image(tmp_path / "i", devices=info.devices) as opened:
                    assert {n: i.read() for n, i in opened.tree().walk()} == {n: i.read() for n, i in tree.walk()}
    assert outcomes == {"error", "built"}


def test_addresses_until_they_are_settled() -> None:
    """An unused device gets no number, and later ones move up."""
    devices = [Device(Path(name), name.encode(), 100) for name in "abc"]
    loans = Loans(devices, WriteOptions())
    node = Node(file(bytes(8192)), b"/f", 2, None, size=8192)
    assert loans.flat(node, 3 << 48 | 7, b"")
    table = loans.settle(50)
    assert len(table) == 128 and table.startswith(b"c\0")
    assert (devices[2].number, devices[2].first, [d.number for d in devices[:2]]) == (1, 50, [0, 0])
    assert node.index == bytes.fromhex("0000010007000000")


def test_bases_are_closed_whatever_happens(tmp_path: Path) -> None:
    write(old_tree(), tmp_path / "base", compression="none")
    with pytest.raises(ZeroDivisionError), open_bases([tmp_path / "base"], [], BLOCK, 1) as (bases, _):
        image = bases.bases[0].image
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="closed"):
        image.backing.beyond(0, 1)
