# SPDX-License-Identifier: Apache-2.0
"""What a host asks of the provisioning system besides reading and writing, as bytes of its control export.

The control export is a second NBD export. A request is text at its start, a line for each item and '.' at the end; a
flush carries it out; the answers are text at ANSWERS, a line for each item and '.' again. Deltas are put at DELTAS
first. So everything goes through one protocol, and TLS covers it where the exports have it. Each connection sees an
export of its own. The other side is provision/control.sh and work.sh.

What need not be asked for is in the description of the disk's export, which comes with the connection: SAYS, the
answers to WHO, '.', with older systems the answer to `unpacks`, as of their start (with others nothing), and the
digests that the board has besides sha256; a '|' between any two. See provision/init.sh.

    hold NAME                                 → ok: nobody else may copy, patch or restart until this connection ends;
                                                held NAME: somebody else said that before
    hash OFFSET LENGTH DIGEST                 → in hexadecimal; without DIGEST it is sha256
    zeros OFFSET LENGTH                       → zeros, or data: whether there is anything else; 64 MiB at most where
                                                the board has no digest besides sha256
    blocks SIZE OFFSET LENGTH DIGEST          → ok: digests of each SIZE bytes, where a tree at TREES has its leaves
    copy SOURCE OFFSET LENGTH                 → ok
    patch SOURCE LENGTH OFFSET LENGTH DELTA   → ok: a zstd frame of DELTA bytes with the source as its dictionary; where
                                                that has no length, one or several frames
    serial                                    → is SERIAL: of the board; nothing behind 'is' where it has none
    compatible INDEX                          → is NAME: what it calls itself, the most exact name first, from 1 on
    medium                                    → ok: later reads come from the medium and not from memory
    unpacks                                   → unpacks BYTES HUNDREDTHS: of a second, that it takes for so much
    reboot, poweroff                          → ok
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from erofs_edge.errors import DeviceError, ProtocolError

SIZE = 1 << 30
NAMES = 8
"""names of a board that are asked for: device trees have two or three (Devicetree Specification 0.4, 2.3.1)"""
WHO = ["serial", *(f"compatible {index}" for index in range(1, NAMES + 1))]
"""what is asked to know which board it is"""
SAYS = "erofs-edge board"
ANSWERS, DELTAS, TREES = 32 << 20, 64 << 20, 512 << 20  # bytes
DELTA_MAX = TREES - DELTAS
BLOCKS = (4096, 65536, 512 << 10)
"""sizes that `blocks` is asked for, bytes: powers of two, veritysetup takes 512 to 512 KiB"""
TREE_BLOCK = 4096  # bytes
DIGESTS = {"sha256": 32, "blake2b": 64}
"""what a board may hash with, and bytes of it: BLAKE2b as it is without a shorter length"""
SPAN_MAX = 64 << 20  # bytes of a `blocks` request: they are in the device's memory for a moment
ANSWER_LINE = 132
"""bytes of an answer at most, its end included"""
ITEMS_MAX = 20_000  # of one request


class Said(NamedTuple):
    """What a board says of itself: `serial` number ('' for none) and `names`; `effort`, the seconds that it needs to
    unpack a byte, None where it is to be asked; `digests` that it has besides sha256."""

    serial: str
    names: tuple[str, ...]
    effort: float | None
    digests: tuple[str, ...]


def request(items: Sequence[str]) -> bytes:
    """The bytes that ask for all items, for offset 0."""
    if not 0 < len(items) <= ITEMS_MAX or any("\n" in item or item == "." for item in items):
        raise ValueError("items of a request are lines")
    return "".join(f"{item}\n" for item in [*items, "."]).encode("ascii")


def answers(raw: bytes, items: Sequence[str]) -> list[str]:
    """The answers that stand at ANSWERS; `raw` is what was read there, of any length that holds them.

    Raises DeviceError where the other side says so, ProtocolError where the answers do not fit the request.
    """
    text, end, _ = raw.partition(b"\n.\n")
    lines = text.decode("ascii", "replace").split("\n")
    if not end or len(lines) != len(items):
        raise ProtocolError(f"{len(lines)} answers to {len(items)} requests")
    for item, line in zip(items, lines, strict=True):
        if line.startswith("error"):
            raise DeviceError(f"the provisioning system cannot {item.split()[0]}: {line[6:] or 'no reason'}")
    return lines


def board(lines: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The answers to WHO: serial number ('' for none) and names. What cannot be printed is left out of them."""
    said = ["".join(c for c in line.removeprefix("is").strip() if c.isprintable()) for line in lines]
    return said[0], tuple(name for name in said[1:] if name)


def described(text: str) -> Said | None:
    """Of the description of a disk. None where it is not of that kind: an older system."""
    first, *parts = text.split("|")
    if first != SAYS or "." not in parts:
        return None
    lines, said = parts[: parts.index(".")], parts[parts.index(".") + 1 :]
    serial, names = board(lines) if lines else ("", ())
    return Said(serial, names, effort(said[0]) if said and said[0] else None, tuple(said[1:]))


def effort(line: str) -> float:
    """The answer to `unpacks`: seconds that the board needs to unpack a byte; 0 where it does not say, or needs next
    to none."""
    words = line.split()
    known = len(words) == 3 and words[0] == "unpacks" and all(w.isdecimal() and w.isascii() for w in words[1:])
    size, hundredths = (int(words[1][:12]), int(words[2][:12])) if known else (0, 0)
    return hundredths / 100 / size if size else 0.0


def holder(line: str) -> str:
    """The answer to `hold`: who has the board, '' where it is ours now."""
    return "" if line == "ok" else "".join(c for c in line.removeprefix("held").strip() if c.isprintable()) or "?"


def name_of_holder(user: str, machine: str, process: int) -> str:
    """What `hold` says of who it is for: one word."""
    words = ["".join(c for c in word if c.isascii() and (c.isalnum() or c in "._-")) for word in (user, machine)]
    return f"{words[0][:20] or 'somebody'}@{words[1][:30] or 'somewhere'}:{process}"


def answer_bytes(items: Sequence[str]) -> int:
    """How much has to be read at ANSWERS."""
    return ANSWER_LINE * len(items) + 2


def leaves(count: int, width: int) -> tuple[int, int]:
    """Where the digests of `count` blocks, two at least, are in the export: offset and length in bytes. Each has
    `width` bytes.

    The tree has its levels from the top down, each in whole blocks (kernel, admin-guide/device-mapper/verity.rst).
    """
    if count < 2:
        raise ValueError("a tree of one block has no leaves")
    level, above = -(-count * width // TREE_BLOCK), 0
    upper = level
    while upper > 1:
        upper = -(-upper * width // TREE_BLOCK)
        above += upper
    return TREES + above * TREE_BLOCK, count * width
