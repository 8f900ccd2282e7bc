# SPDX-License-Identifier: Apache-2.0
"""What the commands of `erofs-edge verity` share: argument types, parsing of their text, output of results."""

from __future__ import annotations

import functools
import uuid as uuids
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erofs_edge.cli.remote import PathOrAddress
from erofs_edge.errors import FormatError, UsageError, place_within

if TYPE_CHECKING:
    from erofs_edge.verity.check import Ranges
    from erofs_edge.verity.fec import Layout
    from erofs_edge.verity.tree import Superblock

IMAGE = click.Path(exists=True, dir_okay=False, path_type=Path)
FAR = PathOrAddress(exists=True, dir_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
ROOTS = click.IntRange(2, 24)
FEC_OFFSET = click.option(
    "--fec-offset",
    type=int,
    metavar="BYTES",
    help="Where the parity begins.  [default: 0, or after the hash tree if it is in the same file]",
)


def names_image(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the name of the `image` to errors that only have an offset, if no other file can be meant. Pipes are refused:
    they have no end to look for, and one without a writer would block."""

    @functools.wraps(command)
    def run(*, image: Path | str, **rest: Any) -> Any:
        if isinstance(image, Path) and image.is_fifo():
            raise UsageError("a pipe, not a file", where=str(image), hint="save its output to a file first")
        try:
            return command(image=image, **rest)
        except FormatError as error:
            others = rest.get("hash_device"), rest.get("fec_device")
            if others == (None, None) and (error.where or "offset").startswith("offset"):
                place_within(error, image)
            raise

    return run


def root_hash_of(text: str) -> bytes:
    """Parse ``--root-hash``: hexadecimal, or @FILE. Raises UsageError for anything else."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text("ascii", "replace").strip()
        except OSError as error:
            raise UsageError(f"--root-hash: {error.strerror}", where=text[1:]) from error
    digest = hex_of("--root-hash", text)
    if not digest:
        raise UsageError("--root-hash is empty")
    return digest


def hex_of(option: str, text: str | None) -> bytes | None:
    """Parse an option's hexadecimal text. Raises UsageError."""
    if text is None:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        odd = f": it has {len(text)} digits, and two make a byte" if len(text) % 2 else ""
        raise UsageError(f"{option}: {text[:136]!r} is not hexadecimal{odd}") from None


def uuid_of(text: str | None) -> bytes | None:
    """Parse ``--uuid`` into 16 bytes. Raises UsageError."""
    if text is None:
        return None
    try:
        return uuids.UUID(text).bytes
    except ValueError:
        raise UsageError(
            f"--uuid: {text[:80]!r} is not a UUID", hint="for example 12345678-9abc-4def-8123-456789abcdef"
        ) from None


def parity_needs_a_device(fec_device: Path | None, fec_roots: int | None, fec_offset: int | None) -> None:
    """Raises UsageError for parity options without a parity device: no option is silently ignored."""
    if fec_device is None and (fec_roots is not None or fec_offset is not None):
        raise UsageError(
            "--fec-roots and --fec-offset need --fec-device", hint="say where the parity is: --fec-device FILE"
        )


def described(sb: Superblock) -> dict[str, object]:
    """Return the record of a superblock, in the order in which veritysetup prints it."""
    return {
        "uuid": str(uuids.UUID(bytes=sb.uuid)),
        "data_blocks": sb.data_blocks,
        "data_block_size": sb.data_block_size,
        "hash_block_size": sb.hash_block_size,
        "hash_algorithm": sb.algorithm,
        "salt": sb.salt.hex() or "-",
    }


def parity_described(layout: Layout) -> dict[str, object]:
    """Return the record of where the parity is."""
    return {
        "fec_roots": layout.roots,
        "fec_offset": layout.offset,
        "fec_blocks": layout.blocks,
        "fec_size": layout.parity_size,
    }


def title(key: str) -> str:
    """Return the key of a record as a title for people."""
    return "UUID" if key == "uuid" else key.replace("_", " ").capitalize().replace("Fec", "FEC")


def blocks_text(kinds: dict[str, Ranges]) -> str:
    """Format '2 data block(s): 7, 9; 1 hash block(s): 301', leaving out kinds without blocks."""
    return "; ".join(f"{blocks.total} {kind} block(s): {blocks}" for kind, blocks in kinds.items() if blocks)
