# SPDX-License-Identifier: Apache-2.0
"""Kernels that are new enough, but built without a part of EROFS."""

from __future__ import annotations

import pytest

from erofs_edge.erofs.gate import FEATURES
from erofs_edge.erofs.kernel_config import SYMBOLS, check_config, page_size, parse_config
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.errors import UsageError

DEBIAN = """#
# Automatically generated file; DO NOT EDIT.
CONFIG_EROFS_FS=m
# CONFIG_EROFS_FS_DEBUG is not set
CONFIG_EROFS_FS_XATTR=y
CONFIG_EROFS_FS_POSIX_ACL=y
CONFIG_EROFS_FS_SECURITY=y
CONFIG_EROFS_FS_ZIP=y
CONFIG_EROFS_FS_ZIP_LZMA=y
CONFIG_EROFS_FS_ZIP_LZMA_DEFAULT_MAX_STREAMS=16
CONFIG_EROFS_FS_ZIP_DEFLATE=y
CONFIG_EROFS_FS_ZIP_ZSTD=y
CONFIG_DEFAULT_HOSTNAME="(none)"
"""
ALL_ATTRIBUTES = [b"user.k", b"security.capability", b"system.posix_acl_access"]


def test_a_kernel_with_everything() -> None:
    config = parse_config(DEBIAN)
    assert config["CONFIG_DEFAULT_HOSTNAME"] == '"(none)"'
    assert "CONFIG_EROFS_FS_DEBUG" not in config
    check_config(FEATURES, ALL_ATTRIBUTES, config, "a board")


@pytest.mark.parametrize(
    ("symbol", "message"),
    [
        ("CONFIG_EROFS_FS", "EROFS needs CONFIG_EROFS_FS"),
        ("CONFIG_EROFS_FS_ZIP", "-z lz4 needs CONFIG_EROFS_FS_ZIP"),
        ("CONFIG_EROFS_FS_ZIP_LZMA", "-z lzma needs CONFIG_EROFS_FS_ZIP_LZMA"),
        ("CONFIG_EROFS_FS_ZIP_DEFLATE", "-z deflate needs CONFIG_EROFS_FS_ZIP_DEFLATE"),
        ("CONFIG_EROFS_FS_ZIP_ZSTD", "-z zstd needs CONFIG_EROFS_FS_ZIP_ZSTD"),
        ("CONFIG_EROFS_FS_XATTR", "extended attributes needs CONFIG_EROFS_FS_XATTR"),
        ("CONFIG_EROFS_FS_POSIX_ACL", "POSIX ACLs needs CONFIG_EROFS_FS_POSIX_ACL"),
        ("CONFIG_EROFS_FS_SECURITY", "labels and capabilities needs CONFIG_EROFS_FS_SECURITY"),
    ],
)
def test_what_is_left_out_is_named(symbol: str, message: str) -> None:
    lines = [line for line in DEBIAN.splitlines() if not line.startswith(f"{symbol}=")]
    config = parse_config("\n".join([*lines, f"# {symbol} is not set"]))
    with pytest.raises(UsageError) as caught:
        check_config(FEATURES, ALL_ATTRIBUTES, config, "a board")
    assert message in caught.value.message.split(": ", 1)[1].split(", ")
    if symbol not in SYMBOLS["erofs"]:
        check_config(["erofs"], [], config, "a board")


def test_only_what_the_image_uses_is_asked_for() -> None:
    config = parse_config("CONFIG_EROFS_FS=y\nCONFIG_EROFS_FS_ZIP=y\n")
    check_config(WriteOptions(compression="lz4hc", pcluster=65536).features, [], config, "a board")
    with pytest.raises(UsageError, match=r"of a board is built without .*: -z zstd needs CONFIG_EROFS_FS_ZIP_ZSTD$"):
        check_config(WriteOptions(compression="zstd").features, [], config, "a board")


@pytest.mark.parametrize(
    ("lines", "page"),
    [
        ("", 4096),
        ("CONFIG_ARM64_4K_PAGES=y\n# CONFIG_ARM64_16K_PAGES is not set\n", 4096),
        ("CONFIG_ARM64_16K_PAGES=y\n", 16384),
        ("CONFIG_ARM64_64K_PAGES=y\n", 65536),
        ("CONFIG_PAGE_SIZE_16KB=y\nCONFIG_PAGE_SHIFT=14\n", 16384),
    ],
    ids=["other", "4K", "16K", "64K", "shift"],
)
def test_blocks_are_no_larger_than_pages(lines: str, page: int) -> None:
    config = parse_config(DEBIAN + lines)
    assert page_size(config) == page
    for block_size in (512, 4096, page):
        check_config(["erofs"], [], config, "a board", block_size)
    message = f"the kernel of a board has pages of {page} bytes and cannot mount blocks of {2 * page}"
    with pytest.raises(UsageError, match=message):
        check_config(["erofs"], [], config, "a board", 2 * page)
