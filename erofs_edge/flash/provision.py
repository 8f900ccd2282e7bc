# SPDX-License-Identifier: Apache-2.0
"""A board that runs the provisioning system as a target: its disk is an NBD export, and the board hashes, copies and
patches by itself, so that only differences cross the network."""

from __future__ import annotations

import getpass
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from erofs_edge.errors import DeviceError, DeviceRefusedError, ProtocolError, UsageError
from erofs_edge.flash.nbd import NbdTarget, as_os_error
from erofs_edge.flash.survey import zero_digest
from erofs_edge.flash.target import BLOCK, Ability, Effort, Identity
from erofs_edge.transport.nbd import control
from erofs_edge.transport.nbd.connect import Address, Connection, parse_address
from erofs_edge.transport.nbd.parallel import Connections

BLAKE2B = "blake2b"
BOARD_NAME = "provisioning"
"""the name in every board's certificate: provision/credentials.py"""
PIECE = 4 << 20  # bytes of a request to the control export, each of which costs two processes on the device
WORK = 600.0  # seconds that a request may take: the device hashes, copies or unpacks tens of MiB for it
ZEROS, ZEROS_OLDER = 128 << 20, 64 << 20  # bytes covered by one query for zeros, and the same for older systems
PROOF = 32 << 20
"""bytes hashed by one process if only the whole counts: each of the board's processors has that much in memory"""
AT_ONCE = 8  # number of such queries in one request
LITTLE = 16 << 20  # bytes that one process checks as quickly as a second one starts
SINGLE = control.ITEMS_MAX - 2  # asked for singly; a request also has one `blocks` and one item for the medium
FEW = 4
"""ranges that are queried one by one: each costs two processes on the device, `blocks` three"""
STEPS = (512 << 10, 64 << 10, BLOCK)
"""bytes of the pieces whose digests are requested: as large as `blocks` allows"""


def open_provisioned(address: str) -> ProvisionTarget:
    """Open provision://HOST[:PORT]: the disk at PORT, the control export behind it. With TLS and the credentials made
    by `erofs-edge provision --tls FOLDER`: provisions://HOST[:PORT]?tls-certificates=FOLDER. For a folder with the
    sockets `disk` and `control` instead of a host: provision+unix:///FOLDER.

    Raises UsageError, DeviceError.
    """
    disk, commands = _addresses(address)
    connection = Connections(disk, describe=True)
    try:
        return ProvisionTarget(connection, Connection(commands, timeout=WORK, piece=PIECE))
    except BaseException:
        connection.close()
        raise


def disk_address(address: str) -> Address:
    """The address of the disk alone, for reading. Raises UsageError."""
    return _addresses(address)[0]


def _addresses(address: str) -> tuple[Address, Address]:
    """The addresses of both exports; errors about either name the address that was given."""
    scheme, _, rest = address.partition("://")
    disk_at, commands_at = f"{'nbds' if scheme == 'provisions' else 'nbd'}://{rest}", ""
    if scheme == "provision+unix":
        disk_at, commands_at = (f"nbd+unix:///?socket={quote(str(Path(rest) / name))}" for name in ("disk", "control"))
    try:
        disk = parse_address(disk_at)._replace(uri=address)
    except UsageError as error:
        error.where, error.hint = address, error.hint and error.hint.replace("nbds://", "provisions://")
        raise
    if disk.certificates is not None and not disk.name:
        disk = disk._replace(name=BOARD_NAME)
    commands = parse_address(commands_at) if commands_at else disk._replace(port=disk.port + 1)
    return disk, commands._replace(uri=f"{address} (control)")


