# SPDX-License-Identifier: Apache-2.0
"""What a kernel's configuration leaves out of EROFS, whatever its version.

A kernel refuses an image that lists a codec it was built without, or whose blocks are larger than its pages. Attributes
that it was built without are invisible, so programs lose their capabilities and files their labels. Sources: the
kernel's ``fs/erofs/Kconfig``, ``fs/erofs/super.c`` (blkszbits against PAGE_SHIFT), ``arch/Kconfig`` (PAGE_SHIFT, since
6.9) and ``arch/arm64/Kconfig``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from erofs_edge.erofs.gate import FEATURES
from erofs_edge.errors import UsageError

_ZIP = "CONFIG_EROFS_FS_ZIP"
SYMBOLS: dict[str, tuple[str, ...]] = {
    "erofs": ("CONFIG_EROFS_FS",),
    "lz4": (_ZIP,),
    "lzma": (_ZIP, "CONFIG_EROFS_FS_ZIP_LZMA"),
    "deflate": (_ZIP, "CONFIG_EROFS_FS_ZIP_DEFLATE"),
    "zstd": (_ZIP, "CONFIG_EROFS_FS_ZIP_ZSTD"),
}
"""feature in gate.FEATURES → symbols that must be y or m; all other features are always built in"""
_ATTRIBUTES = {
    b"system.posix_acl_": ("POSIX ACLs", "CONFIG_EROFS_FS_POSIX_ACL"),
    b"security.": ("labels and capabilities", "CONFIG_EROFS_FS_SECURITY"),
    b"": ("extended attributes", "CONFIG_EROFS_FS_XATTR"),
}
_PAGES = {"CONFIG_ARM64_16K_PAGES": 1 << 14, "CONFIG_ARM64_64K_PAGES": 1 << 16}
_LINE = re.compile(r"^(CONFIG_\w+)=(.*)$", re.MULTILINE | re.ASCII)


def parse_config(text: str) -> dict[str, str]:
    """Parse a kernel's .config, as distributions install it as /boot/config-VERSION, into symbol → value."""
    return dict(_LINE.findall(text))


def page_size(config: Mapping[str, str]) -> int:
    """Return the page size in bytes of such a kernel."""
    shift = config.get("CONFIG_PAGE_SHIFT", "")
    if shift.isdecimal():
        return 1 << int(shift)
    return next((size for symbol, size in _PAGES.items() if config.get(symbol) == "y"), 4096)


def check_config(
    features: Iterable[str], attributes: Iterable[bytes], config: Mapping[str, str], where: str, block_size: int = 4096
) -> None:
    """Raises UsageError, naming each option and symbol, if a kernel with this configuration lacks what an image needs.

    features    names (keys of gate.FEATURES)
    attributes  names of the extended attributes of its files
    where       what the configuration belongs to, for messages
    block_size  of the image, in bytes
    """
    page = page_size(config)
    if block_size > page:
        raise UsageError(
            f"the kernel of {where} has pages of {page} bytes and cannot mount blocks of {block_size}",
            hint=f"blocks of at most {page} bytes: -b {page}, erofs.block_size",
        )
    needed = [(FEATURES[name].option, symbol) for name in features for symbol in SYMBOLS.get(name, ())]
    names = set(attributes)
    needed += [need for prefix, need in _ATTRIBUTES.items() if any(name.startswith(prefix) for name in names)]
    lacking = [f"{option} needs {symbol}" for option, symbol in needed if config.get(symbol) not in ("y", "m")]
    if lacking:
        raise UsageError(
            f"the kernel of {where} is built without what this image needs: {', '.join(dict.fromkeys(lacking))}",
            hint="leave these options out, or use a kernel that has them",
        )
