# SPDX-License-Identifier: Apache-2.0
"""What a disk image is written to. Files and block devices of this machine are in `local.py`; remote targets have files
of their own.

A Target only moves bytes; what goes where, and whether it may, is decided elsewhere. Methods raise OSError.

Every target can write, zero and flush. It states everything else in `abilities`, and the planner uses what is there: a
target that can hash is asked for digests instead of data, and one that can copy is sent no block that its disk already
has elsewhere.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from erofs_edge.flash.image import read_table

if TYPE_CHECKING:
    from erofs_edge.disk.gpt import Table
    from erofs_edge.disk.gpt_copies import Mend

BLOCK = 4096  # bytes: the unit that is written or left alone
LOOKING = "--plan, --verify-only and `slots show` work without writing"
STEPS = (1 << 20, 64 << 10, BLOCK)  # bytes of the pieces whose digests are requested, top-down


class Identity(NamedTuple):
    """What a target says it is. `size` in bytes; 0 for a file that does not exist yet."""

    path: str
    kind: Literal["file", "block", "nbd", "provision", "fastboot", "serial"]
    size: int
    sector: int = 512
    model: str = ""
    serial: str = ""
    removable: bool = False
    product: str = ""
    """what a board reports as its name; '' if it cannot be asked or does not say"""
    names: tuple[str, ...] = ()
    """further, less specific names of such a board: all but the first entry of a device tree's `compatible`"""
    read_only: bool = False
    """whether it can only be looked at"""


class Effort(NamedTuple):
    """Least known cost of unpacking on a target.

    request  seconds per request
    byte     further seconds per unpacked byte
    """

    request: float = 0.0
    byte: float = 0.0


