# SPDX-License-Identifier: Apache-2.0
"""A fastboot device in memory: the device's side of the protocol, and sockets for it (TCP and UDP).

`FastbootDevice` is the device without I/O: a message in, messages out. `serve_tcp` and `serve_udp` put it on a socket
of this machine, for Google's `fastboot -s tcp:…` or our own client.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from struct import Struct

from erofs_edge.disk import android_sparse
from erofs_edge.errors import FormatError
from erofs_edge.simulator.partitions import DiskPartitions

SLOTS = ("a", "b")
FETCH_MAX = 1 << 20  # bytes returned at once
PACKET = 64 << 10  # bytes of data sent at once
_HEADER = Struct(">BBH")
_QUERY, _INIT, _FASTBOOT, _ERROR = 1, 2, 3, 0


@dataclass(slots=True)
class FastbootDevice:
    """A simulated fastboot device.

    partitions  contents by name; a flash changes them in place. Those of a simulated disk change with its table
    variables   what `getvar` answers besides what follows from the partitions
    memory      bytes of its download buffer
    given       bytes that it returns at once (max-fetch-size)
    quirks      "no-slots": knows no slot variables, like U-Boot 2025.01; "no-fetch": returns no data, like that too
    log         commands, as received
    """

    partitions: Mapping[str, bytearray] | DiskPartitions
    variables: dict[str, str] = field(default_factory=dict)
    memory: int = 64 << 20
    given: int = FETCH_MAX
    quirks: frozenset[str] = frozenset()
    log: list[str] = field(default_factory=list)
    slot: str = "a"
    _buffer: bytearray = field(default_factory=bytearray)
    _expected: int = 0

    @property
    def missing(self) -> int:
        """Bytes of a download still to come; 0 if a command is expected."""
        return self._expected - len(self._buffer) if self._expected else 0

    def hear(self, message: bytes) -> list[bytes]:
        """The device's answers to one message."""
        if self._expected:
            self._buffer += message
            if len(self._buffer) < self._expected:
                return []
            fits = len(self._buffer) == self._expected
            self._expected = 0
            return [b"OKAY"] if fits else [b"FAILmore data than announced"]
        text = message.decode("utf-8", "replace")
        self.log.append(text)
        verb, _, argument = text.partition(":")
        action = self._actions().get(verb)
        try:
            return action(argument) if action else [b"FAILunknown command"]
        except KeyError as error:
            return [f"FAILno such partition: {error.args[0]}".encode()[:250]]
        except (ValueError, FormatError, OSError) as error:
            return [f"FAIL{error}".encode()[:250]]

    def _actions(self) -> Mapping[str, Callable[[str], list[bytes]]]:
        return {
            "getvar": self._getvar,
            "download": self._download,
            "flash": self._flash,
            "erase": self._erase,
            "set_active": self._set_active,
            "upload": lambda _: self._send(bytes(self._buffer)),
            "fetch": self._fetch,
            "reboot": lambda _: [b"OKAY"],
            "reboot-bootloader": lambda _: [b"OKAY"],
            "continue": lambda _: [b"OKAY"],
            "boot": lambda _: [b"OKAY"] if self._buffer else [b"FAILnothing was downloaded"],
        }

    def _known(self) -> dict[str, str]:
        known = {"version": "0.4", "product": "simulated", "max-download-size": f"{self.memory:#x}"}
        if "no-fetch" not in self.quirks:
            known["max-fetch-size"] = f"{self.given:#x}"
        if "no-slots" not in self.quirks:
            known |= {"slot-count": str(len(SLOTS)), "current-slot": self.slot}
        for name, content in self.partitions.items():
            known |= {f"partition-size:{name}": f"{len(content):#x}", f"partition-type:{name}": "raw"}
        bases = {name.rpartition("_")[0] for name in self.partitions if name.endswith(("_a", "_b"))}
        known |= {f"has-slot:{name}": "no" for name in self.partitions}
        return known | {f"has-slot:{base}": "yes" for base in bases} | self.variables

    def _getvar(self, name: str) -> list[bytes]:
        known = self._known()
        if name == "all":
            return [*(f"INFO{key}: {value}".encode() for key, value in sorted(known.items())), b"OKAY"]
        if name in known:
            return [b"OKAY" + known[name].encode()]
        return [b"FAILVariable not implemented"]

    def _download(self, argument: str) -> list[bytes]:
        size = int(argument, 16)
        if not 0 < size <= self.memory:
            return [b"FAILdata too large"]
        self._buffer, self._expected = bytearray(), size
        return [f"DATA{size:08x}".encode()]

    def _flash(self, name: str) -> list[bytes]:
        if name == "gpt" and isinstance(self.partitions, DiskPartitions):
            self.partitions.write_table(bytes(self._buffer))
            return [b"OKAY"]
        content = self.partitions[name]
        if android_sparse.is_sparse(bytes(self._buffer[:4])):

            def write(offset: int, data: bytes | memoryview) -> None:
                content[offset : offset + len(data)] = data

            android_sparse.decode(memoryview(self._buffer), write, len(content))
        elif len(self._buffer) > len(content):
            return [b"FAILtoo large for partition"]
        else:
            content[: len(self._buffer)] = self._buffer
        return self._written()

    def _erase(self, name: str) -> list[bytes]:
        content = self.partitions[name]
        content[:] = b"\xff" * len(content)
        return self._written()

    def _written(self) -> list[bytes]:
        if isinstance(self.partitions, DiskPartitions):
            self.partitions.disk.flush()
        return [b"OKAY"]

    def _set_active(self, slot: str) -> list[bytes]:
        if slot not in SLOTS:
            return [b"FAILno such slot"]
        self.slot = slot
        return [b"OKAY"]

    def _fetch(self, argument: str) -> list[bytes]:
        if "no-fetch" in self.quirks:
            return [b"FAILunknown command"]
        name, _, rest = argument.partition(":")
        start, _, size = rest.partition(":")
        first = int(start or "0", 16)
        content = self.partitions[name]
        count = int(size, 16) if size else len(content) - first
        if not 0 <= count <= self.given:
            return [b"FAILmore than max-fetch-size"]
        return self._send(bytes(content[first : first + count]))

    def _send(self, data: bytes) -> list[bytes]:
        parts = [data[at : at + PACKET] for at in range(0, len(data), PACKET)]
        return [f"DATA{len(data):08x}".encode(), *parts, b"OKAY"]


