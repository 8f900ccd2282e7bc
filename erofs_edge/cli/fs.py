# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge fs`: list, read, extract and check EROFS images, and build them (fs_build.py)."""

from __future__ import annotations

import importlib
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.fs_image import IMG, Source, image_options
from erofs_edge.cli.options import FilePath
from erofs_edge.cli.output import Progress, emit_json, json_option, note, one_line, size_text, table
from erofs_edge.errors import ErofsEdgeError, ErofsFormatError, UsageError
from erofs_edge.names import fsdecode, fsencode

if TYPE_CHECKING:
    from pathlib import Path

    from erofs_edge.erofs.check import Report
    from erofs_edge.erofs.dump import Statistics
    from erofs_edge.erofs.inode import DiskInode
    from erofs_edge.erofs.read import Image

_LAZY = {  # name: module, command, help
    "build": ("erofs_edge.cli.fs_build", "build", "Write an EROFS image of a directory."),
    "map": ("erofs_edge.cli.fs_map", "map_", "Show where things are in an image, as a table or a picture."),
    "rafs": ("erofs_edge.cli.fs_rafs", "rafs", "Write a RAFS v6 image (for Nydus) of a directory."),
    "blobs": ("erofs_edge.cli.fs_rafs", "blobs", "List the blobs of a RAFS v6 image."),
}
_FLUSH_LINES = 1000
_VALUE_BYTES = 32
_BAR = 40


