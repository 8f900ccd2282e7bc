# SPDX-License-Identifier: Apache-2.0
"""The image that commands of `erofs-edge fs` read: a file or device, or a part of one, with its extra devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from erofs_edge.cli.options import FilePath, together
from erofs_edge.errors import ErofsFormatError, FormatError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from erofs_edge.disk.gpt import Table
    from erofs_edge.erofs.read import Image

IMG = click.argument("image", metavar="IMG", type=FilePath(exists=True, dir_okay=False))
_OPTIONS = (
    click.option(
        "--device", "devices", multiple=True, type=FilePath(exists=True, dir_okay=False),
        metavar="FILE", help="An extra device of IMG. May be repeated, in order.",
    ),
    click.option("--partition", metavar="NAME", help="Read this partition of the disk IMG."),
    click.option("--offset", type=click.IntRange(0), default=0, metavar="BYTES",
                 help="Where in IMG the file system begins."),
)  # fmt: skip


class Source(NamedTuple):
    """The parsed arguments. `offset` is in bytes; it is used if there is no `partition`."""

    path: Path
    devices: tuple[Path, ...] = ()
    partition: str | None = None
    offset: int = 0

    @property
    def name(self) -> str:
        """The name used in messages."""
        return f"{self.path}: {self.partition}" if self.partition else str(self.path)

    def start(self) -> int:
        """Return the byte of the file at which the image begins. Raises UsageError if there is no such partition."""
        if self.partition is None:
            return self.offset
        if self.offset:
            raise UsageError("--partition and --offset both say where IMG begins", hint="use one of them")
        table = _table(self.path)
        if table is None:
            raise UsageError("no partition table", where=str(self.path))
        places = table.places()
        if self.partition not in places:
            hint = f"the partitions are {', '.join(places)}"
            raise UsageError(f"no partition '{self.partition}'", where=str(self.path), hint=hint)
        return places[self.partition][0]

    @contextmanager
    def opened(self, *, verify_checksum: bool = True) -> Iterator[Image]:
        """Yield the image, open until the block ends. Errors in it are reported with its name."""
        from erofs_edge.erofs.read import Image

        start = self.start()
        try:
            with Image(self.path, devices=self.devices, offset=start, verify_checksum=verify_checksum) as image:
                yield image
        except ErofsFormatError as error:
            where = f"{self.name}: {error.where}" if error.where else self.name
            hint = error.hint or self.advice()
            raise ErofsFormatError(error.message, where=where, hint=hint) from error

    def advice(self) -> str | None:
        """Return a hint for a file that is not an image: a disk that contains some, or a packed one."""
        if self.partition is not None or self.offset:
            return None
        with suppress(FormatError, OSError):
            from erofs_edge.flash.image import unpacking

            with self.path.open("rb") as file:
                packed = unpacking(file.read(8), self.path)
            if packed is not None:
                return packed[1]
            table = _table(self.path)
            if table is not None and table.partitions:
                return f"this is a disk: add --partition with one of {', '.join(table.places())}"
        return None


def image_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --device, --partition and --offset; the command's `image` becomes a `Source`. Use it with `IMG`."""

    @functools.wraps(command)
    def run(*, image: Path, devices: tuple[Path, ...], partition: str | None, offset: int, **rest: Any) -> Any:
        return command(image=Source(image, devices, partition, offset), **rest)

    return together(*_OPTIONS)(run)


def _table(path: Path) -> Table | None:
    import os

    from erofs_edge.positions import READ
    from erofs_edge.verify.disk import find_table

    fd = os.open(path, READ)
    try:
        return find_table(fd, os.lseek(fd, 0, os.SEEK_END), str(path))
    finally:
        os.close(fd)
