# SPDX-License-Identifier: Apache-2.0
"""A manifest whose file system the board's kernel cannot mount stops the build, with its position."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from erofs_edge.build.inputs import Inputs, Locked, gather
from erofs_edge.build.stages import erofs_options
from erofs_edge.errors import ManifestError
from erofs_edge.manifest.load import load_system


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
