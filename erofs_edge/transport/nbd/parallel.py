# SPDX-License-Identifier: Apache-2.0
"""Several connections to one export, where the server allows it (CAN_MULTI_CONN): large ranges go over all of them.

One connection is served by one processor at each end for most of the way; sending and receiving do not hold Python's
lock, so a thread for each connection helps, as long as there are processors for them: more than that take the cache
from each other. Files go over one connection, without a thread: the kernel moves them, and a second one costs the
server more than it helps; but with TLS, that is work here. The specification promises that a flush on one covers what
was answered on others. Nothing but what was posted is under way when another request is made.
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

CONNECTIONS = 4  # at most, as nbdcopy
SHARE_MIN = 512 << 10  # bytes that are worth another connection
ALIGN = 4096

Job = Callable[[Connection], None]


class Connections(Connection):
    """As `Connection`; the first large range opens others, each with a thread, where the server takes more than one."""

    def __init__(
        self,
        address: Address,
        *,
        trust: Trust | None = None,
        timeout: float = TIMEOUT,
        count: int | None = None,
        describe: bool = False,
    ) -> None:
        """`count`: of connections; by default one for each processor that this process may use."""
        super().__init__(address, trust=trust, timeout=timeout, describe=describe)
        count = count or min(CONNECTIONS, processors())
        self._count = count if self.export.can(Transmission.CAN_MULTI_CONN) else 1
        self._posted = False  # without a thread
        self._others: list[Connection] = []
        self._failures: list[BaseException] = []
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._idle: SimpleQueue[bool] = SimpleQueue()  # True for a thread without a job, False for one that has ended
        self._threads: list[Thread] = []

    @property
    def count(self) -> int:
        """Connections that are used for what is large: open, or about to be opened."""
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
        """Until a thread, or every one, has nothing to do; how many have not."""
        idle = 0
        while idle < (self._count if everyone else 1):
            if self._idle.get():
                idle += 1
            else:
                self._count -= 1
        return idle

    def _work(self, link: Connection | None) -> None:
        """A thread that carries out jobs, until None comes instead of one. Without a link it opens one; where that
        fails, for a server may have a limit, there is one thread less, but never none: the first has a link."""
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
