# SPDX-License-Identifier: Apache-2.0
"""Several connections to one export, where the server allows it (CAN_MULTI_CONN): large ranges go over all of them.

One connection is served by one core at each end for most of the way; receiving does not hold Python's lock, so a thread
for each connection helps. The specification promises that a flush on one connection covers what was answered on others.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from erofs_edge.transport.nbd.connect import TIMEOUT, Address, Connection, Trust
from erofs_edge.transport.nbd.wire import Transmission

CONNECTIONS = 4  # as nbdcopy
SHARE_MIN = 512 << 10  # bytes that are worth another connection
ALIGN = 4096

Move = Callable[[Connection, int, memoryview], None]


class Connections(Connection):
    """As `Connection`, which it is where the server takes no second one."""

    def __init__(
        self, address: Address, *, trust: Trust | None = None, timeout: float = TIMEOUT, count: int = CONNECTIONS
    ) -> None:
        super().__init__(address, trust=trust, timeout=timeout)
        self._others: list[Connection] = []
        self._pool: ThreadPoolExecutor | None = None
        if not self.export.can(Transmission.CAN_MULTI_CONN) or count < 2:
            return
        try:
            for _ in range(count - 1):
                self._others.append(Connection(address, trust=trust, timeout=timeout))
        except BaseException:
            self.close()
            raise
        self._pool = ThreadPoolExecutor(len(self._others), "nbd")

    @property
    def count(self) -> int:
        """Connections that are open."""
        return 1 + len(self._others)

    def read_into(self, offset: int, target: memoryview) -> None:
        self._spread(Connection.read_into, offset, target)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._spread(Connection.write, offset, memoryview(data))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        for other in self._others:
            other.close()
        super().close()

    def _spread(self, move: Move, offset: int, data: memoryview) -> None:
        """Each connection moves one stretch. The first failure is raised when none is under way any more."""
        shares = min(self.count, len(data) // SHARE_MIN) if self._pool else 1
        if self._pool is None or shares < 2:
            move(self, offset, data)
            return
        step = -(-len(data) // shares // ALIGN) * ALIGN
        helpers = self._others[: shares - 1]
        before = sum(other.sent for other in helpers), sum(other.received for other in helpers)
        futures = [
            self._pool.submit(move, other, offset + at, data[at : at + step])
            for other, at in zip(helpers, range(step, len(data), step), strict=False)
        ]
        try:
            move(self, offset, data[:step])
        finally:
            failures = [future.exception() for future in futures]
            self.sent += sum(other.sent for other in helpers) - before[0]
            self.received += sum(other.received for other in helpers) - before[1]
        for failure in failures:
            if failure is not None:
                raise failure
