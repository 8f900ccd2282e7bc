# SPDX-License-Identifier: Apache-2.0
"""A folder from which systemd-sysupdate takes versions: files, SHA256SUMS, and the transfer definitions.

Two forms. `image`: one discoverable disk image, which becomes a file on the device (systemd-nspawn, portable services,
extensions); its root hash is signed inside. `partitions`: file system, hash tree and signed root hash, each written to
an empty partition of its type, on disks whose partitions are named after versions. Our boards name partitions after
slots, and their boot chain looks for those names: they are updated by `flash` or RAUC, not by this.

Source: sysupdate.d(5) of systemd 257; @v stands for the version, @u for a partition's UUID.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from uuid import UUID

from erofs_edge.build.discoverable import write_discoverable
from erofs_edge.build.record import RELEASE, read_release
from erofs_edge.bundle.content import default_version
from erofs_edge.disk import gpt
from erofs_edge.disk.sparse import sparse_sha256
from erofs_edge.errors import FormatError, SourceError, UsageError, VerificationError
from erofs_edge.writing import beside, new_file, write_exactly

SUMS = "SHA256SUMS"
DEFINITIONS = "sysupdate.d"
Form = Literal["image", "partitions"]
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.~^+-]{0,63}")  # without '_', which ends the version in our file names
_KINDS = ("root", "root-verity", "root-verity-sig")
_COPY = 4 << 20  # bytes


def write_transfers(
    out: Path, folder: Path, *, url: str, form: Form = "image", version: str | None = None, keep: int = 3
) -> list[Path]:
    """Add the build in `out` to a folder, which may contain earlier versions; return the files written.

    url      where the folder's files will be
    version  ordered as systemd does (0.20 after 0.9); by default `default_version`
    keep     versions that a device keeps

    Raises UsageError for a version or address that a definition cannot contain, and for a version that the folder has
    of another system; SourceError for a folder whose sums cannot be read, ErofsEdgeError if `out` contains no build or
    its record is damaged.
    """
    name, version = _names(out, url, version)
    folder.mkdir(parents=True, exist_ok=True)
    sums = _sums(folder / SUMS)
    _refuse_other(out, folder, name, version)
    made = _write_files(out, folder, name, version, form)
    definitions = folder / DEFINITIONS
    definitions.mkdir(exist_ok=True)
    _write_definitions(definitions, name, url, form, keep)
    sums = {known: value for known, value in sums.items() if (folder / known).is_file()}
    sums |= {path.name: sparse_sha256(path) for path in made}
    with beside(folder / SUMS, "the sums") as path:
        path.write_text("".join(f"{value}  {known}\n" for known, value in sorted(sums.items())))
    return made


def write_flat(
    out: Path, *, url: str, form: Form = "image", version: str | None = None, keep: int = 3
) -> tuple[list[Path], list[Path]]:
    """Write files and definitions into the folder of the build itself, which has its own sums: a release.

    Raises as `write_transfers`; `url` is where devices find the newest release.
    """
    name, version = _names(out, url, version)
    made = _write_files(out, out, name, version, form)
    return made, _write_definitions(out, name, url, form, keep)


def _refuse_other(out: Path, folder: Path, name: str, version: str) -> None:
    """Raises UsageError if the folder has this version of another system: devices that have that would never replace
    it. Raises VerificationError if the record of the build is damaged."""
    try:
        own = str(UUID(read_release(out)["system"]["root_hash"][:32]))
    except ValueError as error:
        raise VerificationError(f"the root hash in {RELEASE} is damaged", where=str(out), hint="build again") from error
    image = folder / f"{name}_{version}.raw"
    any_guid, end = "?" * len(own), ".root.raw"  # not '*': names, unlike versions and GUIDs, may contain '_'
    there = {
        path: path.name.removesuffix(end)[-len(own) :] for path in folder.glob(f"{name}_{version}_{any_guid}{end}")
    }
    if image.exists():
        there[image] = _root_guid(image) or own
    for path, guid in there.items():
        if guid != own:
            raise UsageError(
                f"version {version} of another system is there already: devices that have it would not take this one",
                where=str(path),
                hint="--version NEWER, or lock the packages again",
            )


def _root_guid(image: Path) -> str | None:
    """The GUID of a discoverable image's first partition, which follows from the root hash; None for a damaged
    image.
    """
    try:
        with image.open("rb") as source:
            table = gpt.decode(lambda at, length: os.pread(source.fileno(), length, at), image.stat().st_size, 512)
        return str(table.partitions[0].guid)
    except (FormatError, IndexError, OSError):
        return None


def _write_files(out: Path, folder: Path, name: str, version: str, form: Form) -> list[Path]:
    """Write what devices install of the build in `out` into a folder."""
    image = folder / f"{name}_{version}.raw"
    write_discoverable(out, image)
    if form == "image":
        return [image]
    made = _partitions(image, lambda kind, guid: folder / f"{name}_{version}_{guid}.{kind}.raw")
    image.unlink()
    return made


def _names(out: Path, url: str, version: str | None) -> tuple[str, str]:
    """Name and version of the build in `out`. Raises UsageError for text that a definition cannot contain."""
    check_address(url)
    record = read_release(out)
    name, version = str(record["system"]["name"]), version or default_version(record)
    if not _VERSION.fullmatch(version):
        raise UsageError(
            f"not a valid version for systemd-sysupdate: {version!r}", hint="letters, digits and . ~ ^ + -"
        )
    return name, version


def check_address(url: str) -> None:
    """Raises UsageError for an address that a device cannot use."""
    if not _is_address(url):
        raise UsageError(f"not an address that devices can use: {url!r}", hint="https://HOST/FOLDER")


def _is_address(url: str) -> bool:
    """Whether a device can use this address: a possible host, or a folder of its own."""
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.port != 0 else None
    except ValueError:  # an unmatched bracket, a port that is not a number
        return False
    return re.fullmatch(r"(https?|file)://[!-~]+", url) is not None and bool(host or parts.scheme == "file")


def _sums(path: Path) -> dict[str, str]:
    """The existing sums. Raises SourceError for a malformed line."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        match = re.fullmatch(r"([0-9a-f]{64})  ([^/]+)", line)
        if match is None:
            raise SourceError(f"not a line of sha256sum: {line[:80]!r}", where=str(path))
        found[match[2]] = match[1]
    return found


