# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge fs build`: an EROFS image from a directory, with mkfs.erofs's letters for options."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from erofs_edge.cli.fs_build_auto import choice_record, choice_rows, choose_automatically
from erofs_edge.cli.fs_build_compression import SUFFIXES, parse_algorithms, read_hints
from erofs_edge.cli.fs_build_layers import TAR_BLOCK, layer_options, layer_rows, source_tree, take_layers
from erofs_edge.cli.fs_build_tree import TREE_NAMES, changed, tree_options, without_effect, without_outputs
from erofs_edge.cli.options import FilePath
from erofs_edge.cli.output import Progress, emit_json, json_option, note, size_text, table
from erofs_edge.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from erofs_edge.erofs.cache import CompressionCache
    from erofs_edge.erofs.gate import Kernel
    from erofs_edge.erofs.meter import Meter
    from erofs_edge.erofs.profile import Use
    from erofs_edge.erofs.write import ErofsInfo, WriteOptions
    from erofs_edge.tree import FileTree

EXTENDED_OPTIONS: dict[str, dict[str, Any]] = {
    "dedupe": {"dedupe": True},
    "ztailpacking": {"ztailpacking": True},
    "fragments": {"fragments": "tails"},
    "all-fragments": {"fragments": "all"},
    "inline_data": {"inline_tails": True},
    "legacy-compress": {"full_index": True},
    "force-chunk-indexes": {"chunk_indexes": True},
    "noinline_data": {"inline_tails": False},
    "xattr-name-filter": {"xattr_filter": True},
    "^xattr-name-filter": {"xattr_filter": False},
    "plain-xattr-prefixes": {},
    "nosbcrc": {"checksum": False},
    "48bit": {"wide": True},
    "force-inode-compact": {"inode_form": "compact"},
    "force-inode-extended": {"inode_form": "extended"},
}
"""-E name → fields of WriteOptions"""
OPTIONS_OF_MKFS = {
    "--workers": "use --jobs",
    "--all-time": "leave it out: -T sets all timestamps",
    "--preserve-mtime": "leave it out: without -T, files keep their timestamps",
    "--quiet": "add > /dev/null: problems go to stderr",
    "-d": "for less output add > /dev/null, for more --stats",
    "-V": "use erofs-edge --version",
    "-m": "metadata is not written compressed, as kernels call that experimental",
    "--zD": "directories are not written compressed, as kernels call that experimental",
    "--tar": "use --tar-index, or unpack the archive and build from the folder",
    "--oci": "use --oci-layout",
    "--incremental": "for images that resemble an earlier one use --baseline, for parts of one --base",
    "--clean": "leave it out: every image is written from the beginning",
}
"""option that mkfs.erofs has and `fs build` has not → what to do instead"""


