# SPDX-License-Identifier: Apache-2.0
"""The files of a firmware partition: vendor firmware, U-Boot, its device tree and its script."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

from erofs_edge.errors import ManifestError, SourceError
from erofs_edge.manifest.model import Board, PackageFile
from erofs_edge.tree import FileTree

SCRIPT_NAME = "boot.scr"
UIMAGE_MAGIC = 0x27051956
_UIMAGE = struct.Struct(">7I4B32s")
OS_LINUX, ARCH_ARM64, TYPE_SCRIPT, COMPRESSION_NONE = 5, 22, 6, 0


def script_image(script: str, *, name: str, epoch: int) -> bytes:
    """Pack a U-Boot script as the legacy image that ``source`` and the standard boot flow run (include/image.h).

    A script image is a list of sizes ended by 0, then the texts; the header has a CRC-32 of itself (with that field
    zero) and one of the data. At most 32 bytes of the name are kept.
    """
    text = script.encode("ascii")
    data = struct.pack(">2I", len(text), 0) + text
    kind = (OS_LINUX, ARCH_ARM64, TYPE_SCRIPT, COMPRESSION_NONE)
    fields = (epoch, len(data), 0, 0, zlib.crc32(data), *kind, name.encode("ascii")[:32])
    blank = _UIMAGE.pack(UIMAGE_MAGIC, 0, *fields)
    return _UIMAGE.pack(UIMAGE_MAGIC, zlib.crc32(blank), *fields) + data


def package_file(packages: Mapping[str, FileTree], wanted: PackageFile) -> bytes:
    """A file of a package. Raises SourceError if the package or the file is missing."""
    tree = packages.get(wanted.package)
    if tree is None:
        raise SourceError(
            f"package {wanted.package} is not among the board's firmware packages",
            hint="run 'erofs-edge lock BOARD' again",
        )
    inode = tree.get(wanted.path, follow=True)
    if inode is None or not inode.is_file:
        raise SourceError(f"package {wanted.package} has no file {wanted.path}", hint="look at it with dpkg-deb -c")
    return inode.read()


def firmware_files(
    board: Board, packages: Mapping[str, FileTree], *, u_boot: bytes, script: str | None, dtb: bytes | None, epoch: int
) -> dict[str, bytes]:
    """Name → bytes of the files for the board's firmware partition, sorted by name.

    u_boot  the boot loader
    script  the boot script, which becomes boot.scr; None if the loader contains it
    dtb     U-Boot's device tree with our key, stored under the name in `boot.fdt`; None if U-Boot has its own

    Raises ManifestError if two files would have the same name (FAT ignores case).
    """
    boot = board.boot
    loader = boot.u_boot.to or (boot.u_boot.path or "u-boot.bin").rpartition("/")[2]
    files = [(loader, u_boot), *((_name(file), package_file(packages, file)) for file in boot.firmware)]
    files += [(text.to, text.text.encode()) for text in boot.firmware_texts]
    if dtb is not None:
        files.append((boot.fdt.rpartition("/")[2], dtb))
    if script is not None:
        files.append((SCRIPT_NAME, script_image(script, name=board.board, epoch=epoch)))
    seen: set[str] = set()
    for name, _ in files:
        if name.casefold() in seen:
            raise ManifestError(
                f"board '{board.board}' puts two files named {name} on the firmware partition",
                hint="give one of them another name with `to:`",
            )
        seen.add(name.casefold())
    return dict(sorted(files))


def _name(file: PackageFile) -> str:
    return file.to or file.path.rpartition("/")[2]
