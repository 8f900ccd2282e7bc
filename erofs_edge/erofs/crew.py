# SPDX-License-Identifier: Apache-2.0
"""Read and compress pieces of files in forked processes: threads would take turns in the Python part of it.

The processes are forked before the tree is scanned, so they know nothing of it: each task names its files. Tasks and
results are in an arena (see arena.py); pipes carry only their positions. Compressed blocks are written from there to
the image, and their part of the arena is freed once nothing refers to it. Whatever a process cannot do, the caller does
in the usual way, where the error shows. A process ends when its task pipe does, however its parent ended.
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
from erofs_edge.erofs.malloc import keep_memory
from erofs_edge.erofs.meter import Meter
from erofs_edge.erofs.piece import Piece, Stored
from erofs_edge.erofs.tasks import pieces_of_task, record_of, results_of, task_of
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.forks import end_with_parent

if TYPE_CHECKING:
    from erofs_edge.erofs.cache import CompressionCache

TASK = struct.Struct("<IIII")
"""message in the task pipe: number, first unit, units, bytes of the task"""
DONE = struct.Struct("<IIQIIQIIII")
"""message from a process: number, success, bytes of data and of the record after it; since the last message: calls of
codecs, their nanoseconds, hits, misses and damaged entries of the cache; the cache's last error number"""
LAST = 0xFFFFFFFF  # not a task number: a process ends, or is told which memory is no longer needed
MESSAGES = 64 << 10  # bytes; a single read never returns more than a pipe can hold
Store = Callable[[Piece], Stored]


class Ticket:
    """A batch that was given to a process. `failed` if it failed there; otherwise `done`, once set, says how many bytes
    of data and record there are."""

    __slots__ = ("crew", "done", "failed", "first", "number", "pieces", "units")

    def __init__(self, crew: Crew, number: int, pieces: list[Piece], first: int, units: int) -> None:
        self.crew, self.number, self.pieces, self.first, self.units = crew, number, pieces, first, units
        self.done: tuple[int, int] | None = None
        self.failed = False

    def result(self) -> list[Stored]:
        """Wait for the result, once only. Raises what the work itself raises, and ErofsEdgeError if a process was
        killed."""
        return self.crew.result(self)


class Crew:
    """`count` processes that `store` pieces, which they receive as new objects. `cache` and `meter` are those that
    `store` uses: what changes in the processes' copies is added up here. For one thread only. Raises OSError if
    processes cannot be created.

    The last process does nothing until the caller waits for a result or calls `begin_all`: as long as the caller has
    its own work to do, it needs that processor.
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
        """`block_size`: segments of whole blocks may arrive as JoinedSegment; 0: none does. `restart` is called when
        the results of a task have been copied, unless there is a cache, which keeps them for a while. Files of at most
        `small` bytes are stored uncompressed."""
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
        """The caller only hands out tasks and takes results from now on, so all processes are wanted."""
        if self._barrier >= 0:
            os.close(self._barrier)
            self._barrier = -1

    def submit(self, pieces: list[Piece]) -> Ticket | None:
        """Start on a batch; None if there is currently no room for it."""
        sent = self._without_small(pieces)
        task = task_of(sent)
        size = sum([piece.length for piece in sent])
        # incompressible data takes a block more than its size, and its description a little
        units = -(-(size + (size >> 6) + len(task) + 256 * len(sent) + (64 << 10)) // UNIT)
        self.receive()
        first = self._arena.take(units)
        if first is None:
            return None
        try:
            self._arena.write(first, [task])
        except OSError:  # not enough memory
            self._arena.give_back(first, units)
            return None
        self._number += 1
        ticket = Ticket(self, self._number, pieces, first, units)
        self._tickets[ticket.number] = ticket
        try:
            os.write(self._feed, TASK.pack(ticket.number, first, units, len(task)))
        except BrokenPipeError:
            raise _killed() from None
        return ticket

    def _without_small(self, pieces: list[Piece]) -> list[Piece]:
        """Return the pieces to send to a process. Small files are read here, which takes less time than that."""
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
        """Process messages about finished work. Raises ErofsEdgeError if a process has ended."""
        for pipe, _ in self._poll.poll(None if wait else 0):
            messages = os.read(pipe, MESSAGES)
            if not messages:
                raise _killed()
            self._note(messages)

    def finish(self) -> None:
        """Declare that there are no more tasks, so the processes end. `submit` must not be called any more."""
        self.begin_all()
        if self._feed >= 0:
            self._release()
            os.close(self._feed)
            self._feed = -1

    def close(self) -> None:
        """Wait until all processes have finished their work and ended."""
        self.finish()
        for pipe in self._pipes:
            while messages := os.read(pipe, MESSAGES):
                self._note(messages)
        self._reap()

    def kill(self) -> None:
        """End all processes at once, whatever they are doing."""
        self.finish()
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)  # still ours: nobody else has waited for them
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
        try:
            pid = os.fork()
        except OSError:
            os.close(here)
            os.close(there)
            raise
        if not pid:
            try:
                os.close(self._feed)
                os.close(self._barrier)
                end_with_parent(parent)
                self._work(there, waits=waits)
            finally:
                # end without running exit handlers
                os.kill(os.getpid(), signal.SIGKILL)
        os.close(there)
        self._pids.append(pid)
        self._pipes.append(here)
        self._poll.register(here, select.POLLIN)

    def _work(self, done: int, *, waits: bool) -> None:
        """Main loop of a process: one task after the other, until there are no more."""
        store, cache, meter = self._store, self._cache, self._meter
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, too, and ends us
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        gc.disable()
        at_once.be_alone()
        keep_memory()
        if waits:
            os.read(self._gate, 1)  # nothing is ever written there; it is closed by `begin_all` or when the caller ends
        if meter:
            meter.take()  # what was measured before the fork counts in the parent
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
            except Exception:  # the parent repeats it and finds what is wrong
                tell(number, False, 0, 0)
            else:
                tell(number, True, data, record)
            if cache is None:
                self._restart()
        if cache is not None:
            cache.close()
        tell(LAST, True, 0, 0)

    def _deliver(self, stored: Sequence[Stored], first: int, units: int) -> tuple[int, int]:
        """Put results and their record into a part of the arena; return the bytes of both. Raises ValueError if there
        is no room, OSError if there is not enough memory."""
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
        """Let an idle process return the memory of free units to the system: later steps may need as much."""
        for first, units in self._arena.free_runs():
            with suppress(BrokenPipeError):
                os.write(self._feed, TASK.pack(LAST, first, units, 0))


def _killed() -> ErofsEdgeError:
    return ErofsEdgeError(
        "a process that compresses was killed", hint="is there enough memory? --jobs 1 does without such processes"
    )
