# SPDX-License-Identifier: Apache-2.0
"""What a disk image is written to. Files and block devices of this machine are in `local.py`, what is behind a wire has
files of its own.

A Target only moves bytes; what goes where, and whether it may, is decided elsewhere. Methods raise OSError.

What every target can do is write, make zeros and flush. The rest it states in `abilities`, and the planner uses what
there is: a target that hashes by itself is asked for digests instead of data, one that copies is given no block that
another place of its disk has already.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from erofs_edge.flash.image import read_table

BLOCK = 4096  # bytes: what is written or left alone
LOOKING = "--plan, --verify-only and `slots show` work without writing"
STEPS = (1 << 20, 64 << 10, BLOCK)  # bytes of the pieces that are asked for, from the top down


class Identity(NamedTuple):
    """What a target says it is. `size` in bytes; a file that does not exist yet has 0."""

    path: str
    kind: Literal["file", "block", "nbd", "provision", "fastboot", "serial"]
    size: int
    sector: int = 512
    model: str = ""
    serial: str = ""
    removable: bool = False
    product: str = ""
    """what a board answers when it is asked which one it is; '' where it cannot be asked, or does not say"""
    names: tuple[str, ...] = ()
    """what such a board answers besides, less exact: of a device tree's `compatible` all but the first"""
    read_only: bool = False
    """it can be looked at, and no more"""


class Effort(NamedTuple):
    """What a target is known to need at the least to make something of what is packed.

    request  seconds of a request
    byte     seconds for each byte that is unpacked, besides
    """

    request: float = 0.0
    byte: float = 0.0


class Ability(enum.Flag):
    """What a target can do besides writing.

    READ    `read` gives what the medium holds
    HASH    `digests` are made where the data is, and cost the wire a digest for each range
    COPY    `copy` moves data inside the target
    PATCH   `patch` makes data from a reference inside the target and a delta
    ACTIVATE  `activate` chooses the slot, where the target keeps that state in its own way
    REBOOT  `reboot` starts what was written
    TABLE   partitions have names and the target makes the table itself, by `make_table`; what lies outside of all
            partitions cannot be reached
    """

    NONE = 0
    READ = enum.auto()
    HASH = enum.auto()
    COPY = enum.auto()
    PATCH = enum.auto()
    ACTIVATE = enum.auto()
    REBOOT = enum.auto()
    TABLE = enum.auto()


