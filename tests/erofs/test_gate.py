# SPDX-License-Identifier: Apache-2.0
"""The kernel gate: which options need which kernel, reported once and before any work is done."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from writer_check import write
from writer_trees import file, text

from erofs_edge.erofs import gate, ondisk
from erofs_edge.erofs.dump import superblock_fields
from erofs_edge.erofs.gate import Kernel, pages_text, parse_kernel
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.read import Image
from erofs_edge.errors import UsageError
from erofs_edge.tree import FileTree


@pytest.mark.parametrize(
    ("spelling", "kernel"),
    [
        ("5.15", Kernel((5, 15))),
        ("6.12.118-1", Kernel((6, 12))),
        ("1:6.12.47-1+rpt1", Kernel((6, 12))),
        ("6.12.57+deb13-arm64", Kernel((6, 12))),
        ("android13-5.15", Kernel((5, 15), True)),
        ("5.10.218-android12-9", Kernel((5, 10), True)),
    ],
)
def test_versions_as_packages_spell_them(spelling: str, kernel: Kernel) -> None:
    assert parse_kernel(spelling) == kernel


@pytest.mark.parametrize("wrong", ["", "6", "six", "6.x", "v6.1 ", "6.1;"])
def test_no_version(wrong: str) -> None:
    with pytest.raises(UsageError, match="not a Linux version"):
        parse_kernel(wrong)


def test_every_known_incompatible_bit_has_its_version() -> None:
    """Against the masks that kernels accept, from their headers (5.4, 5.15, 6.1, 6.12, 6.18)."""
    masks = {(5, 4): 0x001, (5, 10): 0x001, (5, 15): 0x007, (6, 1): 0x03F, (6, 12): 0x07F, (6, 18): 0x1FF}
    for version, mask in masks.items():
        for bit in (1 << n for n in range(9)):
            features = gate.superblock_features(ondisk.Superblock(feature_incompat=bit, u1=1))
            assert (gate.minimum_kernel(features) <= version) == bool(mask & bit), (version, bit)


def test_android_carries_some_features_earlier_and_some_codecs_never() -> None:
    gate.check_kernel(["big_pcluster", "chunked_file", "lz4"], parse_kernel("android12-5.10"))
    with pytest.raises(UsageError, match=r"Android 6\.12 .*-z zstd is in none of them"):
        gate.check_kernel(["zstd"], parse_kernel("android16-6.12"))


def test_one_error_names_every_option_with_its_version() -> None:
    with pytest.raises(UsageError) as caught:
        WriteOptions(compression="lz4", block_size=1024, pcluster=8192, kernel=parse_kernel("5.10"))
    assert "Linux 5.10" in caught.value.message
    assert "-b below 4096 needs 6.7" in caught.value.message
    assert "-C above the block size needs 5.13" in caught.value.message
    WriteOptions(compression="lz4", pcluster=8192, kernel=parse_kernel("5.13"))
    WriteOptions(compression="lz4", kernel=parse_kernel("5.4"))


def test_optional_features_stop_nothing() -> None:
    assert gate.minimum_kernel(["erofs", "xattr_filter"]) == (5, 4)
    gate.check_kernel(["erofs", "xattr_filter"], parse_kernel("5.4"))


def test_codecs_are_those_of_the_superblock() -> None:
    raw = ondisk.Superblock(feature_incompat=ondisk.INCOMPAT_LZ4_0PADDING | ondisk.INCOMPAT_COMPR_CFGS, u1=0b1000)
    assert gate.superblock_features(raw) == ["erofs", "compr_cfgs", "zstd"]
    assert [n.feature for n in gate.required_kernel(gate.superblock_features(raw))] == ["zstd", "compr_cfgs", "erofs"]


def test_what_was_written_tells_what_it_needs(tmp_path: Path) -> None:
    tree = FileTree()
    tree.add("f", file(text(20_000, 1), xattrs={b"user.k": b"v"}))
    info = write(tree, tmp_path / "i", compression="lz4", pcluster=16384)
    assert info.minimum_kernel == (5, 13)
    assert info.features == ["erofs", "lz4", "big_pcluster", "xattr_filter"]
    with Image(tmp_path / "i") as image:
        fields = superblock_fields(image)
    assert fields["minimum_kernel"] == "5.13"
    assert fields["needs"] == ["big_pcluster (5.13)", "erofs (5.4)", "lz4 (5.4)", "xattr_filter (6.6, optional)"]


def test_blocks_larger_than_usual_pages_are_told(tmp_path: Path) -> None:
    tree = FileTree()
    tree.add("f", file(text(20_000, 1)))
    for size, needs in ((4096, ["erofs (5.4)"]), (16384, ["erofs (5.4)", "pages of 16384 bytes"])):
        write(tree, tmp_path / "i", compression="none", block_size=size)
        with Image(tmp_path / "i") as image:
            assert superblock_fields(image)["needs"] == needs
    assert pages_text(4096) == ""
    assert pages_text(8192) == " with pages of 8192 bytes or more"


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("arguments", "least"),
    [
        ([], (5, 4)),
        (["-zlz4"], (5, 4)),
        (["-zlz4", "-C65536"], (5, 13)),
        (["--chunksize=4096"], (5, 15)),
        (["-zlz4", "-Eztailpacking"], (5, 17)),
        (["-zlz4", "-Efragments"], (6, 1)),
        (["-zzstd"], (6, 10)),
        (["-zlzma"], (5, 16)),
        (["-zdeflate"], (6, 6)),
        (["--xattr-prefix=user.long."], (6, 4)),
    ],
)
def test_images_of_mkfs(
    oracle: Callable[[str], str], tmp_path: Path, arguments: list[str], least: tuple[int, int]
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/f").write_bytes(text(30_000, 1))
    argv = [oracle("mkfs.erofs-1.9"), *arguments, "--quiet", str(tmp_path / "i"), str(tmp_path / "src")]
    subprocess.run(argv, check=True, capture_output=True)
    with Image(tmp_path / "i") as image:
        assert gate.minimum_kernel(gate.superblock_features(image.superblock.raw)) == least


def test_the_table_in_the_documentation_is_this_one(repository: Path) -> None:
    rows = [line.strip("| ").split(" | ") for line in (repository / "docs/kernels.md").read_text().splitlines()]
    table = [row for row in rows if len(row) == 4][1:]
    suffix = " (older ones mount it without)"
    assert table == [
        [
            name,
            feature.option,
            gate.version_text(feature.linux) + ("" if feature.stops else suffix),
            gate.version_text(feature.android) if feature.android else "—",
        ]
        for name, feature in gate.FEATURES.items()
    ]