class ProvisionTarget(NbdTarget):
    """Raises OSError like every target, and DeviceError if the other side is not a provisioning system."""

    def __init__(self, disk: Connection, commands: Connection) -> None:
        super().__init__(disk)
        self._control = commands
        if commands.size != control.SIZE:
            raise ProtocolError("the second export is no control export", where=commands.address.uri)
        self._stale = False
        """whether reads may come from the board's memory instead of the medium"""
        self._looks = True
        """whether the board can check ranges for zeros"""
        self._span = ZEROS_OLDER
        """bytes that one check for zeros may cover"""
        self._least = WORK
        """seconds of the fastest request so far"""
        self._byte: float | None = None
        """least seconds to unpack a byte; None until the board has been asked"""
        self._due = ""
        """the request to be the only one who writes, if it is still to be made"""
        self._hash = "sha256"
        if said := control.described(disk.export.description):
            self._board, self._byte = (said.serial, said.names), said.effort
            if BLAKE2B in said.digests:  # half the time of sha256 or less on processors without instructions for that
                self._hash, self._span = BLAKE2B, ZEROS
            return
        try:
            self._board = control.board(self._ask(control.WHO))
        except OSError:  # an even older system: a board that does not identify itself
            self._board = "", ()

    @property
    def identity(self) -> Identity:
        """The identity, with what the board says of itself."""
        serial, names = self._board
        plain = super().identity
        return plain._replace(kind="provision", serial=serial, product=names[0] if names else "", names=names[1:])

    def claim(self) -> None:
        """The board remembers who is writing until the connection ends. It is told with the next request, but before
        anything is written; until then nothing depends on its answer."""
        super().claim()
        user = str(os.getuid())
        with suppress(KeyError, OSError):  # a number without a name
            user = getpass.getuser()
        self._due = f"hold {control.name_of_holder(user, platform.node(), os.getpid())}"
        if self._hash != BLAKE2B:  # an older system may not support this, and would answer nothing else either
            with suppress(OSError):
                self._ask([])
            self._due = ""

    @property
    def abilities(self) -> Ability:
        return Ability.READ | Ability.HASH | Ability.COPY | Ability.PATCH | Ability.REBOOT

    @property
    def hash_name(self) -> str:
        return self._hash

    @property
    def steps(self) -> tuple[int, ...]:
        return STEPS

    @property
    def effort(self) -> Effort:
        """Asks the board once; it runs a trial, which takes about a second on an emulated board."""
        self._hold()
        if self._byte is None:
            quickest, self._byte = self._least, 0.0
            with suppress(OSError):  # an older system
                self._byte = control.effort(self._ask(["unpacks"])[0])
            self._least = quickest
        return Effort(self._least if self._least < WORK else 0.0, self._byte)

    @property
    def bytes_on_wire(self) -> int:
        return super().bytes_on_wire + self._control.sent + self._control.received

    def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        found: dict[tuple[int, int], bytes] = {}
        single: list[tuple[int, int]] = []
        many: list[tuple[int, int, int]] = []
        width = control.DIGESTS[self._hash]
        by = "" if self._hash == "sha256" else f" {self._hash}"  # an older system supports no other
        for run in runs(ranges):
            size, start, count = run
            if count < FEW:
                single += [(start + index * size, size) for index in range(count)]
            else:
                many.append(run)
        while many or single:
            asked = many[:1]  # only one per request: all trees are stored at the same place
            part, single = single[:SINGLE], single[SINGLE:]
            items = [f"blocks {size} {start} {size * count}{by}" for size, start, count in asked]
            lines = self._fresh([*items, *(f"hash {offset} {length}{by}" for offset, length in part)])
            found |= {place: _digest(line, width) for place, line in zip(part, lines[len(items) :], strict=True)}
            for size, start, count in asked:
                with as_os_error():
                    raw = self._control.read(*control.leaves(count, width))
                for index in range(count):
                    found[start + index * size, size] = raw[index * width : (index + 1) * width]
            del many[:1]
        return [found[offset, length] for offset, length in ranges]

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The device looks for data itself, so zeros cost the network almost nothing."""
        for first in range(offset, offset + length, self._span * AT_ONCE):
            pieces = shares(first, min(self._span * AT_ONCE, offset + length - first), self._span)
            for (at, size), is_zero in zip(pieces, self._zeros(pieces), strict=True):
                if not is_zero:
                    yield at, at + size

    def _zeros(self, pieces: Sequence[tuple[int, int]]) -> list[bool]:
        """Whether these ranges are zeros. An older system is asked for digests, which takes it longer."""
        if self._looks:
            try:
                return [line == "zeros" for line in self._fresh([f"zeros {at} {size}" for at, size in pieces])]
            except OSError:
                self._looks = False
        found = self.digests(pieces)
        return [digest == zero_digest(self.hash_name, size) for digest, (_, size) in zip(found, pieces, strict=True)]

    @property
    def proof(self) -> int:
        return PROOF if self._hash == BLAKE2B else 0

    def prove(self, data: Sequence[tuple[int, int]], zeros: Sequence[tuple[int, int]]) -> tuple[list[bytes], bool]:
        parts = [share for hole in zeros for share in shares(*hole, self._span)]
        items = [f"hash {offset} {length} {self._hash}" for offset, length in data]
        lines = self._fresh([*items, *(f"zeros {offset} {length}" for offset, length in parts)])
        width = control.DIGESTS[self._hash]
        found = [_digest(line, width) for line in lines[: len(items)]]
        return found, all(line == "zeros" for line in lines[len(items) :])

    def copy(self, source: int, offset: int, length: int) -> None:
        self._ask([f"copy {source} {offset} {length}"])

    def patch(self, source: int, source_length: int, offset: int, length: int, delta: bytes) -> None:
        with as_os_error():
            if len(delta) > control.DELTA_MAX:
                raise DeviceError(f"a delta of {len(delta)} bytes is too large")
            self._control.write(control.DELTAS, delta)
        self._ask([f"patch {source} {source_length} {offset} {length} {len(delta)}"])

    def read(self, offset: int, length: int) -> bytes:
        self._fresh()
        return super().read(offset, length)

    def holds(self, offset: int, want: bytearray) -> bool:
        self._fresh()
        return super().holds(offset, want)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        self._hold()
        return super().write(offset, data)

    def send(self, offset: int, file: int, at: int, length: int) -> bool:
        self._hold()
        return super().send(offset, file, at, length)

    def zero(self, offset: int, length: int) -> None:
        self._hold()
        super().zero(offset, length)

    def flush(self) -> None:
        """The board drops its cached data only when the medium is next queried, which may never happen."""
        super().flush()
        self._stale = True

    def reboot(self) -> None:
        with suppress(OSError):  # what ends the other side may be faster than its answer
            self._ask(["reboot"])

    def close(self) -> None:
        self._control.close()
        super().close()

    def _fresh(self, items: Sequence[str] = ()) -> list[str]:
        """Answers about the medium; the board's cached data is dropped first."""
        if not self._stale:
            return self._ask(items) if items else []
        answers = self._ask(["medium", *items])
        self._stale = False
        return answers[1:]

    def _hold(self) -> None:
        if self._due:
            self._ask([])

    def _ask(self, items: Sequence[str]) -> list[str]:
        """Answers of the control export. Raises DeviceRefusedError if another host is writing and we want to."""
        self.settle()
        due, self._due = self._due, ""
        items = [due, *items] if due else items
        started = time.monotonic()
        with as_os_error():
            self._control.write(0, control.request(items))
            self._control.flush()
            raw = self._control.read(control.ANSWERS, control.answer_bytes(items))
            first = raw.partition(b"\n")[0].decode("ascii", "replace")
            if due and first.startswith("held"):
                raise DeviceRefusedError(
                    f"another host is writing to this board: {control.holder(first)}",
                    where=self.identity.path,
                    hint="wait for it to finish, or stop it there",
                )
            answers = control.answers(raw, items)
        self._least = min(self._least, time.monotonic() - started)
        return answers[1:] if due else answers


def runs(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(size, start, count) of consecutive ranges with the same size, if `blocks` accepts that size; any other range is
    a run of one. No run is longer than a request may be."""
    found: list[tuple[int, int, int]] = []
    for offset, length in ranges:
        if found and length in control.BLOCKS:
            size, start, count = found[-1]
            if size == length and start + size * count == offset and size * (count + 1) <= control.SPAN_MAX:
                found[-1] = (size, start, count + 1)
                continue
        found.append((length, offset, 1))
    return found


def shares(offset: int, length: int, most: int) -> list[tuple[int, int]]:
    """Split a range into (offset, length) parts of whole blocks, `most` bytes at most. The number of equal parts is
    even, because a board checks as many at once as it has processors; a small range is one part."""
    count = 1 if length <= min(LITTLE, most) else 2 * -(-length // (2 * most))
    size = -(-length // count // BLOCK) * BLOCK
    return [(at, min(size, offset + length - at)) for at in range(offset, offset + length, size)]


def _digest(line: str, width: int) -> bytes:
    """Decode an answer. Anything malformed proves nothing: the result equals no digest."""
    try:
        raw = bytes.fromhex(line)
    except ValueError:
        return b""
    return raw if len(raw) == width else b""
