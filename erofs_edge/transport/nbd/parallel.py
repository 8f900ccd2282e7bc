# SPDX-License-Identifier: Apache-2.0
"""Several connections to one export, where the server allows it (CAN_MULTI_CONN): large ranges go over all of them.

One connection is served by one processor at each end for most of the way; sending and receiving do not hold Python's
lock, so a thread for each connection helps, as long as there are processors for them: more than that take the cache
from each other. The specification promises that a flush on one covers what was answered on others. Nothing but what was
posted is under way when another request is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from threading import Thread

from erofs_edge.transport.nbd.client import Take
from erofs_edge.transport.nbd.connect import TIMEOUT, Address, Connection, Trust
from erofs_edge.transport.nbd.wire import Transmission

CONNECTIONS = 4  # at most, as nbdcopy
SHARE_MIN = 512 << 10  # bytes that are worth another connection
ALIGN = 4096

Job = Callable[[Connection], None]


class Connections(Connection):
    """As `Connection`, with a thread for each; one only where the server takes no second one."""

    def __init__(
        self, address: Address, *, trust: Trust | None = None, timeout: float = TIMEOUT, count: int | None = None
    ) -> None:
        """`count`: of connections; by default one for each processor that this process may use."""
        super().__init__(address, trust=trust, timeout=timeout)
        self._others: list[Connection] = []
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        self._failures: list[BaseException] = []
        self._jobs: SimpleQueue[tuple[Connection, Job] | None] = SimpleQueue()
        self._threads: list[Thread] = []
        count = count or min(CONNECTIONS, len(os.sched_getaffinity(0)))
        try:
            while self.export.can(Transmission.CAN_MULTI_CONN) and self.count < count:
                self._others.append(Connection(address, trust=trust, timeout=timeout))
        except BaseException:
            self.close()
            raise
        for connection in (self, *self._others):
            self._idle.put(connection)

    @property
    def count(self) -> int:
        """Connections that are open."""
        return 1 + len(self._others)

    @property
    def sent(self) -> int:
        return super().sent + sum(other.sent for other in self._others)

    @property
    def received(self) -> int:
        return super().received + sum(other.received for other in self._others)

    def read_into(self, offset: int, target: memoryview) -> None:
        self._spread(
            [
                partial(Connection.read_into, offset=offset + at, target=target[at:end])
                for at, end in self._shares(len(target))
            ]
        )

    def deliver_from(self, places: Iterator[int], piece: int, end: int, take: Take) -> None:
        self._spread([partial(Connection.deliver_from, places=places, piece=piece, end=end, take=take)] * self.count)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self._spread(
            [partial(Connection.write_all, places=[(offset + at, view[at:end])]) for at, end in self._shares(len(view))]
        )

    def write_all(self, places: Iterable[tuple[int, bytes | memoryview]]) -> None:
        self.settle()
        super().write_all(places)

    def zero(self, offset: int, length: int) -> None:
        self.settle()
        super().zero(offset, length)

    def flush(self) -> None:
        self.settle()
        super().flush()

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        self.settle()
        yield from super().data(offset, length)

    def post_file(self, offset: int, file: int, at: int, length: int) -> None:
        for start, end in self._shares(length):
            self._post(
                partial(Connection.write_file, offset=offset + start, file=file, at=at + start, length=end - start)
            )

    def settle(self) -> None:
        links = [self._idle.get() for _ in range(self.count)] if self._threads else []
        for link in links:
            self._idle.put(link)
        self._tell()

    def close(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        for other in self._others:
            other.close()
        super().close()

    def _shares(self, length: int) -> Iterator[tuple[int, int]]:
        """(start, end) of what each connection gets."""
        shares = max(1, min(self.count, length // SHARE_MIN))
        step = -(-length // shares // ALIGN) * ALIGN
        for start in range(0, length, step or 1):
            yield start, min(start + step, length)

    def _spread(self, jobs: Sequence[Job]) -> None:
        """Returns when all are done."""
        self.settle()
        if len(jobs) == 1:
            jobs[0](self)
            return
        for job in jobs:
            self._post(job)
        self.settle()

    def _post(self, job: Job) -> None:
        """Have it done by a connection that has nothing to do. Raises what an earlier one met with."""
        link = self._idle.get()
        if self._failures:
            self._idle.put(link)
            self.settle()
        self._jobs.put((link, job))
        if len(self._threads) < self.count:
            thread = Thread(target=self._work, name="nbd", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _work(self) -> None:
        """A thread that carries out jobs, until None comes instead of one."""
        while (todo := self._jobs.get()) is not None:
            link, job = todo
            try:
                job(link)
            except BaseException as error:
                self._failures.append(error)
            finally:
                self._idle.put(link)

    def _tell(self) -> None:
        """The first failure, once."""
        failures, self._failures = self._failures, []
        if failures:
            raise failures[0]
