# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge fs build`: an EROFS image from a directory, with mkfs.erofs's letters for options."""

from __future__ import annotations

import os
import re
import uuid as uuids
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erofs_edge.cli.output import Progress, emit_json, json_option, note, size_text, table
from erofs_edge.errors import UsageError

if TYPE_CHECKING:
    from erofs_edge.erofs.write import ErofsInfo

EXTENDED_OPTIONS: dict[str, dict[str, Any]] = {
    "dedupe": {"dedupe": True},
    "noinline_data": {"inline_tails": False},
    "nosbcrc": {"checksum": False},
    "force-inode-compact": {"inode_form": "compact"},
    "force-inode-extended": {"inode_form": "extended"},
}
"""-E name → fields of WriteOptions"""
NOT_WRITTEN = ("48bit", "all-fragments", "fragments", "legacy-compress", "xattr-name-filter", "ztailpacking")
"""names that mkfs.erofs knows and we do not do"""
SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20}


@click.command()
@click.argument("source", metavar="SRC", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "output", metavar="IMG", required=True, type=click.Path(path_type=Path), help="The image to write.")
@click.option("-z", "compression", metavar="NAME[,LEVEL]", default="none", show_default=True, help="lz4, lz4hc[,1-12].")
@click.option(
    "-C", "pcluster", metavar="SIZE", help="Bytes of a compressed cluster, as 65536 or 64K (default: a block)."
)
@click.option("-b", "block_size", metavar="SIZE", default="4096", show_default=True, help="Bytes of a block.")
@click.option("-T", "epoch", type=click.IntRange(0), metavar="SECONDS", help="Set every time to this.")
@click.option("-U", "uuid", metavar="UUID", help="'clear' for zeros (default: from the image's content).")
@click.option("-L", "volume_name", metavar="NAME", default="", help="Volume name, at most 15 bytes.")
@click.option("-E", "extended", metavar="NAME,…", multiple=True, help=f"{', '.join(EXTENDED_OPTIONS)}.")
@click.option("--kernel", metavar="VERSION", help="Refuse what this Linux cannot mount: 5.15, android13-5.15.")
@click.option("--all-root", is_flag=True, help="Everything belongs to user and group 0.")
@click.option(
    "--jobs", type=click.IntRange(1), help="Threads (default: the CPUs and one more; the output is the same)."
)
@click.option("--no-cache", is_flag=True, help="Neither use nor keep compressed data of other builds.")
@click.option("--stats", is_flag=True, help="Also print what the image consists of.")
@json_option
def build(
    *,
    source: Path,
    output: Path,
    compression: str,
    pcluster: str | None,
    block_size: str,
    epoch: int | None,
    uuid: str | None,
    volume_name: str,
    extended: tuple[str, ...],
    kernel: str | None,
    all_root: bool,
    jobs: int | None,
    no_cache: bool,
    stats: bool,
    as_json: bool,
) -> None:
    """Write an EROFS image of the directory SRC.

    Owners, modes, ns times, device nodes, hard links and extended attributes are SRC's. Without -T,
    SOURCE_DATE_EPOCH in the environment is the latest time that a file may have. The same SRC and options give the
    same bytes.
    """
    from erofs_edge.erofs.cache import CompressionCache
    from erofs_edge.erofs.gate import parse_kernel
    from erofs_edge.erofs.write import WriteOptions, write_image
    from erofs_edge.sources.cache import cache_root
    from erofs_edge.sources.directory import scan

    name, level = _compression(compression)
    cache = None if no_cache or name == "none" else CompressionCache(cache_root() / "compressed")
    with Progress(f"writing {output.name}") as progress:
        options = WriteOptions(
            compression=name,
            level=level,
            pcluster=_size("-C", pcluster) if pcluster is not None else None,
            block_size=_size("-b", block_size),
            uuid=_uuid(uuid),
            volume_name=os.fsencode(volume_name),
            kernel=parse_kernel(kernel) if kernel is not None else None,
            all_root=all_root,
            jobs=jobs,
            cache=cache,
            progress=progress,
            **_times(epoch),
            **_extended(extended),
        )
        try:
            info = write_image(scan(source), output, options)
        finally:
            if cache is not None:
                cache.close()
    if cache is not None and cache.problem is not None:
        note(f"the compression cache could not be used: {cache.problem}")
    if as_json:
        emit_json(info)
    else:
        table(_rows(info, stats=stats))


def _compression(text: str) -> tuple[str, int | None]:
    name, comma, level = text.partition(",")
    if comma and not level.isdecimal():
        raise UsageError(f"-z {text}: the level {level!r} is not a number", hint="for example -z lz4hc,9")
    if name == "none" and comma:
        raise UsageError("-z none has no levels")
    return name, int(level) if comma else None


def _size(option: str, text: str) -> int:
    match = re.fullmatch(r"(\d+)([KM]?)", text.upper())
    if not match:
        raise UsageError(f"{option} {text}: not a size in bytes", hint="for example 65536 or 64K")
    return int(match[1]) * SUFFIXES[match[2]]


def _uuid(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return bytes(16) if text == "clear" else uuids.UUID(text).bytes
    except ValueError as error:
        raise UsageError(f"-U {text}: not a UUID") from error


def _times(epoch: int | None) -> dict[str, Any]:
    """-T sets every time; SOURCE_DATE_EPOCH only those that are later."""
    if epoch is not None:
        return {"epoch": epoch, "times": "fixed"}
    latest = os.environ.get("SOURCE_DATE_EPOCH")
    if not latest:
        return {}
    if not latest.isdecimal():
        raise UsageError(f"SOURCE_DATE_EPOCH={latest} is not a number of seconds")
    return {"epoch": int(latest), "times": "clamp"}


def _extended(groups: tuple[str, ...]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in (name for group in groups for name in group.split(",") if name):
        if name not in EXTENDED_OPTIONS:
            known = name.lstrip("^").partition("=")[0] in NOT_WRITTEN
            raise UsageError(
                f"-E {name} is not supported" if known else f"-E {name}: unknown option",
                hint=f"supported: {', '.join(EXTENDED_OPTIONS)}",
            )
        for field, value in EXTENDED_OPTIONS[name].items():
            if fields.setdefault(field, value) != value:
                raise UsageError(f"-E {name} contradicts another -E option")
    return fields


def _rows(info: ErofsInfo, *, stats: bool) -> list[tuple[str, str]]:
    share = f", {100 * info.size / info.uncompressed:.1f} % of the files' {size_text(info.uncompressed)}"
    rows = [
        ("image", str(info.path)),
        ("size", f"{info.size} bytes ({size_text(info.size)}{share if info.uncompressed else ''})"),
        ("blocks", f"{info.blocks} of {info.block_size} bytes"),
        ("inodes", f"{info.inodes}"),
        ("uuid", str(uuids.UUID(bytes=info.uuid))),
        ("mounts from", "Linux " + ".".join(map(str, info.minimum_kernel))),
    ]
    if not stats:
        return rows
    return [
        *rows,
        ("volume name", os.fsdecode(info.volume_name) or "none"),
        ("epoch", str(info.epoch)),
        ("kinds", ", ".join(f"{count} {kind}" for kind, count in info.kinds.items())),
        ("data", f"{info.data_blocks} blocks; {info.metadata_blocks} of metadata"),
        ("compressed files", f"{info.compressed}; {info.stored} stored as they are"),
        ("equal files", f"{info.reused}; {info.shared} of them share their blocks"),
        ("cache", f"{info.cache_hits} segments found, {info.cache_misses} compressed"),
    ]
