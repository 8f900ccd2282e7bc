# SPDX-License-Identifier: Apache-2.0
"""Arguments that name a path on this machine or an export of another one, and partitions of either, for reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erofs_edge.errors import FormatError, UsageError

if TYPE_CHECKING:
    from erofs_edge.transport.nbd.connect import Address
    from erofs_edge.verity.blocks import Source
    from erofs_edge.verity.source import Place


class PathOrAddress(click.Path):
    """A path, as with click.Path; or an address, which stays a string."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert an argument; click calls this."""
        return value if isinstance(value, str) and "://" in value else super().convert(value, param, ctx)


@contextmanager
def reached(place: Path | str, partition: str | None = None) -> Iterator[Place]:
    """Yield what a path or an address names, or its partition of the given name, until the block ends.

    Raises UsageError if there is no such transport or partition, DeviceError if the export cannot be reached.
    """
    from erofs_edge.verity.source import opened

    with ExitStack() as stack:
        if isinstance(place, str):
            from erofs_edge.transport.nbd.aligned import AlignedReads
            from erofs_edge.transport.nbd.parallel import Connections

            connection = Connections(_address(place))
            stack.callback(connection.close)
            export = AlignedReads(connection)
            yield export if partition is None else _part(export, partition, place)
        elif partition is None:
            yield place
        else:
            yield _part(stack.enter_context(opened(place)), partition, str(place))


def disk_advice(place: Place) -> str | None:
    """Return the hint for a disk with images in its partitions where an image is expected; else None."""
    from erofs_edge.verify.disk import find_table
    from erofs_edge.verity.blocks import file_size
    from erofs_edge.verity.source import opened

    with suppress(FormatError, OSError), opened(place) as source:
        table = find_table(source, file_size(source), "")
        if table is not None and table.partitions:
            return f"this is a disk: add --partition with one of {', '.join(table.places())}"
    return None


def _address(text: str) -> Address:
    """Return the address of something that exports bytes: an NBD server, or a board that runs the provisioning
    system."""
    from erofs_edge.flash.provision import disk_address
    from erofs_edge.transport.nbd.connect import SCHEMES, parse_address

    scheme = text.partition("://")[0]
    if scheme in SCHEMES:
        return parse_address(text)
    if scheme in ("provision", "provisions", "provision+unix"):
        return disk_address(text)
    raise UsageError(f'nothing can be read over "{scheme}"', where=text, hint=f"known: {', '.join(SCHEMES)}, provision")


def _part(source: Source, name: str, where: str) -> Place:
    from erofs_edge.verify.disk import find_table
    from erofs_edge.verity.blocks import file_size
    from erofs_edge.verity.source import Section

    table = find_table(source, file_size(source), where)
    if table is None:
        raise UsageError("no partition table", where=where)
    places = table.places()
    if name not in places:
        raise UsageError(f"no partition '{name}'", where=where, hint=f"there are {', '.join(places)}")
    start, end = places[name]
    return Section(source, start, end - start)