def _partitions(image: Path, place: Callable[[str, str], Path]) -> list[Path]:
    """The partitions of a discoverable image as files, the one that makes the system bootable last."""
    made = []
    with image.open("rb") as source:
        table = gpt.decode(lambda at, length: os.pread(source.fileno(), length, at), image.stat().st_size, 512)
        for kind, partition in reversed(list(zip(_KINDS, table.partitions, strict=True))):
            target = place(kind, str(partition.guid))
            start, end = partition.first_lba * 512, (partition.last_lba + 1) * 512
            with new_file(target, "a partition") as file:
                for at in range(start, end, _COPY):
                    write_exactly(file.fd, os.pread(source.fileno(), min(_COPY, end - at), at), at - start)
            made.append(target)
    return made


def _write_definitions(folder: Path, name: str, url: str, form: Form, keep: int) -> list[Path]:
    """Write the definitions to a folder, each replaced atomically: devices may be reading them."""
    texts = _definitions(name, url, form, keep)
    for file, text in texts.items():
        with beside(folder / file, "a definition") as path:
            path.write_text(text)
    return [folder / file for file in texts]


def _definitions(name: str, url: str, form: Form, keep: int) -> dict[str, str]:
    """File name → definition. Files are checked by SHA256SUMS. Its OpenPGP signature, which we cannot make, is not
    required: the signed root hash inside covers the content."""
    head = "# SPDX-License-Identifier: Apache-2.0\n[Transfer]\nVerify=no\n\n[Source]\nType=url-file\n"
    if form == "image":
        target = f"[Target]\nType=regular-file\nPath=/var/lib/machines\nMatchPattern={name}_@v.raw\n"
        target += f"CurrentSymlink=/var/lib/machines/{name}.raw\nMode=0444\nInstancesMax={keep}\n"
        return {f"50-{name}.transfer": f"{head}Path={url}\nMatchPattern={name}_@v.raw\n\n{target}"}
    found = {}
    for number, kind in zip((50, 60, 70), reversed(_KINDS), strict=True):
        label = f"{name}_@v{kind.removeprefix('root').replace('-', '_')}"
        source = f"Path={url}\nMatchPattern={name}_@v_@u.{kind}.raw\n\n"
        target = f"[Target]\nType=partition\nPath=auto\nMatchPattern={label}\nMatchPartitionType={kind}\nReadOnly=1\n"
        found[f"{number}-{name}-{kind}.transfer"] = f"{head}{source}{target}InstancesMax=2\n"
    return found