class _Build(click.Command):
    """The command; its errors explain options that only mkfs.erofs has."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name
            if name not in OPTIONS_OF_MKFS:
                raise
            raise click.UsageError(f"only mkfs.erofs has {name}: {OPTIONS_OF_MKFS[name]}", ctx) from None


@click.command(cls=_Build)
@click.argument("source", metavar="[SRC]", required=False, type=click.Path(exists=True, file_okay=False))
@click.option("-o", "output", metavar="IMG", required=True, type=click.Path(), help="The image to write.")
@click.option(
    "-z", "compression", metavar="NAME[,LEVEL]", default="none", show_default=True,
    help="lz4, lz4hc[,1-12[,exact]], zstd[,1-22], deflate[,1-12] or lzma[,0-9]; also level=N and dictsize=SIZE. "
    "Separate several with ':' (see --compress-hints). auto chooses what makes the smallest image. exact uses the "
    "level even where a faster one needs no more blocks.",
)  # fmt: skip
@click.option(
    "--time-budget", type=float, metavar="SECONDS",
    help="How long -z auto may take, as estimated for two typical cores.  [default: 60]",
)  # fmt: skip
@click.option(
    "--compress-hints", metavar="FILE", type=FilePath(),
    help="Compress some files differently: lines '<cluster bytes> [<number of a -z algorithm>] <regex>'.",
)  # fmt: skip
@click.option(
    "-C",
    "pcluster",
    metavar="SIZE",
    help="Size of a compressed cluster, for example 65536 or 64K.  [default: one block]",
)
@click.option("-b", "block_size", metavar="SIZE", help="Size of a block.  [default: 4096; 512 with --tar-index]")
@click.option("-T", "epoch", type=click.IntRange(0), metavar="SECONDS", help="Set all timestamps to this.")
@click.option("--mkfs-time", is_flag=True, help="Use -T only for the image itself; files keep their timestamps.")
@click.option("--ignore-mtime", is_flag=True, help="Give all files the time of the image (-T or SOURCE_DATE_EPOCH).")
@click.option(
    "-U", "uuid", metavar="UUID", help="UUID of the image, or 'clear' for zeros.  [default: derived from the content]"
)
@click.option("-L", "volume_name", metavar="NAME", default="", help="Volume name, at most 15 bytes.")
@click.option(
    "-E", "extended", metavar="NAME,…", multiple=True, help=f"Extended options: {', '.join(EXTENDED_OPTIONS)}."
)
@click.option(
    "-x", "xattr_tolerance", type=int, default=2, show_default=True, metavar="N",
    help="Share extended attributes that more than N files have; if negative, store none.",
)  # fmt: skip
@click.option(
    "--chunksize", metavar="SIZE", help="Split uncompressed files into chunks of this size and share equal ones."
)
@layer_options
@click.option(
    "--xattr-inode-digest", "fingerprints", is_flag=True,
    help="Store each file's sha256, so that Linux 7.0 can share the pages of equal files (inode_share).",
)  # fmt: skip
@click.option(
    "--xattr-prefix",
    multiple=True,
    metavar="PREFIX",
    help="Store this prefix of extended attributes' names once (Linux 6.4). May be repeated.",
)
@click.option(
    "--baseline", type=FilePath(exists=True, dir_okay=False), metavar="OLD",
    help="Keep unchanged content where it is in this earlier image.",
)  # fmt: skip
@click.option("--compact", is_flag=True, help="With --baseline, leave no free blocks.")
@click.option(
    "--profile", type=FilePath(exists=True, dir_okay=False), metavar="FILE",
    help="Put these paths, or parts of files ('PATH OFFSET LENGTH'), first, in this order: one per line.",
)  # fmt: skip
@tree_options
@click.option(
    "--kernel",
    metavar="VERSION",
    help="Refuse features that this kernel cannot mount, for example 5.15 or android13-5.15.",
)
@click.option("--all-root", is_flag=True, help="Make user and group 0 the owner of everything.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Number of threads or processes; the output is the same for any number.  [default: from the number of CPUs]",
)
@click.option("--no-cache", is_flag=True, help="Neither use nor fill the compression cache.")
@click.option("--stats", is_flag=True, help="Also print what the image consists of and how long the codecs took.")
@json_option
def build(
    *,
    source: str | None,
    output: str,
    no_cache: bool,
    stats: bool,
    as_json: bool,
    time_budget: float | None,
    **given: Any,
) -> None:
    """Write an EROFS image of the directory SRC.

    Owners, modes, timestamps (to the nanosecond), device nodes, hard links and extended attributes are kept. Without
    -T, timestamps later than SOURCE_DATE_EPOCH (if that is set) are set to it. The same SRC and options give the same
    bytes.

    \b
    Examples:
      erofs-edge fs build rootfs -o rootfs.erofs -z lz4hc,12 -C 64K
      erofs-edge fs build rootfs -o rootfs.erofs -z auto
    """
    from erofs_edge.erofs.ahead import HeadStart
    from erofs_edge.erofs.meter import Meter

    tree = {name: given.pop(name) for name in TREE_NAMES}
    automatic = given["compression"] == "auto"
    if time_budget is not None and not automatic:
        raise UsageError("--time-budget needs -z auto")
    layers, options, own = take_layers(given), _options(**given), without_effect(given, tree)
    cache = None if no_cache or options.compression == "none" else _cache()
    meter = Meter(time.thread_time) if stats else None
    start = time.perf_counter()
    with Progress(f"writing {os.path.basename(output)}") as progress, ExitStack() as stack:
        try:
            options = options.replaced(cache=cache, meter=meter, progress=progress)
            ahead = None if automatic or options.bases else stack.enter_context(HeadStart(options))
            offer = ahead.offer if ahead else None
            content, idle = changed(source_tree(source, layers or options.archives, offer, layers=bool(layers)), **tree)
            own += without_outputs(content, source, output, given["blobdev"]) if source and not layers else []
            options = options.replaced(ahead=ahead, scanned=source is not None)
            from erofs_edge.erofs.write import write_image  # loaded, as pathlib, while processes are at work

            image, choice = _path(output), None
            if automatic:
                choice = choose_automatically(content, options, image, time_budget, pcluster=given["pcluster"])
                options = choice.options.replaced(cache=cache, meter=meter, progress=progress)
            info = write_image(content, image, options)
        finally:
            if cache is not None:
                cache.close()
    warnings = own + _warn(content, options, idle, source or "the archives", info)
    _say_of(cache)
    spent = _time_spent(time.perf_counter() - start, meter, options) if meter is not None else None
    if as_json:
        more: dict[str, Any] = {"warnings": warnings} | ({} if spent is None else {"time": spent})
        emit_json(_record(info) | more | ({} if choice is None else {"auto": choice_record(choice)}))
        return
    if choice is not None:
        table(*choice_rows(choice))
    table([*_rows(info, stats=stats), *([("time", _time_text(spent))] if spent else [])])


def _warn(tree: FileTree, options: WriteOptions, idle: list[str], source: str, info: ErofsInfo) -> list[str]:
    if not (idle or options.rules or options.profile or options.bases):
        return []
    from erofs_edge.cli.fs_build_unmatched import warn_of_unmatched

    return warn_of_unmatched(tree, options, idle, source, info)


def _path(text: str) -> Path:
    from pathlib import Path

    return Path(text)


def _cache() -> CompressionCache:
    from erofs_edge.erofs.cache import CompressionCache
    from erofs_edge.sources.cache import cache_root

    return CompressionCache(cache_root() / "compressed")


def _say_of(cache: CompressionCache | None) -> None:
    if cache is None:
        return
    if cache.problem is not None:
        place = os.fsdecode(cache.problem.filename or cache.folder)
        note(f"the compression cache could not be used: {place}: {cache.problem.strerror or cache.problem}")
    if cache.damaged:
        note(f"{cache.damaged} damaged entries of the compression cache were discarded and made again")


def _time_spent(wall: float, meter: Meter, options: WriteOptions) -> dict[str, float | int | None]:
    """Seconds: of the build, and of the codecs alone on the processors that it had; `overhead` is their ratio."""
    processors = min(options.workers, os.cpu_count() or 1)
    alone = meter.seconds / processors
    return {
        "wall": round(wall, 3),
        "codec_cpu": round(meter.seconds, 3),
        "codec_calls": meter.calls,
        "processors": processors,
        "codec_wall": round(alone, 3),
        "overhead": round(wall / alone, 3) if alone else None,
    }


def _time_text(spent: dict[str, float | int | None]) -> str:
    share = f" ({spent['overhead']:.2f}x)" if spent["overhead"] else ""
    return (
        f"{spent['wall']:.2f} s; the codecs alone {spent['codec_wall']:.2f} s"
        f" on {spent['processors']} processors{share}, {spent['codec_calls']} calls"
    )


def _options(
    *,
    compression: str,
    compress_hints: Path | None,
    pcluster: str | None,
    block_size: str | None,
    epoch: int | None,
    mkfs_time: bool,
    ignore_mtime: bool,
    uuid: str | None,
    volume_name: str,
    extended: tuple[str, ...],
    chunksize: str | None,
    blobdev: Path | None,
    baseline: Path | None,
    compact: bool,
    profile: Path | None,
    xattr_tolerance: int,
    xattr_prefix: tuple[str, ...],
    kernel: str | None,
    all_root: bool,
    jobs: int | None,
    **further: Any,
) -> WriteOptions:
    from erofs_edge.erofs.options import WriteOptions

    if compression == "auto" and compress_hints is not None:
        raise UsageError("-z auto and --compress-hints cannot be combined", hint="use one of them")
    # lz4 until it is chosen
    algorithms = parse_algorithms("lz4" if compression == "auto" else compression)
    block = parse_size("-b", block_size or (TAR_BLOCK if further["archives"] else "4096"))
    rules = read_hints(compress_hints, algorithms, block) if compress_hints is not None else ()
    return WriteOptions(
        compression=algorithms[0].name,
        level=algorithms[0].level,
        exact_level=algorithms[0].exact,
        dictionary=algorithms[0].dictionary,
        rules=rules,
        pcluster=parse_size("-C", pcluster) if pcluster is not None else None,
        block_size=block,
        uuid=_uuid(uuid),
        volume_name=os.fsencode(volume_name),
        chunk_size=parse_size("--chunksize", chunksize) if chunksize is not None else None,
        blob=blobdev,
        baseline=baseline,
        compact=compact,
        profile=_uses(profile) if profile is not None else (),
        xattr_tolerance=xattr_tolerance,
        xattr_prefixes=tuple(map(os.fsencode, xattr_prefix)),
        kernel=_kernel(kernel) if kernel is not None else None,
        all_root=all_root,
        jobs=jobs,
        **parse_times(epoch, mkfs_time=mkfs_time, ignore_mtime=ignore_mtime),
        **_extended(extended),
        **further,
    )


def _kernel(text: str) -> Kernel:
    from erofs_edge.erofs.gate import parse_kernel

    return parse_kernel(text)


def _uses(path: Path) -> tuple[Use, ...]:
    from erofs_edge.trace.record import read_uses

    return read_uses(path)


def parse_size(option: str, text: str) -> int:
    """Bytes, of a number with K or M behind it; `option` is for the message of the UsageError."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:] in ("K", "M", "k", "m") else (text, "")
    if not number.isdecimal():
        raise UsageError(f"{option} {text}: not a size in bytes", hint="for example 65536 or 64K")
    return int(number) * SUFFIXES[unit]


