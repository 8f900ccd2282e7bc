# SPDX-License-Identifier: Apache-2.0
"""What the configuration of a kernel leaves out of EROFS, whatever its version.

A kernel refuses an image that lists a codec it was built without; attributes that it was built without are not there,
so that programs lose their capabilities and files their labels. Source: the kernel's ``fs/erofs/Kconfig``.
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
"""feature of gate.FEATURES → the symbols that must be y or m; other features are in every EROFS"""
_ATTRIBUTES = {
    b"system.posix_acl_": ("POSIX ACLs", "CONFIG_EROFS_FS_POSIX_ACL"),
    b"security.": ("labels and capabilities", "CONFIG_EROFS_FS_SECURITY"),
    b"": ("extended attributes", "CONFIG_EROFS_FS_XATTR"),
}
_LINE = re.compile(r"^(CONFIG_\w+)=(.*)$", re.MULTILINE | re.ASCII)


def parse_config(text: str) -> dict[str, str]:
    """Symbol → value of a kernel's .config, as distributions install it as /boot/config-VERSION."""
    return dict(_LINE.findall(text))


def check_config(features: Iterable[str], attributes: Iterable[bytes], config: Mapping[str, str], where: str) -> None:
    """Raises UsageError, naming each option and symbol, if a kernel of this configuration lacks what an image needs.

    features    names in gate.FEATURES
    attributes  names of the extended attributes of its files
    where       what the configuration is of
    """
    needed = [(FEATURES[name].option, symbol) for name in features for symbol in SYMBOLS.get(name, ())]
    names = set(attributes)
    needed += [need for prefix, need in _ATTRIBUTES.items() if any(name.startswith(prefix) for name in names)]
    lacking = [f"{option} needs {symbol}" for option, symbol in needed if config.get(symbol) not in ("y", "m")]
    if lacking:
        raise UsageError(
            f"the kernel of {where} is built without what this image needs: {', '.join(dict.fromkeys(lacking))}",
            hint="leave these options out, or take a kernel that has them",
        )
