# SPDX-License-Identifier: Apache-2.0
"""Pieces of files read and compressed in forked processes: threads would take turns at the Python of it.

The processes are forked before the tree is looked for, so they know nothing of it: a task names its files. Tasks and
results lie in an arena, see there; pipes carry only where. Compressed blocks are written from there to the
image; their part of the arena is free again when nothing refers to them any more. What a process cannot do, the caller
does in the old way and meets the error. A process ends when its task pipe does, however its parent came to its end.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import sub
from typing import TYPE_CHECKING, Any

from erofs_edge.erofs import at_once
from erofs_edge.erofs.arena import UNIT, Arena
from erofs_edge.erofs.meter import Meter
from erofs_edge.erofs.piece import Piece, Stored
from erofs_edge.erofs.processes import end_with_parent, keep_memory
from erofs_edge.erofs.tasks import pieces_of_task, record_of, results_of, task_of
from erofs_edge.errors import ErofsEdgeError

if TYPE_CHECKING:
    from erofs_edge.erofs.cache import CompressionCache

TASK = struct.Struct("<IIII")
"""what the task pipe carries: number, first unit, units, bytes of the task"""
DONE = struct.Struct("<IIQIIQIIII")
"""what a process sends: number, whether it went well, bytes of data and of the record behind them; since the last time:
calls of codecs, their nanoseconds, hits, misses and damaged entries of the cache; the last error number of that"""
LAST = 0xFFFFFFFF  # no task's number: a process says goodbye, or is told of memory that nobody needs any more
MESSAGES = 64 << 10  # bytes: more than a pipe can hold is never read at once
Store = Callable[[Piece], Stored]


class Ticket:
    """A batch that was given to a process; `failed` there, or done: `done` then has where, and how much of what."""

    __slots__ = ("crew", "done", "failed", "first", "number", "pieces", "units")

    def __init__(self, crew: Crew, number: int, pieces: list[Piece], first: int, units: int) -> None:
        self.crew, self.number, self.pieces, self.first, self.units = crew, number, pieces, first, units
        self.done: tuple[int, int] | None = None
        self.failed = False

    def result(self) -> list[Stored]:
        """Waits for it; once only. Raises what the same work raises here, and ErofsEdgeError where a process was
        killed."""
        return self.crew.result(self)


class Crew:
    """`count` processes that `store` pieces, which they get as new objects. `cache` and `meter` are those that it uses:
    what changes in the processes' copies is added up here. For one thread only. Raises OSError where there can be no
    processes.

    The last of them does nothing before the caller waits for a result or calls `begin_all`: as long as he has work of
    his own, that needs a processor.
    """

    def __init__(
        self,
        store: Store,
        count: int,
        cache: CompressionCache | None,
        meter: Meter | None,
        block_size: int,
        restart: Callable[[], None] = lambda: None,
        small: int = 0,
    ) -> None:
        """`block_size`: segments of whole blocks may come as JoinedSegment; 0: none does. `restart` is called when
        the results of a task have been copied, unless there is a cache, which keeps them for a while. Files of at
        most `small` bytes are stored as they are."""
        self._store, self._cache, self._meter, self._block_size = store, cache, meter, block_size
        self._restart = restart
        self._small = small
        self._arena = Arena()
        self._tickets: dict[int, Ticket] = {}
        self._number = 0
        self._pids: list[int] = []
        self._pipes: list[int] = []
        self._poll = select.poll()
        self._tasks, self._feed = os.pipe()
        self._gate, self._barrier = os.pipe()
        try:
            for left in reversed(range(count)):
                self._start(waits=not left)
        except BaseException:
            self.kill()
            raise
        finally:
            os.close(self._tasks)
            os.close(self._gate)

    def begin_all(self) -> None:
        """The caller has no more to do than to give tasks and take results: all processes are wanted."""
        if self._barrier >= 0:
            os.close(self._barrier)
            self._barrier = -1

    def submit(self, pieces: list[Piece]) -> Ticket | None:
        """Begin with a batch; None where the arena has no room for it now."""
        sent = self._without_small(pieces)
        task = task_of(sent)
        size = sum([piece.length for piece in sent])
        # what does not shrink takes a block more than it has bytes, and what is said about it a little
        units = -(-(size + (size >> 6) + len(task) + 256 * len(sent) + (64 << 10)) // UNIT)
        self.receive()
        first = self._arena.take(units)
        if first is None:
            return None
        self._number += 1
        ticket = Ticket(self, self._number, pieces, first, units)
        self._tickets[ticket.number] = ticket
        try:
            self._arena.write(first, [task])
            os.write(self._feed, TASK.pack(ticket.number, first, units, len(task)))
        except BrokenPipeError:
            raise _killed() from None
        return ticket

    def _without_small(self, pieces: list[Piece]) -> list[Piece]:
        """What a process is to be told of: small files are read here, which takes less than that."""
        read, small = at_once.read_alone, self._small
        sent = []
        for piece in pieces:
            if piece.twin is not None or piece.data is not None:
                continue
            length = piece.length
            if length <= small and length == piece.node.size:
                content: Any = piece.node.inode.content
                path, _, start = content
                if not start:
                    piece.data = read(path if type(path) is bytes else os.fsencode(path), length)
                    if piece.data is not None:
                        continue
            sent.append(piece)
        return sent

    def result(self, ticket: Ticket) -> list[Stored]:
        while ticket.done is None and not ticket.failed:
            self.begin_all()
            self.receive(wait=True)
        if ticket.done is None:
            return [self._store(piece) for piece in ticket.pieces]
        return results_of(ticket.pieces, self._arena.lend(ticket.first, ticket.units), *ticket.done)

    def receive(self, *, wait: bool = False) -> None:
        """Take note of what has been done. Raises ErofsEdgeError where a process has ended."""
        for pipe, _ in self._poll.poll(None if wait else 0):
            messages = os.read(pipe, MESSAGES)
            if not messages:
                raise _killed()
            self._note(messages)

    def finish(self) -> None:
        """There are no more tasks: processes end by and by. `submit` is not possible any more."""
        self.begin_all()
        if self._feed >= 0:
            self._release()
            os.close(self._feed)
            self._feed = -1

    def close(self) -> None:
        """Wait until all processes have done what they were given, and have ended."""
        self.finish()
        for pipe in self._pipes:
            while messages := os.read(pipe, MESSAGES):
                self._note(messages)
        self._reap()

    def kill(self) -> None:
        """End all processes now, whatever they do."""
        self.finish()
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)  # nobody else has waited for them
        self._reap()

    def _reap(self) -> None:
        for pid in self._pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        for pipe in self._pipes:
            os.close(pipe)
        self._pids, self._pipes = [], []
        self._arena.close()

    def _start(self, *, waits: bool) -> None:
        here, there = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            try:
                os.close(self._feed)
                os.close(self._barrier)
                end_with_parent(parent)
                self._work(there, waits=waits)
            finally:
                # the end without what others want to be done at the end
                os.kill(os.getpid(), signal.SIGKILL)
        os.close(there)
        self._pids.append(pid)
        self._pipes.append(here)
        self._poll.register(here, select.POLLIN)

    def _work(self, done: int, *, waits: bool) -> None:
        """A process: task after task, until there are no more."""
        store, cache, meter = self._store, self._cache, self._meter
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the parent too, which ends us
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        gc.disable()
        at_once.be_alone()
        keep_memory()
        if waits:
            os.read(self._gate, 1)  # nothing is ever written there: it ends with `begin_all`, or with the caller
        if meter:
            meter.take()  # what was measured before the fork counts there
        before = (0, 0, 0)

        def tell(number: int, good: bool, data: int, record: int) -> None:
            nonlocal before
            calls, seconds = meter.take() if meter else (0, 0.0)
            now = (cache.hits, cache.misses, cache.damaged) if cache else before
            problem = (cache.problem.errno or errno.EIO) if cache and cache.problem else 0
            spent = int(seconds * 1e9)
            os.write(done, DONE.pack(number, good, data, record, calls, spent, *map(sub, now, before), problem))
            before = now

        while message := os.read(self._tasks, TASK.size):
            number, first, units, size = TASK.unpack(message)
            if number == LAST:
                self._arena.drop(first, units)
                continue
            try:
                stored = [store(piece) for piece in pieces_of_task(self._arena.read(first, size))]
                data, record = self._deliver(stored, first, units)
            except Exception:  # the parent does the same, and finds what is wrong
                tell(number, False, 0, 0)
            else:
                tell(number, True, data, record)
            if cache is None:
                self._restart()
        if cache is not None:
            cache.close()
        tell(LAST, True, 0, 0)

    def _deliver(self, stored: Sequence[Stored], first: int, units: int) -> tuple[int, int]:
        """Put results and their record to a part of the arena; bytes of both. Raises ValueError where there is no room,
        OSError where there is no memory."""
        buffers, record = record_of(stored, self._block_size)
        data = sum(map(len, buffers))
        buffers += (bytes(-data % 4), record)
        data += -data % 4
        if data + len(record) > units * UNIT:
            raise ValueError("results are larger than what they come from")
        self._arena.write(first, buffers)
        return data, len(record)

    def _note(self, messages: bytes) -> None:
        for number, good, data, record, calls, spent, hits, misses, damaged, problem in DONE.iter_unpack(messages):
            if self._meter is not None:
                self._meter.add(calls, spent / 1e9)
            if self._cache is not None:
                self._cache.hits += hits
                self._cache.misses += misses
                self._cache.damaged += damaged
                if problem:
                    self._cache.problem = OSError(problem, os.strerror(problem), str(self._cache.folder))
            if number == LAST:
                continue
            ticket = self._tickets.pop(number)
            used = -(-(data + record) // UNIT) if good else 0
            self._arena.give_back(ticket.first + used, ticket.units - used)
            ticket.units = used
            ticket.done, ticket.failed = ((data, record), False) if good else (None, True)

    def _release(self) -> None:
        """Memory of free units goes back to the system, by a process that has nothing else to do: what comes after the
        files may need as much."""
        for first, units in self._arena.free_runs():
            with suppress(BrokenPipeError):
                os.write(self._feed, TASK.pack(LAST, first, units, 0))


def _killed() -> ErofsEdgeError:
    return ErofsEdgeError(
        "a process that compresses was killed", hint="is there enough memory? --jobs 1 does without such processes"
    )
