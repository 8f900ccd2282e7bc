# SPDX-License-Identifier: Apache-2.0
"""The simulated device's side of USB: what FunctionFS is told, and how messages become transfers."""

from __future__ import annotations

import errno
import random

import pytest

from erofs_edge.simulator.fastboot import FastbootDevice
from erofs_edge.simulator.fastboot_usb import LARGEST, PACKET, converse, descriptors, reading, strings


def test_what_the_kernel_is_told() -> None:
    """functionfs.h: heads, then an interface of class ff, subclass 42, protocol 3 with two bulk endpoints, twice."""
    interface, ends = "09 04 00 00 02 ff 42 03 01", "07 05 {} 02 {} 00"
    slow, fast = (
        " ".join([interface, ends.format("81", size), ends.format("02", size)]) for size in ("40 00", "00 02")
    )
    head = "03000000 42000000 03000000 03000000 03000000"
    assert descriptors() == bytes.fromhex(f"{head} {slow} {fast}")
    assert strings() == bytes.fromhex("02000000 1b000000 01000000 01000000 0904") + b"fastboot\0"


@pytest.mark.parametrize(
    ("missing", "size"), [(0, 512), (1, 512), (512, 512), (513, 1024), (65535, 65536), (1 << 30, 65536)]
)
def test_reads_end_where_the_data_does(missing: int, size: int) -> None:
    assert reading(missing) == size


class Endpoints:
    """Transfers of a host to a device and back, as a controller makes them of packets."""

    def __init__(self, transfers: list[bytes]) -> None:
        self.transfers = transfers
        self.said: list[bytes] = []

    def read(self, size: int) -> bytes:
        if not self.transfers:
            raise OSError(errno.ESHUTDOWN, "the gadget is unbound")
        assert size % PACKET == 0, "a packet is cut"
        first, rest = self.transfers[0][:size], self.transfers[0][size:]
        self.transfers[:1] = [rest] if rest else []
        assert len(first) == size or len(first) % PACKET, "a read that does not end"
        return first


@pytest.mark.parametrize("size", [1, 512, 4096, 65536, 300_001])
def test_messages_by_transfers(size: int) -> None:
    """Every read ends with what is to come, and every answer is of a size that an endpoint takes."""
    content = random.Random(size).randbytes(size)
    fake = FastbootDevice({"data": bytearray(size)})
    ends = Endpoints([f"download:{size:08x}".encode(), content, b"flash:data", b"fetch:data", b"getvar:product"])
    converse(fake, ends.read, ends.said.append)
    assert bytes(fake.partitions["data"][:]) == content
    head, *data, good, product = ends.said[3:]
    assert ends.said[:3] == [f"DATA{size:08x}".encode(), b"OKAY", b"OKAY"]
    assert (head, b"".join(data), good, product) == (ends.said[0], content, b"OKAY", b"OKAYsimulated")
    assert max(map(len, data)) <= LARGEST