class _Commands(click.Group):
    """The commands of this module, and those that are loaded on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_LAZY, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _LAZY:
            return super().get_command(ctx, cmd_name)
        module, name, _ = _LAZY[cmd_name]
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)  # noqa: S101  each module in _LAZY defines a command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = [(name, text) for name, (_, _, text) in _LAZY.items()]
        lines += [(name, self.commands[name].get_short_help_str(90)) for name in sorted(self.commands)]
        with formatter.section("Commands"):
            formatter.write_dl(lines)


@click.group(cls=_Commands)
def fs() -> None:
    """Build, list, read, extract, check, dump and map EROFS images.

    \b
    Examples:
      erofs-edge fs build rootfs -o rootfs.erofs -z lz4hc
      erofs-edge fs ls -l rootfs.erofs /etc
      erofs-edge fs ls out/rpi4/disk.img --partition system_a
    """


@fs.command("ls")
@IMG
@click.argument("path", default="/")
@click.option("-R", "recursive", is_flag=True, help="List everything below, one path per line.")
@click.option("-l", "long", is_flag=True, help="Show mode, links, owner, size, time and target too.")
@image_options
@json_option
def list_(*, image: Source, path: str, recursive: bool, long: bool, as_json: bool) -> None:
    """List a directory or file of IMG.  [default: its root]"""

    with image.opened() as opened:
        found = _listed(opened, path, recursive)
        if as_json:
            from erofs_edge.erofs.dump import inode_summary

            emit_json([{"path": fsdecode(name), **inode_summary(opened, inode)} for name, inode in found])
        elif long:
            table([*_long(opened, name, inode)] for name, inode in found)
        else:
            _print_lines(fsdecode(name) for name, _ in found)


def _listed(image: Image, path: str, recursive: bool) -> Iterator[tuple[bytes, DiskInode]]:
    top = image.lookup(path, follow=path.endswith("/"))
    if not top.is_dir:
        yield fsencode(path), top
    elif recursive:
        prefix = fsencode("/" + path.strip("/"))
        for below, inode in image.walk(top):
            yield prefix.rstrip(b"/") + b"/" + below if below else prefix, inode
    else:
        for entry in image.listdir(top):
            yield entry.name, image.child(entry)


def _print_lines(lines: Iterator[str]) -> None:
    pending = []
    for line in lines:
        pending.append(one_line(line))
        if len(pending) == _FLUSH_LINES:
            click.echo("\n".join(pending))
            pending.clear()
    if pending:
        click.echo("\n".join(pending))


def _long(image: Image, name: bytes, inode: DiskInode) -> Iterator[object]:
    yield stat.filemode(inode.mode)
    yield inode.nlink
    yield f"{inode.uid}:{inode.gid}"
    is_device = stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode)
    yield ",".join(map(str, inode.rdev)) if is_device else str(inode.size)
    yield _time_text(inode.mtime_ns)
    shown = one_line(fsdecode(name))
    yield f"{shown} -> {one_line(fsdecode(image.readlink(inode)))}" if stat.S_ISLNK(inode.mode) else shown


def _time_text(mtime_ns: int) -> str:
    """Return a time in UTC: as ISO 8601 if the calendar covers it, else in seconds."""
    from datetime import UTC, datetime, timedelta

    seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
    try:
        return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
    except OverflowError:
        return f"{seconds}.{nanoseconds:09d}"


@fs.command()
@IMG
@click.argument("path")
@image_options
def cat(*, image: Source, path: str) -> None:
    """Write the file PATH of IMG to standard output."""
    from erofs_edge.erofs.read import PIECE

    with image.opened() as opened:
        inode = opened.lookup(path)
        if not stat.S_ISREG(inode.mode):
            raise ErofsEdgeError("not a regular file", where=path)
        position = 0
        for offset, data in opened.stream(inode):
            _print_zeros(offset - position, PIECE)
            click.echo(bytes(data), nl=False)
            position = offset + len(data)
        _print_zeros(inode.size - position, PIECE)


def _print_zeros(length: int, piece: int) -> None:
    for at in range(0, length, piece):
        click.echo(bytes(min(piece, length - at)), nl=False)


@fs.command("stat")
@IMG
@click.argument("path")
@image_options
@json_option
def stat_(*, image: Source, path: str, as_json: bool) -> None:
    """Show the inode at PATH in IMG, without following a symlink."""
    from erofs_edge.erofs.dump import inode_fields

    with image.opened() as opened:
        _print_fields(inode_fields(opened, opened.lookup(path, follow=False)), as_json)


def _print_fields(fields: dict[str, object], as_json: bool) -> None:
    if as_json:
        emit_json(fields)
        return
    rows: list[tuple[str, str]] = []
    for key, value in fields.items():
        label = key.replace("_", " ").capitalize() + ":"
        if key == "mtime_ns" and isinstance(value, int):
            rows.append(("Modified:", _time_text(value)))
        elif isinstance(value, dict):
            rows += [(label, f"{name}={_value_text(item)}") for name, item in value.items()]
        elif isinstance(value, list):
            rows.append((label, (":" if key == "rdev" else " ").join(map(str, value))))
        else:
            rows.append((label, str(value)))
    table(rows)


def _value_text(value: object) -> str:
    """Return text if it is printable, else hexadecimal."""
    if not isinstance(value, bytes):
        return str(value)
    text = value.decode("ascii", "replace")
    if text.isascii() and text.isprintable():
        return text
    more = f"… ({len(value)} bytes)" if len(value) > _VALUE_BYTES else ""
    return "0x" + value[:_VALUE_BYTES].hex() + more


@fs.command()
@IMG
@click.argument("destination", metavar="DEST", type=FilePath())
@click.option("--path", default="/", show_default=True, metavar="PATH", help="The directory of IMG to extract.")
@click.option("--no-owners", is_flag=True, help="Do not set owners, even as root.")
@click.option(
    "--max-bytes",
    type=click.IntRange(0),
    metavar="BYTES",
    help="Stop if more would be written.  [default: 256 times the size of IMG, plus 1 GiB]",
)
@click.option(
    "--jobs", type=click.IntRange(1), help="Number of threads or processes.  [default: number of CPUs, at most 4]"
)
@image_options
@json_option
def extract(
    *,
    image: Source,
    destination: Path,
    path: str,
    no_owners: bool,
    max_bytes: int | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Extract IMG into the new or empty directory DEST.

    Modes, times, extended attributes, hard links and holes are kept; owners and device nodes only if run as root.
    Whatever could not be kept is listed.
    """
    from erofs_edge.erofs.extract import extract as write_out

    with image.opened() as opened, Progress(f"extracting {image.name}") as progress:
        report = write_out(
            opened,
            destination,
            path=path,
            owners=False if no_owners else None,
            limit=max_bytes,
            jobs=jobs,
            progress=progress,
        )
    if as_json:
        emit_json(report)
        return
    for name, message in report.skipped:
        note(one_line(f"{name}: not kept: {message}"))
    if report.skipped_count > len(report.skipped):
        note(f"and {report.skipped_count - len(report.skipped)} more")
    click.echo(
        f"{report.files} files, {report.directories} directories, {report.symlinks} symlinks, "
        f"{report.hard_links} hard links, {report.special} special files, {size_text(report.data_bytes)}"
    )


@fs.command()
@IMG
@click.option(
    "--max-bytes",
    type=click.IntRange(0),
    metavar="BYTES",
    help="Stop if more would be decoded.  [default: 256 times the size of IMG, plus 1 GiB]",
)
@click.option(
    "--jobs", type=click.IntRange(1), help="Number of threads or processes.  [default: number of CPUs, at most 4]"
)
@image_options
@json_option
def check(*, image: Source, max_bytes: int | None, jobs: int | None, as_json: bool) -> int:
    """Check IMG: structure, names, links and every byte of data.

    Exits with 1 if something is wrong. For a RAFS v6 image, the tables are checked too, and its blobs (--device)
    against their IDs and digests.
    """
    from dataclasses import asdict

    report = _check(image, jobs, max_bytes)
    if as_json:
        emit_json(
            {
                "ok": report.ok,
                "inodes": report.inodes,
                "files": report.files,
                "directories": report.directories,
                "data_bytes": report.data_bytes,
                "in_place": {"share": round(report.in_place.share, 4), **asdict(report.in_place)},
                "findings": report.findings,
            }
        )
        return 0 if report.ok else 1
    for finding in report.findings:
        click.echo(one_line(str(finding)))
    verdict = "clean" if report.ok else f"{len(report.errors)} error{'s' * (len(report.errors) > 1)}"
    click.echo(
        f"{image.name}: {verdict}: {report.inodes} inodes, {report.files} files, {report.directories} directories, "
        f"{size_text(report.data_bytes)} decoded"
    )
    if not report.ok and not report.inodes and (advice := image.advice()):
        note(f"hint: {advice}")
    if report.in_place.data_bytes:
        why = ", ".join(f"{reason} {size_text(size)}" for reason, size in sorted(report.in_place.reasons.items()))
        click.echo(
            f"decompressed in place: {report.in_place.share:.1%} of the data" + (f" (the rest: {why})" if why else "")
        )
    return 0 if report.ok else 1