def _uuid(text: str | None) -> bytes | None:
    if text is None:
        return None
    from uuid import UUID

    try:
        return bytes(16) if text == "clear" else UUID(text).bytes
    except ValueError as error:
        raise UsageError(f"-U {text}: not a UUID") from error


def _record(info: ErofsInfo) -> dict[str, Any]:
    return info.fields() | {"uuid": _uuid_text(info.uuid)}


def _uuid_text(raw: bytes) -> str:
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def parse_times(epoch: int | None, *, mkfs_time: bool, ignore_mtime: bool) -> dict[str, Any]:
    """-T sets every time; SOURCE_DATE_EPOCH only those that are later."""
    if mkfs_time and ignore_mtime:
        raise UsageError("--mkfs-time keeps the files' times and --ignore-mtime drops them", hint="use one of them")
    if epoch is not None:
        return {"epoch": epoch, "times": "keep" if mkfs_time else "fixed"}
    latest = os.environ.get("SOURCE_DATE_EPOCH")
    if not latest and (ignore_mtime or mkfs_time):
        raise UsageError("--ignore-mtime and --mkfs-time need a time", hint="add -T, or set SOURCE_DATE_EPOCH")
    if not latest:
        return {}
    if not latest.isdecimal():
        raise UsageError(f"SOURCE_DATE_EPOCH={latest} is not a number of seconds")
    return {"epoch": int(latest), "times": "fixed" if ignore_mtime else "keep" if mkfs_time else "clamp"}