class Ability(enum.Flag):
    """What a target can do besides writing.

    READ      `read` returns what the medium holds
    HASH      `digests` are computed where the data is; each costs the wire only the digest
    COPY      `copy` moves data inside the target
    PATCH     `patch` makes data from a delta and a reference inside the target
    ACTIVATE  `activate` chooses the slot, if the target keeps that state in its own way
    REBOOT    `reboot` starts what was written
    TABLE     partitions have names, and the target makes the table itself, by `make_table`; nothing outside partitions
              can be reached
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
    """Random access to what is written; offsets and lengths in bytes. A method whose ability is missing raises
    OSError(EOPNOTSUPP)."""

    @property
    def identity(self) -> Identity: ...

    @property
    def abilities(self) -> Ability: ...

    @property
    def hash_name(self) -> str:
        """Kind of `digests`: 'sha256'; 'sha256-232' (its first 29 bytes) if answers are short; 'blake2b' (its 64
        bytes); or 'crc32' (four bytes, big-endian) if the device has nothing better."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """Bytes of the pieces whose digests are requested, top-down. Below the last step, writing a block costs less
        than asking."""
        ...

    @property
    def cheap_zeros(self) -> bool:
        """Whether writing zeros costs less than reading what is there."""
        ...

    @property
    def bytes_on_wire(self) -> int | None:
        """Bytes sent to and received from a remote target; None for a local one."""
        ...

    def claim(self) -> None:
        """Become the only writer until `close`. Called before the target is compared with the image. Raises
        DeviceRefusedError if another host or program is writing, naming it, or if nobody may write."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Read what the medium holds; shorter only at its end. Sees everything that was flushed."""
        ...

    @property
    def at_once(self) -> int:
        """Number of threads that may read at the same time."""
        ...

    def holds(self, offset: int, want: bytearray) -> bool:
        """Whether the medium has exactly these bytes there."""
        ...

    @property
    def file(self) -> int | None:
        """The file descriptor of an open local file that is the target, byte for byte; None for any other target."""
        ...

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write at least one byte of the data and return how many were written."""
        ...

    def send(self, offset: int, file: int, at: int, length: int) -> bool:
        """Write bytes [at, at + length) of an open file (its descriptor) without passing them through this program;
        return False, with nothing written, if that is impossible. Errors may be raised as late as `flush`."""
        ...

    def settle(self) -> None:
        """Wait until everything sent has arrived, though not necessarily on the medium. Raises what has failed so
        far.
        """
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros."""
        ...

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of the parts of a range that may hold anything but zeros."""
        ...

    def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """HASH: one digest of what the medium holds for each (offset, length), in order. A call may have thousands of
        ranges; the target splits them as its wire requires."""
        ...

    @property
    def proof(self) -> int:
        """Bytes of the largest piece whose digest `prove` gives; 0 without `prove`."""
        ...

    def prove(self, data: Sequence[tuple[int, int]], zeros: Sequence[tuple[int, int]]) -> tuple[list[bytes], bool]:
        """HASH: in one exchange, what `digests` returns for `data`, and whether everything in `zeros` is zeros. Both
        are (offset, length), of a total that the target reads in a few minutes."""
        ...

    def copy(self, source: int, offset: int, length: int) -> None:
        """COPY: make bytes [offset, offset + length) equal to [source, source + length). The two must not overlap."""
        ...

    def patch(self, source: int, source_length: int, offset: int, length: int, delta: bytes) -> None:
        """PATCH: unpack a zstd frame whose dictionary is the content of [source, source + source_length) (`zstd
        --patch-from`), and write the resulting `length` bytes at `offset`. Blocks of 4096 bytes that are already right
        are not written again. The two ranges must not overlap. A `source_length` of 0 stands for no dictionary; there
        may then be several frames, one after another."""
        ...

    @property
    def effort(self) -> Effort:
        """PATCH: the least that unpacking is known to cost."""
        ...

    def activate(self, slot: str) -> None:
        """ACTIVATE: start this slot ('a') next."""
        ...

    def reboot(self) -> None:
        """REBOOT: leave and start what the target holds now. Only `close` may be called afterwards."""
        ...

    def partitions(self, made_for: int = 0) -> dict[str, tuple[int, int]]:
        """Name → (start, end) in bytes, as the target has them now; empty without a valid table. `made_for`: bytes of
        an image that was perhaps written to a larger disk: if the first copy is damaged, the second one may be at the
        end of that many bytes. A first copy that is all zeros is not damaged but erased."""
        ...

    def table_damage(self, mbr: bytes = b"") -> Mend | None:
        """What is wrong with the copies of the table that the last call of `partitions` read, and how to mend it; None
        if nothing is, and if the target does not reveal them. `mbr`: sector 0 of an image with the same partitions."""
        ...

    def make_table(self, raw: bytes) -> None:
        """TABLE: use these partitions from now on; given the start of a disk: a protective MBR and a GPT."""
        ...

    def flush(self) -> None:
        """Make everything written durable on the medium; later reads come from the medium."""
        ...

    def flush_part(self, offset: int, length: int) -> None:
        """As `flush`, but only reads of these bytes have to come from the medium; cached data of the rest may be kept
        for the next reader."""
        ...

    def finish(self) -> None:
        """Complete successfully: make the result visible under its name."""
        ...

    def close(self) -> None:
        """Release everything held; without `finish` a new file vanishes."""
        ...


class PlainTarget:
    """Default answers of a target that can read and has no other ability."""

    _table: Table | None = None

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
        """Nothing to do: nobody else can reach it."""

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
        """Nothing to do: each call returns only when it is done."""

    @property
    def effort(self) -> Effort:
        return Effort()

    def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        raise _unable("hash")

    @property
    def proof(self) -> int:
        return 0

    def prove(self, data: Sequence[tuple[int, int]], zeros: Sequence[tuple[int, int]]) -> tuple[list[bytes], bool]:
        raise _unable("hash")

    def copy(self, source: int, offset: int, length: int) -> None:
        raise _unable("copy")

    def patch(self, source: int, source_length: int, offset: int, length: int, delta: bytes) -> None:
        raise _unable("patch")

    def activate(self, slot: str) -> None:
        raise _unable("choose a slot")

    def reboot(self) -> None:
        raise _unable("restart")

    def partitions(self, made_for: int = 0) -> dict[str, tuple[int, int]]:
        size, self._seen = self.identity.size, dict[tuple[int, int], bytes]()
        self._table = read_table(self._read_once, size) if size and Ability.READ in self.abilities else None
        if self._table is None and 0 < made_for < size and Ability.READ in self.abilities:
            table = read_table(self._read_once, made_for)
            if table is not None:
                first = self._read_once(table.sector_size, (table.first_usable - 1) * table.sector_size)
                self._table = table if any(first) else None
        return {} if self._table is None else self._table.places()

    def table_damage(self, mbr: bytes = b"") -> Mend | None:
        if self._table is None:
            return None
        from erofs_edge.disk.gpt_copies import Mend, find_damage  # only disks with slots keep their table

        try:
            return find_damage(self._table, self._read_once, lambda at, data: self.holds(at, bytearray(data)), mbr)
        except OSError:
            if self.identity.kind not in ("file", "block"):
                raise  # a connection may be unusable after an error
            return Mend("second")  # what a medium cannot read, it may be unable to write, too

    def _read_once(self, offset: int, length: int) -> bytes:
        """As `read`, but a piece of the table is read only once: that takes seconds over a console."""
        if (offset, length) not in self._seen:
            self._seen[offset, length] = self.read(offset, length)
        return self._seen[offset, length]

    def make_table(self, raw: bytes) -> None:
        raise _unable("make a table")

    def flush(self) -> None:
        raise NotImplementedError

    def flush_part(self, offset: int, length: int) -> None:
        self.flush()


def _unable(what: str) -> OSError:
    return OSError(errno.EOPNOTSUPP, f"the target cannot {what}")