@contextmanager
def serve_tcp(device: FastbootDevice) -> Iterator[str]:
    """Serve the device on a free TCP port of this machine; yields its address for `-s`. One connection at a time."""
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_accept, args=(listener, device), daemon=True)
    thread.start()
    try:
        yield f"tcp:127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def _accept(listener: socket.socket, device: FastbootDevice) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            with client, suppress(OSError, EOFError):
                _converse(client, device)


def _converse(client: socket.socket, device: FastbootDevice) -> None:
    client.sendall(b"FB01")
    _exactly(client, 4)
    while True:
        size = int.from_bytes(_exactly(client, 8), "big")
        for answer in device.hear(_exactly(client, size)):
            client.sendall(len(answer).to_bytes(8, "big") + answer)


def _exactly(client: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = client.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)


class UdpSide:
    """The device's side of fastboot over UDP: a packet in, the answering packet out."""

    def __init__(self, device: FastbootDevice, *, packet_size: int = 1024) -> None:
        self._device = device
        self._size = packet_size
        self._sequence = 0x42
        self._message = b""
        self._answers: list[bytes] = []
        self._last = b""

    def hear(self, packet: bytes) -> bytes | None:
        if len(packet) < _HEADER.size:
            return None
        kind, flags, sequence = _HEADER.unpack_from(packet)
        data = packet[_HEADER.size :]
        if kind == _QUERY:
            return _HEADER.pack(_QUERY, 0, sequence) + self._sequence.to_bytes(2, "big")
        if sequence == self._sequence - 1 & 0xFFFF and self._last:
            return self._last  # the answer was lost: repeat it, and do nothing twice
        if sequence != self._sequence:
            return None
        answer, more = b"", False
        if kind == _INIT:
            self._message, self._answers = b"", []
            answer = Struct(">HH").pack(1, self._size)
        elif kind == _FASTBOOT and (data or flags):
            self._message += data
            if not flags:
                self._answers += self._device.hear(self._message)
                self._message = b""
        elif kind == _FASTBOOT:
            answer, more = self._next_part()
        else:
            return _HEADER.pack(_ERROR, 0, sequence) + b"unknown packet"
        self._last = _HEADER.pack(kind, int(more), sequence) + answer
        self._sequence = self._sequence + 1 & 0xFFFF
        return self._last

    def _next_part(self) -> tuple[bytes, bool]:
        if not self._answers:
            return b"", False
        room = self._size - _HEADER.size
        part, rest = self._answers[0][:room], self._answers[0][room:]
        if rest:
            self._answers[0] = rest
        else:
            self._answers.pop(0)
        return part, bool(rest)


Fault = Callable[[bytes], list[bytes]]
"""what a link makes of a packet: nothing, the packet, or several"""


@contextmanager
def serve_udp(device: FastbootDevice, fault: Fault = lambda packet: [packet]) -> Iterator[str]:
    """Serve the device on a free UDP port of this machine; yields its address for `-s`. `fault` applies to both
    directions.
    """
    side = UdpSide(device)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    server.settimeout(0.1)
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            try:
                packet, peer = server.recvfrom(65536)
            except OSError:
                continue
            for heard in fault(packet):
                answer = side.hear(heard)
                for said in fault(answer) if answer is not None else []:
                    server.sendto(said, peer)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"udp:127.0.0.1:{server.getsockname()[1]}"
    finally:
        stopping.set()
        thread.join()
        server.close()


class MemoryLink:
    """A link to a simulated device in memory, for `transport.fastboot.link.Device`."""

    def __init__(self, device: FastbootDevice) -> None:
        self.name = "simulated"
        self._device = device
        self._answers: list[bytes] = []

    def send(self, message: bytes | memoryview) -> None:
        self._answers += self._device.hear(bytes(message))

    def receive(self, left: int | None = None, patience: float = 0) -> bytes:
        if not self._answers:
            raise OSError(errno.EPIPE, "the device says nothing")
        return self._answers.pop(0)

    def close(self) -> None:
        """Nothing to do."""
