# SPDX-License-Identifier: Apache-2.0
"""The requests to a provisioning system besides reading and writing, as bytes of its control export.

The control export is a second NBD export. A request is text at its start, one line per item and a final '.'; a flush
carries it out; the answers are text at ANSWERS, one line per item and again a '.'. Deltas are written to DELTAS first.
So everything uses one protocol, and TLS covers it if the exports use it. Each connection sees its own export. The other
side is provision/control.sh and work.sh.

Some facts need no request because they are in the description of the disk's export, which comes with the connection:
SAYS, the answers to WHO, '.', the answer to `unpacks` at start-up (older systems only, otherwise empty), and the
digests that the board has besides sha256, with '|' between any two. See provision/init.sh.

    hold NAME                                 → ok: nobody else may copy, patch or restart until this connection ends;
                                                held NAME: another client said that before
    hash OFFSET LENGTH DIGEST                 → in hexadecimal; without DIGEST it is sha256
    zeros OFFSET LENGTH                       → zeros, or data if there is anything else; 64 MiB at most if the board
                                                has no digest besides sha256
    blocks SIZE OFFSET LENGTH DIGEST          → ok: digests of each SIZE bytes, as the leaves of a tree at TREES
    copy SOURCE OFFSET LENGTH                 → ok
    patch SOURCE LENGTH OFFSET LENGTH DELTA   → ok: a zstd frame of DELTA bytes with the source as its dictionary; if
                                                the source is empty, one or several frames
    serial                                    → is SERIAL: the board's; nothing after 'is' if it has none
    compatible INDEX                          → is NAME: the board's names, the most specific first, from 1 on
    medium                                    → ok: later reads come from the medium and not from memory
    unpacks                                   → unpacks BYTES HUNDREDTHS: hundredths of a second to unpack that many
    reboot, poweroff                          → ok
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from erofs_edge.errors import DeviceError, ProtocolError

SIZE = 1 << 30
NAMES = 8
"""number of board names that are requested: device trees have two or three (Devicetree Specification 0.4, 2.3.1)"""
WHO = ["serial", *(f"compatible {index}" for index in range(1, NAMES + 1))]
"""requests that identify a board"""
SAYS = "erofs-edge board"
ANSWERS, DELTAS, TREES = 32 << 20, 64 << 20, 512 << 20  # bytes
DELTA_MAX = TREES - DELTAS
BLOCKS = (4096, 65536, 512 << 10)
"""sizes for `blocks`, in bytes: powers of two; veritysetup takes 512 to 512 KiB"""
TREE_BLOCK = 4096  # bytes
DIGESTS = {"sha256": 32, "blake2b": 64}
"""digests that a board may support, and their length in bytes: BLAKE2b in its default length"""
SPAN_MAX = 64 << 20  # bytes of a `blocks` request: the device holds them in memory for a moment
ANSWER_LINE = 132
"""maximum bytes of an answer, including its end"""
ITEMS_MAX = 20_000  # per request


class Said(NamedTuple):
    """What a board says of itself: `serial` number ('' for none) and `names`; `effort`, seconds to unpack a byte, None
    if it has to be requested; `digests` that it has besides sha256."""

    serial: str
    names: tuple[str, ...]
    effort: float | None
    digests: tuple[str, ...]


def request(items: Sequence[str]) -> bytes:
    """The bytes that request all items, for offset 0."""
    if not 0 < len(items) <= ITEMS_MAX or any("\n" in item or item == "." for item in items):
        raise ValueError("items of a request are lines")
    return "".join(f"{item}\n" for item in [*items, "."]).encode("ascii")


def answers(raw: bytes, items: Sequence[str]) -> list[str]:
    """Parse the answers at ANSWERS; `raw` is what was read there, of any sufficient length.

    Raises DeviceError if the other side reports a failure, ProtocolError if the answers do not fit the request.
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
    """Parse the answers to WHO: serial number ('' for none) and names, without unprintable characters."""
    said = ["".join(c for c in line.removeprefix("is").strip() if c.isprintable()) for line in lines]
    return said[0], tuple(name for name in said[1:] if name)


def described(text: str) -> Said | None:
    """Parse the description of a disk. None if it is not of that form: an older system."""
    first, *parts = text.split("|")
    if first != SAYS or "." not in parts:
        return None
    lines, said = parts[: parts.index(".")], parts[parts.index(".") + 1 :]
    serial, names = board(lines) if lines else ("", ())
    return Said(serial, names, effort(said[0]) if said and said[0] else None, tuple(said[1:]))


def effort(line: str) -> float:
    """Parse the answer to `unpacks`: seconds to unpack a byte; 0 if the board does not say or needs almost none."""
    words = line.split()
    known = len(words) == 3 and words[0] == "unpacks" and all(w.isdecimal() and w.isascii() for w in words[1:])
    size, hundredths = (int(words[1][:12]), int(words[2][:12])) if known else (0, 0)
    return hundredths / 100 / size if size else 0.0


def holder(line: str) -> str:
    """Parse the answer to `hold`: who has the board, '' if it is ours now."""
    return "" if line == "ok" else "".join(c for c in line.removeprefix("held").strip() if c.isprintable()) or "?"


def name_of_holder(user: str, machine: str, process: int) -> str:
    """The name given to `hold`: one word."""
    words = ["".join(c for c in word if c.isascii() and (c.isalnum() or c in "._-")) for word in (user, machine)]
    return f"{words[0][:20] or 'somebody'}@{words[1][:30] or 'somewhere'}:{process}"


def answer_bytes(items: Sequence[str]) -> int:
    """Number of bytes to read at ANSWERS."""
    return ANSWER_LINE * len(items) + 2


def leaves(count: int, width: int) -> tuple[int, int]:
    """Where the digests of `count` blocks, at least two, are in the export: offset and length in bytes. Each has
    `width` bytes.

    The tree stores its levels from the top down, each in whole blocks (kernel, admin-guide/device-mapper/verity.rst).
    """
    if count < 2:
        raise ValueError("a tree of one block has no leaves")
    level, above = -(-count * width // TREE_BLOCK), 0
    upper = level
    while upper > 1:
        upper = -(-upper * width // TREE_BLOCK)
        above += upper
    return TREES + above * TREE_BLOCK, count * width
