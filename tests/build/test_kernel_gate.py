# SPDX-License-Identifier: Apache-2.0
"""A manifest whose file system the board's kernel cannot mount stops the build; the error has its position."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from erofs_edge.build.inputs import Inputs, Locked, gather
from erofs_edge.build.stages import check_kernel_config, erofs_options
from erofs_edge.errors import ManifestError
from erofs_edge.manifest.load import load_system
from erofs_edge.tree import BytesContent, FileTree, Inode


def with_manifest(repository: Path, folder: Path, erofs: str) -> Inputs:
    made = gather(repository / "boards/qemu-aarch64.yaml")
    (folder / "m.yaml").write_text(f"system: m\nerofs:\n{erofs}")
    return Inputs(made.board, made.lock, made.partition, Locked(load_system(folder / "m.yaml"), made.system.lock))


def test_the_kernel_of_the_lock_decides(repository: Path, tmp_path: Path) -> None:
    inputs = with_manifest(repository, tmp_path, "  compression: lz4\n  block_size: 1K\n")
    options = erofs_options(inputs)
    assert options.kernel is not None
    assert options.kernel.version >= (6, 12)
    (package,) = inputs.lock.packages["kernel"]
    old = {**inputs.lock.packages, "kernel": [replace(package, version="6.1.0-9")]}
    with pytest.raises(ManifestError, match=r"-b below 4096 needs 6\.7") as caught:
        erofs_options(Inputs(inputs.board, replace(inputs.lock, packages=old), inputs.partition, inputs.system))
    assert caught.value.where is not None
    assert caught.value.where.endswith("m.yaml:2:1")


def test_the_configuration_in_the_kernel_package_decides(repository: Path, tmp_path: Path) -> None:
    inputs = with_manifest(repository, tmp_path, "  compression: zstd\n")
    options = erofs_options(inputs)
    system, kernel = FileTree(), FileTree()
    system.add("bin/ping", Inode(0o100755, xattrs={b"security.capability": b"x"}))
    check_kernel_config(inputs, options, system, kernel)
    known = "CONFIG_EROFS_FS=m\nCONFIG_EROFS_FS_XATTR=y\nCONFIG_EROFS_FS_SECURITY=y\nCONFIG_EROFS_FS_ZIP=y\n"
    kernel.add("boot/config-6.12", Inode(0o100644, content=BytesContent(known.encode())))
    with pytest.raises(
        ManifestError, match=r"kernel of qemu-aarch64 .*: -z zstd needs CONFIG_EROFS_FS_ZIP_ZSTD$"
    ) as caught:
        check_kernel_config(inputs, options, system, kernel)
    assert caught.value.where is not None
    assert caught.value.where.endswith("m.yaml:2:1")
    known = known.replace("CONFIG_EROFS_FS_SECURITY", "CONFIG_EROFS_FS_ZIP_ZSTD")
    kernel.add("boot/config-6.12", Inode(0o100644, content=BytesContent(known.encode())))
    with pytest.raises(ManifestError, match=r"labels and capabilities needs CONFIG_EROFS_FS_SECURITY$"):
        check_kernel_config(inputs, options, system, kernel)


def test_blocks_larger_than_the_pages_of_the_kernel(repository: Path, tmp_path: Path) -> None:
    inputs = with_manifest(repository, tmp_path, "  compression: none\n  block_size: 16K\n")
    options = erofs_options(inputs)
    system, kernel = FileTree(), FileTree()
    for pages in ("4K", "16K"):
        known = f"CONFIG_EROFS_FS=m\nCONFIG_ARM64_{pages}_PAGES=y\n"
        kernel.add("boot/config-6.12", Inode(0o100644, content=BytesContent(known.encode())))
        if pages == "16K":
            check_kernel_config(inputs, options, system, kernel)
            continue
        with pytest.raises(ManifestError, match="pages of 4096 bytes and cannot mount blocks of 16384") as caught:
            check_kernel_config(inputs, options, system, kernel)
        assert caught.value.where is not None and caught.value.where.endswith("m.yaml:2:1")


def test_chunks(repository: Path, tmp_path: Path) -> None:
    options = erofs_options(with_manifest(repository, tmp_path, "  compression: none\n  chunksize: 16K\n"))
    assert (options.chunk_size, options.pcluster) == (16384, None)
    with pytest.raises(ManifestError, match="chunk size 20480 is not a power of two"):
        erofs_options(with_manifest(repository, tmp_path, "  chunksize: 20K\n"))


def test_packing(repository: Path, tmp_path: Path) -> None:
    text = "  fragments: all\n  packed_pcluster: 256K\n  dedupe: true\n  ztailpacking: true\n"
    options = erofs_options(with_manifest(repository, tmp_path, text))
    assert (options.fragments, options.packed_pcluster, options.dedupe, options.ztailpacking) == (
        "all",
        262144,
        True,
        True,
    )


def test_values_that_make_no_sense_together(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="multiple"):
        erofs_options(with_manifest(repository, tmp_path, "  pcluster: 12345\n"))
