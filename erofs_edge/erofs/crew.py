# SPDX-License-Identifier: Apache-2.0
"""Pieces of files read and compressed in forked processes: threads would take turns at the Python of it.

The processes are forked before the tree is looked for, so they know nothing of it: a task names its files. Tasks and
results lie in an arena, a file in memory, pipes carry only where. Compressed blocks are written from there to the
image; their part of the arena is free again when nothing refers to them any more. What a process cannot do, the caller
does in the old way and meets the error. A process ends when its task pipe does, however its parent came to its end.

Processes read and write the arena as a file: mapped, each of them would meet a fault at each of its pages.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import marshal
import mmap
import os
import select
import signal
import stat
import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from operator import sub
from typing import TYPE_CHECKING, Any

from erofs_edge.erofs import at_once
from erofs_edge.erofs.compress import JoinedSegment, Segment
from erofs_edge.erofs.index import Extent
from erofs_edge.erofs.meter import Meter
from erofs_edge.erofs.pipeline import Piece, Stored
from erofs_edge.erofs.plan import Node
from erofs_edge.erofs.processes import end_with_parent, keep_memory
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.tree import FileContent, Inode

if TYPE_CHECKING:
    from erofs_edge.erofs.cache import CompressionCache

UNIT = 128 << 10  # bytes of the arena that are given away together
UNITS = 1280  # 160 MiB
TASK = struct.Struct("<IIII")
"""what the task pipe carries: number, first unit, units, bytes of the task"""
DONE = struct.Struct("<IIQIIQIIII")
"""what a process sends: number, whether it went well, bytes of data and of the record behind them; since the last time:
calls of codecs, their nanoseconds, hits, misses and damaged entries of the cache; the last error number of that"""
NOEXEC_SEAL = 8  # MFD_NOEXEC_SEAL, linux/memfd.h: systems may ask for it, since Linux 6.3
BUFFERS_MAX = 1024  # IOV_MAX, linux/uio.h: of a call
LAST = 0xFFFFFFFF  # no task's number: a process says goodbye, or is told of memory that nobody needs any more
MESSAGES = 64 << 10  # bytes: more than a pipe can hold is never read at once
RAW = 1 << 31
END = 1 << 40  # instead of blocks: what has none is not joined
IS_SEGMENT, IS_DENSE, HAS_DIGEST, IS_JOINED = 1, 2, 4, 8
_new: Any = tuple.__new__  # a named tuple's own way takes twice the time

Store = Callable[[Piece], Stored]
Told = tuple[bytes, int, int, int, bool, int, int, int]
"""of a piece: the path, size and start of its content; the size of its file, whether the inode is extended, and bytes
of its attributes; offset and length of the piece"""


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
        self._file = _file_in_memory(UNIT * UNITS)
        self._arena = mmap.mmap(self._file, UNIT * UNITS)
        self._free = (1 << UNITS) - 1
        self._returned: deque[tuple[int, int]] = deque()
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
        task = marshal.dumps([_task_of(piece) for piece in sent])
        size = sum([piece.length for piece in sent])
        # what does not shrink takes a block more than it has bytes, and what is said about it a little
        units = -(-(size + (size >> 6) + len(task) + 256 * len(sent) + (64 << 10)) // UNIT)
        self.receive()
        first = self._take(units)
        if first is None:
            return None
        self._number += 1
        ticket = Ticket(self, self._number, pieces, first, units)
        self._tickets[ticket.number] = ticket
        try:
            os.pwrite(self._file, task, first * UNIT)
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
        return _results(ticket.pieces, self._lease(ticket), *ticket.done)

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
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

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
                with suppress(OSError):  # it is less memory, no more
                    self._arena.madvise(mmap.MADV_REMOVE, first * UNIT, units * UNIT)
                continue
            try:
                stored = [store(piece) for piece in _pieces(os.pread(self._file, size, first * UNIT))]
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
        buffers, record = _record(stored, self._block_size)
        data = sum(map(len, buffers))
        buffers += (bytes(-data % 4), record)
        data += -data % 4
        if data + len(record) > units * UNIT:
            raise ValueError("results are larger than what they come from")
        at = first * UNIT
        for number in range(0, len(buffers), BUFFERS_MAX):
            some = buffers[number : number + BUFFERS_MAX]
            size = sum(map(len, some))
            if os.pwritev(self._file, some, at) != size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            at += size
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
            self._give_back(ticket.first + used, ticket.units - used)
            ticket.units = used
            ticket.done, ticket.failed = ((data, record), False) if good else (None, True)

    def _release(self) -> None:
        """Memory of free units goes back to the system, by a process that has nothing else to do: what comes after the
        files may need as much."""
        self._collect()
        left, first = self._free, 0
        while left:
            taken = (left & -left).bit_length() - 1
            free = (~(left >> taken) & (left >> taken) + 1).bit_length() - 1
            with suppress(BrokenPipeError):
                os.write(self._feed, TASK.pack(LAST, first + taken, free, 0))
            left, first = left >> taken + free, first + taken + free

    def _collect(self) -> None:
        while self._returned:
            self._give_back(*self._returned.popleft())

    def _take(self, units: int) -> int | None:
        """The first of so many free units that follow each other, the lowest there are."""
        self._collect()
        starts, done = self._free, 1
        while done < units and starts:
            step = min(done, units - done)
            starts &= starts >> step
            done += step
        if not starts:
            return None
        first = (starts & -starts).bit_length() - 1
        self._free &= ~((1 << units) - 1 << first)
        return first

    def _give_back(self, first: int, units: int) -> None:
        self._free |= (1 << units) - 1 << first

    def _lease(self, ticket: Ticket) -> memoryview:
        """The ticket's part of the arena, which is given back when the last view of it is gone."""
        lease = _lease_type(ticket.units).from_buffer(self._arena, ticket.first * UNIT)
        lease.returned, lease.place = self._returned, (ticket.first, ticket.units)
        return memoryview(lease).cast("B")