def _check(source: Source, jobs: int | None, limit: int | None) -> Report:
    from erofs_edge.erofs.check import check as check_image
    from erofs_edge.erofs.read import Image
    from erofs_edge.rafs.check import check_rafs

    start = source.start()
    if not start:
        with suppress(ErofsFormatError), Image(source.path) as opened:
            if opened.superblock.is_rafs:
                return check_rafs(source.path, source.devices, jobs=jobs)
    return check_image(source.path, devices=source.devices, offset=start, jobs=jobs, limit=limit)


@fs.command()
@IMG
@click.option("--path", metavar="PATH", help="Show the inode at this path.")
@click.option("--nid", type=click.IntRange(0), metavar="NUMBER", help="Show the inode with this number.")
@click.option("-e", "--extents", is_flag=True, help="With --path or --nid, show the extents too.")
@click.option(
    "-S", "--statistics", "with_statistics", is_flag=True, help="Show statistics of files, layouts and sizes."
)
@image_options
@json_option
def dump(
    *,
    image: Source,
    path: str | None,
    nid: int | None,
    extents: bool,
    with_statistics: bool,
    as_json: bool,
) -> None:
    """Show the superblock of IMG, an inode, or statistics."""
    from dataclasses import asdict

    from erofs_edge.erofs import dump as dumping

    if path is not None and nid is not None:
        raise UsageError("--path and --nid name one inode each", hint="use one of them")
    if extents and path is None and nid is None:
        raise UsageError("--extents needs an inode", hint="add --path or --nid")
    with image.opened(verify_checksum=False) as opened:
        record: dict[str, object] = {}
        if path is None and nid is None:
            record = dumping.superblock_fields(opened)
        else:
            inode = opened.inode(nid) if nid is not None else opened.lookup(path or "/", follow=False)
            record = dumping.inode_fields(opened, inode)
        rows = [dumping.extent_fields(extent) for extent in opened.extents(inode)] if extents else []
        counted: dict[str, object] = {}
        if with_statistics:
            numbers = dumping.statistics(opened)
            counted = asdict(numbers) | {"ratio": round(numbers.ratio, 4)}
    if as_json:
        emit_json(record | ({"extents": rows} if extents else {}) | ({"statistics": counted} if counted else {}))
        return
    _print_fields(record, False)
    if extents:
        click.echo()
        header = ("start", "length", "kind", "address", "size")
        table([[row[key] for key in header] for row in rows], header)
    if counted:
        click.echo()
        _print_statistics(numbers)


def _print_statistics(numbers: Statistics) -> None:
    rows = [(f"{name} count:", str(count)) for name, count in numbers.types.items()]
    rows += [(f"{name} layout:", str(count)) for name, count in numbers.layouts.items()]
    rows += [
        ("compressed files:", str(numbers.compressed_files)),
        ("uncompressed files:", str(numbers.uncompressed_files)),
        ("extents:", str(numbers.extents)),
        ("total original file size:", f"{numbers.original_size} bytes"),
        ("total stored file size:", f"{numbers.stored_size} bytes"),
        ("fragments:", f"{numbers.packed_size} bytes"),
        ("compress rate:", f"{numbers.ratio:.2%}"),
    ]
    table(rows)
    names = ["0 .. 1 KiB", *(f"{1 << n} .. {2 << n} KiB" for n in range(len(numbers.sizes) - 2)), "32768 KiB .."]
    _print_distribution("original size of files", dict(zip(names, numbers.sizes, strict=True)))
    _print_distribution("stored size of files", dict(zip(names, numbers.stored_sizes, strict=True)))
    files = {name or "(none)": count for name, count in numbers.extensions.items()}
    others = sum(numbers.sizes) - sum(files.values())
    _print_distribution("ends of names", files | ({"(others)": others} if others else {}))


def _print_distribution(title: str, counts: dict[str, int]) -> None:
    total = sum(counts.values()) or 1
    click.echo()
    rows = [(one_line(name), n, f"{n / total:.2%}", "#" * round(_BAR * n / total)) for name, n in counts.items()]
    table(rows, (title, "files", "share", ""))