def _extended(groups: tuple[str, ...]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    set_by: dict[str, str] = {}
    for text in (text for group in groups for text in group.split(",") if text):
        name, equals, value = text.partition("=")
        if name not in EXTENDED_OPTIONS:
            raise UsageError(f"-E {name}: unknown option", hint=f"supported: {', '.join(EXTENDED_OPTIONS)}")
        if equals:
            if name not in ("fragments", "all-fragments"):
                raise UsageError(f"-E {name} takes no value", hint=f"-E {name}")
            size = parse_size(f"-E {name}", value)
            if fields.setdefault("packed_pcluster", size) != size:
                raise UsageError(f"-E {name} is given two sizes", hint="leave one of them out")
        for field, value in EXTENDED_OPTIONS[name].items():
            if fields.setdefault(field, value) != value:
                raise UsageError(f"-E {name} contradicts -E {set_by[field]}", hint="leave one of them out")
            set_by.setdefault(field, name)
    return fields


def _share(blocks: int, info: ErofsInfo) -> str:
    return f"{blocks} blocks ({100 * blocks / info.blocks:.2f} %)"


def _rows(info: ErofsInfo, *, stats: bool) -> list[tuple[str, str]]:
    from erofs_edge.erofs.gate import pages_text, version_text

    share = ""
    if info.uncompressed:
        share = f", {100 * info.size / info.uncompressed:.1f} % of the files' {size_text(info.uncompressed)}"
    rows = [
        ("image", str(info.path)),
        ("size", f"{info.size} bytes ({size_text(info.size)}{share})"),
        ("blocks", f"{info.blocks} of {info.block_size} bytes"),
        ("inodes", f"{info.inodes}"),
        ("uuid", _uuid_text(info.uuid)),
        ("needs", f"Linux {version_text(info.minimum_kernel)}{pages_text(info.block_size)}"),
    ]
    if info.changed_blocks is not None:
        rows += [
            (
                "changed",
                f"{_share(info.changed_blocks, info)} differ from the baseline; all others are where they were",
            ),
            ("free", f"{_share(info.free_blocks, info)}, left for later images"),
        ]
    if info.hot_blocks:
        rows.append(("profile", f"{_share(info.hot_blocks, info)} at the front"))
    if info.placed_anew is not None:
        rows.append(("placed anew", f"everything from block {info.placed_anew} on, to leave fewer free blocks"))
    rows += layer_rows(info)
    if not stats:
        return rows
    return [
        *rows,
        ("volume name", os.fsdecode(info.volume_name) or "none"),
        ("epoch", str(info.epoch)),
        ("kinds", ", ".join(f"{count} {kind}" for kind, count in info.kinds.items())),
        ("data", f"{info.data_blocks} blocks; {info.metadata_blocks} of metadata"),
        ("compressed files", f"{info.compressed}; {info.stored} stored uncompressed"),
        ("fragments", f"{info.fragments} files, {size_text(info.packed)} in the packed inode"),
        ("equal files", f"{info.reused}; {info.shared} of them share their blocks"),
        ("equal parts", f"{info.repeats} extents, {size_text(info.repeated)}, use other files' blocks"),
        ("cache", f"{info.cache_hits} segments found, {info.cache_misses} compressed"),
    ]