@cache
def _lease_type(units: int) -> Any:
    def give_back(self: Any) -> None:
        self.returned.append(self.place)

    return type("Lease", (ctypes.c_ubyte * (units * UNIT),), {"__del__": give_back})


def _file_in_memory(size: int) -> int:
    """A descriptor. Raises OSError where there are no such files."""
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    try:
        file = os.memfd_create("erofs-edge", os.MFD_CLOEXEC | NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        file = os.memfd_create("erofs-edge")
    os.ftruncate(file, size)
    return file


def _killed() -> ErofsEdgeError:
    return ErofsEdgeError(
        "a process that compresses was killed", hint="is there enough memory? --jobs 1 does without such processes"
    )


def _task_of(piece: Piece) -> Told:
    """What a process has to know of a piece."""
    node = piece.node
    content: Any = node.inode.content
    path, size, start = content
    name = path if type(path) is bytes else os.fsencode(path)
    return name, size, start, node.size, node.extended, len(node.xattrs), piece.offset, piece.length


def _pieces(task: bytes) -> Iterator[Piece]:
    """The pieces that a task names: one object, which is each of them in its turn."""
    inode = Inode(stat.S_IFREG)
    node = Node(inode, b"", 0, None)
    piece = Piece(node, 0, 0)
    told: list[Told] = marshal.loads(task)
    for path, size, start, node.size, node.extended, attributes, piece.offset, piece.length in told:
        inode.content = _new(FileContent, (path, size, start))
        node.xattrs = bytes(attributes)
        yield piece


def _chunks(stored: Stored) -> Sequence[bytes | memoryview]:
    """The bytes of a result."""
    if stored.data is not None:
        return [stored.data]
    return stored.segment.chunks if stored.segment is not None else []


def _record(stored: Sequence[Stored], block_size: int) -> tuple[list[bytes | memoryview], bytes]:
    """The bytes of results, in order, and what they are. Segments of whole blocks are joined, unless `block_size` is
    0."""
    words: list[int] = []
    buffers: list[bytes | memoryview] = []
    for one in stored:
        _, segment, _, digest, dense = one
        chunks = _chunks(one)
        buffers += chunks
        lengths = [len(chunk) for chunk in chunks]
        if segment is None:
            words.append(0)
        else:
            numbers: list[int] = []
            total = 0
            for length, blocks, raw, _, _ in segment.extents:
                numbers += (length, blocks | raw << 31)
                total += blocks or END
            kind = IS_SEGMENT | dense * IS_DENSE | bool(digest) * HAS_DIGEST
            size = sum(lengths)
            if size == total * block_size:
                kind, lengths = kind | IS_JOINED, [size]
            words += (kind, len(segment.extents), *numbers, *array("I", digest))
        words += (len(lengths), *lengths)
    return buffers, array("I", words).tobytes()


def _results(pieces: Iterable[Piece], view: memoryview, size: int, length: int) -> list[Stored]:
    """What `_record` put there."""
    words = view[size : size + length].cast("I").tolist()
    word = at = 0
    results = []
    for piece in pieces:
        if piece.twin is not None or piece.data is not None:
            results.append(_new(Stored, (piece, None, piece.data, b"", False)))
            continue
        kind, word = words[word], word + 1
        extents: list[Extent] = []
        digest = b""
        if kind:
            end = word + 1 + 2 * words[word]
            if end == word + 3:  # as most files have it
                field = words[word + 2]
                extents = [_new(Extent, (words[word + 1], field & ~RAW, field >= RAW, -1, False))]
            else:
                fields = zip(words[word + 1 : end : 2], words[word + 2 : end : 2], strict=True)
                extents = [_new(Extent, (n, field & ~RAW, field >= RAW, -1, False)) for n, field in fields]
            word = end
            if kind & HAS_DIGEST:
                digest, word = array("I", words[word : word + 8]).tobytes(), word + 8
        end = word + 1 + words[word]
        chunks: list[bytes | memoryview] = []
        for one in words[word + 1 : end]:
            chunks.append(view[at : at + one])
            at += one
        word = end
        if kind:
            segment = _new(JoinedSegment if kind & IS_JOINED else Segment, (extents, chunks))
            results.append(_new(Stored, (piece, segment, None, digest, bool(kind & IS_DENSE))))
        else:
            results.append(_new(Stored, (piece, None, chunks[0], b"", False)))
    return results
