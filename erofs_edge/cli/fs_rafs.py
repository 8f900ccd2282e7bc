# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge fs rafs` and `fs blobs`: write and inspect images in Nydus's format."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from erofs_edge.cli.output import Progress, emit_json, json_option, size_text, table
from erofs_edge.errors import UsageError

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("rafs")
@click.argument("source", metavar="SRC", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "output", metavar="BOOTSTRAP", required=True, type=click.Path(path_type=Path),
              help="The bootstrap (metadata) to write.")  # fmt: skip
@click.option(
    "--blob-dir", metavar="DIR", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder for the blob, which is named by its sha256.",
)  # fmt: skip
@click.option(
    "--base", "bases", multiple=True, type=FILE, metavar="BOOTSTRAP",
    help="Do not store again what the blobs of this image hold. May be repeated.",
)  # fmt: skip
@click.option("--chunksize", metavar="SIZE", default="1M", show_default=True, help="Size of a chunk, 4K to 16M.")
@click.option("-T", "epoch", type=click.IntRange(0), metavar="SECONDS", help="Set all timestamps to this.")
@click.option("--all-root", is_flag=True, help="Make user and group 0 the owner of everything.")
@json_option
def rafs(
    *,
    source: Path,
    output: Path,
    blob_dir: Path,
    bases: tuple[Path, ...],
    chunksize: str,
    epoch: int | None,
    all_root: bool,
    as_json: bool,
) -> None:
    """Write a RAFS v6 image of SRC: a bootstrap for Nydus, and a blob of chunks.

    Chunks are stored uncompressed, so that Linux 5.16 or later can mount the bootstrap with its blobs as devices.
    Without -T, timestamps later than SOURCE_DATE_EPOCH (if that is set) are set to it. The same SRC and options give
    the same bytes.
    """
    from erofs_edge.cli.fs_build import parse_size, parse_times
    from erofs_edge.cli.fs_build_tree import without_outputs
    from erofs_edge.rafs.write import RafsOptions, write_rafs
    from erofs_edge.sources.directory import scan

    if blob_dir.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"blobs inside {source} would become part of its next image", where=str(blob_dir), hint="use another folder"
        )
    times = parse_times(epoch, mkfs_time=False, ignore_mtime=False)
    with Progress(f"write {output.name}") as progress:
        options = RafsOptions(
            chunk_size=parse_size("--chunksize", chunksize), bases=bases, all_root=all_root, progress=progress, **times
        )
        tree = scan(source)
        warnings = without_outputs(tree, str(source), str(output), None)
        info = write_rafs(tree, output, blob_dir, options)
    if as_json:
        emit_json(asdict(info) | {"warnings": warnings})
        return
    rows = [
        ("bootstrap", f"{info.path}, {size_text(info.size)}"),
        ("inodes", f"{info.inodes}, files of {size_text(info.uncompressed)}"),
        ("chunks", f"{info.chunks}: {info.new} new, {info.reused} in other blobs"),
        ("blob", f"{info.blob}, {size_text(info.blob_size)}" if info.blob else "none: there are no new chunks"),
    ]
    if info.blobs:
        rows.append(("mount", "-o " + ",".join(f"device={name}" for name in info.blobs)))
    table(rows)


@click.command()
@click.argument("image", metavar="BOOTSTRAP", type=FILE)
@click.option(
    "--decode", "out", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Write decoded blobs to this folder, as devices that Linux can mount.",
)  # fmt: skip
@click.option(
    "--blob-dir", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder of the blobs, each named by its ID.",
)  # fmt: skip
@json_option
def blobs(*, image: Path, out: Path | None, blob_dir: Path | None, as_json: bool) -> None:
    """List the blobs of a RAFS v6 image, in the order of its devices.

    Blobs made by Nydus's own builder are compressed, and no kernel can read them. --decode writes a file of the same
    name for each, with which kernels can mount the image and all commands here can read it (--device).
    """
    from erofs_edge.rafs import ondisk
    from erofs_edge.rafs.check import is_device
    from erofs_edge.rafs.decode import decode_blobs
    from erofs_edge.rafs.read import read_rafs

    rafs = read_rafs(image)
    if (out is None) is not (blob_dir is None):
        raise UsageError("--decode and --blob-dir must be given together")
    decoded: list[Path] = []
    if out is not None and blob_dir is not None:
        with Progress(f"decode the blobs of {image.name}") as progress:
            decoded = decode_blobs(rafs, blob_dir, out, progress)
    rows = [
        {
            "id": blob.id.decode(),
            "size": blob.stored,
            "data": blob.data,
            "chunks": blob.chunks,
            "compression": ondisk.COMPRESSIONS[blob.compression],
            "digest": ondisk.DIGESTS[blob.digest],
            "is_device": is_device(blob),
        }
        for blob in rafs.blobs
    ]
    if as_json:
        emit_json(rows)
    elif decoded:
        table([("mount", "-o " + ",".join(f"device={path}" for path in decoded))])
    else:
        table((tuple(row.values()) for row in rows), tuple(name.replace("is_", "") for name in rows[0]) if rows else ())
