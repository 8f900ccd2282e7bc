# SPDX-License-Identifier: Apache-2.0
"""Several connections to one export, if the server allows it (CAN_MULTI_CONN): large ranges use all of them.

Each end mostly handles a connection on one processor. Sending and receiving do not hold Python's lock, so one thread
per connection helps up to the number of processors; more would only compete for the cache. Files go over one connection
without a thread, since the kernel moves them and a second connection costs the server more than it gains; with TLS,
however, encryption is work here. The specification guarantees that a flush on one connection covers what was answered
on others. When a new request is made, only posted writes are in progress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from threading import Thread

from erofs_edge.errors import ErofsEdgeError
from erofs_edge.threads import processors
from erofs_edge.transport.nbd.client import Take
from erofs_edge.transport.nbd.connect import TIMEOUT, Address, Connection, Trust
from erofs_edge.transport.nbd.wire import Transmission

CONNECTIONS = 4  # at most, like nbdcopy
SHARE_MIN = 512 << 10  # bytes that justify another connection
ALIGN = 4096

Job = Callable[[Connection], None]


class Connections(Connection):
    """Like `Connection`; the first large range opens more connections, each with a thread, if the server allows
    several.
    """

    def __init__(
        self,
        address: Address,
        *,
        trust: Trust | None = None,
        timeout: float = TIMEOUT,
        count: int | None = None,
        describe: bool = False,
    ) -> None:
        """`count`: number of connections; by default one per processor that this process may use."""
        super().__init__(address, trust=trust, timeout=timeout, describe=describe)
        count = count or min(CONNECTIONS, processors())
        self._count = count if self.export.can(Transmission.CAN_MULTI_CONN) else 1
        self._posted = False  # by the connection without a thread
        self._others: list[Connection] = []
        self._failures: list[BaseException] = []
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._idle: SimpleQueue[bool] = SimpleQueue()  # True for a thread without a job, False for one that has ended
        self._threads: list[Thread] = []

    @property
    def count(self) -> int:
        """Connections used for large ranges: open, or about to be opened."""
        return self._count

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
        if not self.address.tls:
            self._posted = True
            super().post_file(offset, file, at, length)
            return
        for start, end in self._shares(length):
            self._post(
                partial(Connection.write_file, offset=offset + start, file=file, at=at + start, length=end - start)
            )

    def settle(self) -> None:
        if self._posted:
            self._posted = False
            super().settle()
        if self._threads:
            for _ in range(self._ready(everyone=True)):
                self._idle.put(True)
        failures, self._failures = self._failures, []
        if failures:
            raise failures[0]

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
        """(start, end) for each connection."""
        shares = max(1, min(self.count, length // SHARE_MIN))
        step = -(-length // shares // ALIGN) * ALIGN
        for start in range(0, length, step or 1):
            yield start, min(start + step, length)

    def _spread(self, jobs: Sequence[Job]) -> None:
        """Carry out jobs on all connections; returns when all are done."""
        self.settle()
        if len(jobs) == 1:
            jobs[0](self)
            return
        for job in jobs:
            self._post(job)
        self.settle()

    def _post(self, job: Job) -> None:
        """Give a job to an idle connection. Raises the error of an earlier job."""
        while len(self._threads) < self._count:
            link = None if self._threads else self
            self._threads.append(Thread(target=self._work, args=(link,), name="nbd", daemon=True))
            self._threads[-1].start()
        self._ready(everyone=False)
        if self._failures:
            self._idle.put(True)
            self.settle()
        self._jobs.put(job)

    def _ready(self, *, everyone: bool) -> int:
        """Wait until one thread, or every thread, is idle; return how many idle ones were counted."""
        idle = 0
        while idle < (self._count if everyone else 1):
            if self._idle.get():
                idle += 1
            else:
                self._count -= 1
        return idle

    def _work(self, link: Connection | None) -> None:
        """A thread that carries out jobs until it gets None. Without a link it opens one; if that fails, for example
        because of a server's limit, there is one thread less, but always at least one: the first already has a link."""
        if link is None:
            try:
                link = Connection(self.address, trust=self._trust, timeout=self._timeout)
            except BaseException as error:
                if not isinstance(error, ErofsEdgeError):
                    self._failures.append(error)
                self._idle.put(False)
                return
            self._others.append(link)
        self._idle.put(True)
        while (job := self._jobs.get()) is not None:
            try:
                job(link)
            except BaseException as error:
                self._failures.append(error)
            finally:
                self._idle.put(True)
