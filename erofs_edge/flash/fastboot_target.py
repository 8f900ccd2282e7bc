# SPDX-License-Identifier: Apache-2.0
"""A fastboot device as a target: addresses are those of the image, and the device is addressed by partition name.

Writes are gathered until a flush and sent to each partition as a sparse image that leaves everything else alone
("don't care"), so single blocks can be written. Devices with `fetch` can be read; others can only be written.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from erofs_edge.disk.android_sparse import BLOCK, CHUNK, FILL_SIZE, HEADER, Piece, Run
from erofs_edge.errors import DeviceRefusedError
from erofs_edge.flash.comparing import CHUNK as WRITTEN
from erofs_edge.flash.survey import chunks
from erofs_edge.flash.target import Ability, Identity, PlainTarget
from erofs_edge.transport.fastboot import client
from erofs_edge.transport.fastboot.link import Device

BUFFER_MAX = 64 << 20  # bytes gathered at most
BUFFER_DEFAULT = 16 << 20  # bytes, for a device that does not report its limit
ROOM = 64 << 10  # bytes of headers that a download has at most, besides the data
TABLE_SECTORS = 34  # protective MBR, header and 128 entries: what devices accept as a table


@dataclass(slots=True)
class _Waiting:
    """Bytes for [offset, offset + length) of a partition; None stands for zeros."""

    offset: int
    length: int
    data: bytes | None


class FastbootTarget(PlainTarget):
    """A fastboot device. `places`: partition name → (start, end) in the image, in bytes. `size`: bytes of the image.

    Methods raise OSError for an address outside all partitions, DeviceError if the device is lost, DeviceRefusedError
    with the device's reason if it refuses.
    """

    def __init__(
        self, device: Device, places: Mapping[str, tuple[int, int]], size: int, *, most: int = BUFFER_MAX
    ) -> None:
        """`most`: bytes of a download, if the device accepts that many."""
        self._device, self._places = device, dict(places)
        product = self._variable("product")
        self._identity = Identity(
            device.link.name, "fastboot", size, model=product, serial=self._variable("serialno"), product=product
        )
        fetch = self._variable("max-fetch-size")
        self._fetch = min(client.parse_number(fetch), BUFFER_MAX) if fetch else 0
        limit = self._variable("max-download-size") or self._variable("downloadsize")
        self._limit = min(client.parse_number(limit) if limit else BUFFER_DEFAULT, most)
        # send before the next piece: it would not fit, and the rest of it, no larger than some headers, would need its
        # own download
        self._enough = self._limit - WRITTEN - ROOM if self._limit > 2 * WRITTEN else self._limit - 1
        self._waiting: dict[str, list[_Waiting]] = {}
        self._held = self._received = 0

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def abilities(self) -> Ability:
        return Ability.TABLE | Ability.REBOOT | Ability.ACTIVATE | (Ability.READ if self._fetch else Ability.NONE)

    @property
    def cheap_zeros(self) -> bool:
        return True

    @property
    def bytes_on_wire(self) -> int:
        return self._device.sent + self._received

    @property
    def unlocked(self) -> str:
        """The device's answer about its lock: 'yes', 'no', or '' if it does not say."""
        return self._variable("unlocked")

    @property
    def rate(self) -> float | None:
        """Measured rate of the link in bytes per second."""
        try:
            return self._device.rate()
        except DeviceRefusedError:
            return None  # it holds less than the sample

    def partitions(self, made_for: int = 0) -> dict[str, tuple[int, int]]:
        """The image's partitions that the device has, with the device's sizes; where they lie is up to the device."""
        found = {}
        for name, (start, _) in self._places.items():
            size = self._variable(f"partition-size:{name}")
            if size:
                found[name] = (start, start + client.parse_size(size))
        return found

    def make_table(self, raw: bytes) -> None:
        table = raw[: TABLE_SECTORS * 512]
        with _asked("to write 'gpt'"):
            self._flash("gpt", table)

    def read(self, offset: int, length: int) -> bytes:
        if not self._fetch:
            raise OSError(errno.EOPNOTSUPP, "the device has nothing to fetch with")
        self._send()
        data = bytearray()
        for name, start, count in self._pieces(offset, length):
            for at, part in chunks([(start, start + count)], self._fetch):
                with _asked(f"to read '{name}'"):
                    got = self._device.run(client.upload(f"fetch:{name}:{at:#x}:{part:#x}", part)).data
                self._received += len(got)
                data += got
                if len(got) < part:
                    return bytes(data)
        return bytes(data)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        view, done = memoryview(data), 0
        for name, at, count in self._pieces(offset, len(view)):
            self._hold(name, _Waiting(at, count, bytes(view[done : done + count])))
            done += count
        return len(view)

    def zero(self, offset: int, length: int) -> None:
        for name, at, count in self._pieces(offset, length):
            self._hold(name, _Waiting(at, count, None))

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield offset, offset + length

    def activate(self, slot: str) -> None:
        self._device.run(client.command(f"set_active:{slot}"))

    def reboot(self) -> None:
        self._device.run(client.command("reboot"))

    def flush(self) -> None:
        """Nothing more to do: a device that answers OKAY has written the data, and there is no other command for it."""
        self._send()

    def finish(self) -> None:
        """Nothing to do: the device manages its own table."""

    def close(self) -> None:
        self._device.link.close()

    def _variable(self, name: str) -> str:
        try:
            return self._device.run(client.variable(name)).value
        except DeviceRefusedError:
            return ""

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[str, int, int]]:
        """Yield (partition, offset in it, bytes) for a range."""
        while length:
            found = [(n, start, end) for n, (start, end) in self._places.items() if start <= offset < end]
            if not found:
                raise OSError(errno.ENXIO, f"byte {offset:#x} is in no partition of the device")
            name, start, end = found[0]
            count = min(length, end - offset)
            yield name, offset - start, count
            offset, length = offset + count, length - count

    def _hold(self, name: str, piece: _Waiting) -> None:
        if piece.offset % BLOCK:
            raise OSError(errno.EINVAL, f"byte {piece.offset:#x} of {name} is not the start of a block")
        waiting = self._waiting.setdefault(name, [])
        end = piece.offset + -(-piece.length // BLOCK) * BLOCK
        if any(other.offset < end and piece.offset < other.offset + other.length for other in waiting):
            self._send()
            waiting = self._waiting.setdefault(name, [])
        waiting.append(piece)
        self._held += piece.length if piece.data is not None else 0
        if self._held > self._enough:
            self._send()

    def _send(self) -> None:
        """Send everything that is waiting, partition by partition in the order of their first writes."""
        waiting, self._waiting, self._held = self._waiting, {}, 0
        for name, pieces in waiting.items():
            start, end = self._places[name]
            for batch in _batches(sorted(pieces, key=lambda one: one.offset), self._limit):
                runs = tuple(
                    Run(one.offset // BLOCK, -(-one.length // BLOCK), has_data=one.data is not None) for one in batch
                )
                sparse = Piece(runs, -(-(end - start) // BLOCK))
                with _asked(f"to write '{name}'"):
                    self._flash(name, b"".join(sparse.encode(_Reader(batch))))

    def _flash(self, name: str, raw: bytes) -> None:
        """Send one sparse image."""
        self._device.run(client.download(len(raw), [raw]))
        self._device.run(client.command(f"flash:{name}"))


@contextmanager
def _asked(what: str) -> Iterator[None]:
    """Say what the device refuses, and what to do about it."""
    try:
        yield
    except DeviceRefusedError as error:
        error.message = f"the device refuses {what}: {error.message}"
        error.hint = error.hint or "restart it in fastboot mode, and run the same command again"
        raise


class _Reader:
    """Gives the encoder read(offset, length) over the waiting data."""

    def __init__(self, batch: list[_Waiting]) -> None:
        self._batch = batch

    def __call__(self, offset: int, length: int) -> bytes:
        for one in self._batch:
            if one.data is not None and one.offset <= offset < one.offset + one.length:
                return one.data[offset - one.offset : offset - one.offset + length]
        return b""


def _batches(pieces: list[_Waiting], limit: int) -> Iterator[list[_Waiting]]:
    """Split the waiting data into parts that one download can hold."""
    room = limit - HEADER.size - 2 * CHUNK.size
    batch: list[_Waiting] = []
    used = 0
    for piece in pieces:
        at = 0
        while at < piece.length:
            fits = max(0, (room - used - 2 * CHUNK.size) // BLOCK * BLOCK)
            count = piece.length - at if piece.data is None else min(piece.length - at, fits)
            if count <= 0 or room - used < 2 * CHUNK.size + FILL_SIZE:
                if not batch:
                    raise OSError(errno.ENOBUFS, f"the device takes {limit} bytes at a time: too few for anything")
                yield batch
                batch, used = [], 0
                continue
            data = None if piece.data is None else piece.data[at : at + count]
            batch.append(_Waiting(piece.offset + at, count, data))
            used += 2 * CHUNK.size + (FILL_SIZE if data is None else -(-count // BLOCK) * BLOCK)
            at += count
    if batch:
        yield batch