class Target(Protocol):
    """Random access to what is written; offsets and lengths in bytes. A method without its ability raises
    OSError(EOPNOTSUPP)."""

    @property
    def identity(self) -> Identity: ...

    @property
    def abilities(self) -> Ability: ...

    @property
    def hash_name(self) -> str:
        """What `digests` are: 'sha256', 'sha256-232' (its first 29 bytes) where answers are short, 'blake2b' (its 64
        bytes), or 'crc32' (four bytes, big endian) where the device has nothing better."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """Bytes of the pieces that digests are asked for, from the top down. Below the last one a block is written for
        less than asked."""
        ...

    @property
    def cheap_zeros(self) -> bool:
        """Whether making zeros costs less than reading what is there."""
        ...

    @property
    def bytes_on_wire(self) -> int | None:
        """Bytes that went to and from a remote target; None for one that is here."""
        ...

    def claim(self) -> None:
        """Be the only one that writes, until `close`. Called before what is there is compared with what is to be.
        Raises DeviceRefusedError where another host or program writes, saying who, or nobody may."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """What the medium holds; shorter only at its end. Sees everything that was flushed."""
        ...

    @property
    def at_once(self) -> int:
        """Threads that may read at a time."""
        ...

    def holds(self, offset: int, want: bytearray) -> bool:
        """Whether the medium has exactly these bytes there."""
        ...

    @property
    def file(self) -> int | None:
        """The descriptor of an open file of this machine that is the target, byte for byte; None for what is none."""
        ...

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write some of the data, at least one byte, and return how much."""
        ...

    def send(self, offset: int, file: int, at: int, length: int) -> bool:
        """Write bytes [at, at + length) of an open file (its descriptor) that need not come through this program, or
        nothing: False. What fails may be raised as late as `flush`."""
        ...

    def settle(self) -> None:
        """What was sent has arrived, if not on the medium: what failed until now is raised."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros."""
        ...

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(start, end) of what may hold anything but zeros inside a range."""
        ...

    def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """HASH: one digest for each (offset, length), in order, of what the medium holds. One call may have thousands
        of ranges; the target divides them as its wire needs."""
        ...

    def copy(self, source: int, offset: int, length: int) -> None:
        """COPY: make bytes [offset, offset + length) what [source, source + length) is. The two do not overlap."""
        ...

    def patch(self, source: int, source_length: int, offset: int, length: int, delta: bytes) -> None:
        """PATCH: unpack a zstd frame whose dictionary is the content of [source, source + source_length), which
        gives `length` bytes (`zstd --patch-from`), and make bytes from `offset` on these. Blocks of 4096 bytes that are
        right already are not written again. The two ranges do not overlap; a length of 0 stands for no dictionary, and
        then there may be several frames, one behind the other."""
        ...

    @property
    def effort(self) -> Effort:
        """PATCH: what unpacking is known to cost at the least."""
        ...

    def activate(self, slot: str) -> None:
        """ACTIVATE: start this slot ('a') next."""
        ...

    def reboot(self) -> None:
        """REBOOT: leave, and start what is there now. The target is of no use afterwards but for `close`."""
        ...

    def partitions(self) -> dict[str, tuple[int, int]]:
        """Name → (start, end) in bytes, as the target has them now; none where there is no table to believe."""
        ...

    def make_table(self, raw: bytes) -> None:
        """TABLE: have these partitions from now on: the start of a disk, a protective MBR and a GPT."""
        ...

    def flush(self) -> None:
        """Everything written is on the medium, and later reads come from there."""
        ...

    def flush_part(self, offset: int, length: int) -> None:
        """Everything written is on the medium, and later reads of these bytes come from there; what was read of the
        rest may be kept, for whoever asks next."""
        ...

    def finish(self) -> None:
        """All went well: make the result visible under its name."""
        ...

    def close(self) -> None:
        """Give up what is held; without `finish` a new file vanishes."""
        ...


class PlainTarget:
    """What a target that can read and nothing else besides answers."""

    @property
    def identity(self) -> Identity:
        raise NotImplementedError

    @property
    def cheap_zeros(self) -> bool:
        return False

    @property
    def bytes_on_wire(self) -> int | None:
        return None

    def claim(self) -> None:
        """Nobody else can reach it."""

    def read(self, offset: int, length: int) -> bytes:
        raise _unable("be read")

    @property
    def at_once(self) -> int:
        return 1

    def holds(self, offset: int, want: bytearray) -> bool:
        return self.read(offset, len(want)) == want

    @property
    def file(self) -> int | None:
        return None

    @property
    def abilities(self) -> Ability:
        return Ability.READ

    @property
    def hash_name(self) -> str:
        return "sha256"

    @property
    def steps(self) -> tuple[int, ...]:
        return STEPS

    def send(self, offset: int, file: int, at: int, length: int) -> bool:
        return False

    def settle(self) -> None:
        """Nothing is under way when a call returns."""

    @property
    def effort(self) -> Effort:
        return Effort()

    def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        raise _unable("hash")

    def copy(self, source: int, offset: int, length: int) -> None:
        raise _unable("copy")

    def patch(self, source: int, source_length: int, offset: int, length: int, delta: bytes) -> None:
        raise _unable("patch")

    def activate(self, slot: str) -> None:
        raise _unable("choose a slot")

    def reboot(self) -> None:
        raise _unable("restart")

    def partitions(self) -> dict[str, tuple[int, int]]:
        size = self.identity.size
        table = read_table(self.read, size) if size and Ability.READ in self.abilities else None
        return {} if table is None else table.places()

    def make_table(self, raw: bytes) -> None:
        raise _unable("make a table")

    def flush(self) -> None:
        raise NotImplementedError

    def flush_part(self, offset: int, length: int) -> None:
        self.flush()


def _unable(what: str) -> OSError:
    return OSError(errno.EOPNOTSUPP, f"the target cannot {what}")
