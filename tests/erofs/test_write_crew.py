# SPDX-License-Identifier: Apache-2.0
"""Files compressed in forked processes: the same bytes as with threads, and a clean end if something fails."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from writer_trees import mixed, noise, text

from erofs_edge.erofs import ahead, arena, output
from erofs_edge.erofs.ahead import HeadStart
from erofs_edge.erofs.arena import UNIT
from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.contents import PIECE
from erofs_edge.erofs.crew import Crew
from erofs_edge.erofs.meter import Meter
from erofs_edge.erofs.piece import Piece, Stored
from erofs_edge.erofs.plan import Node
from erofs_edge.erofs.rules import CompressionRule
from erofs_edge.erofs.write import WriteOptions, write_image
from erofs_edge.errors import CapacityError, ErofsEdgeError, SourceError
from erofs_edge.sources.directory import scan
from erofs_edge.tree import FileContent, Inode

PARENT = os.getpid()
LZ4 = WriteOptions(compression="lz4", pcluster=16384, jobs=2)


@pytest.fixture(autouse=True)
def crews(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Crew]]:
    """Forks even for small trees, whatever threads the test runner has; yields the processes. None may be left in the
    end."""
    made: list[Crew] = []
    pids: list[int] = []

    class Counted(Crew):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)
            pids.extend(self._pids)

    monkeypatch.setattr(ahead, "WORTH_FORKING", 0)
    monkeypatch.setattr(ahead, "LARGE", 100_000)
    monkeypatch.setattr(ahead, "may_fork", lambda: True)
    monkeypatch.setattr(ahead, "Crew", Counted)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    yield made
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all kinds, equal ones, and more small ones than a task takes."""
    top = tmp_path_factory.mktemp("source") / "tree"
    (top / "small").mkdir(parents=True)
    files = [text(300_001, 1), mixed(200_003, 2), noise(190_000, 3), b"\x1f\x8b\x08" + noise(70_001, 4), bytes(50_000)]
    for i, data in enumerate(
        [*files, b"\xd0\x0d\xfe\xed" + text(60_000, 5), mixed(100_003, 6), text(300_001, 1), b"x"]
    ):
        (top / f"f{i}").write_bytes(data)
    for i in range(50):
        (top / "small" / f"{i}").write_bytes(mixed(1 + i * 997, i) if i % 4 else text(1 + i * 400, i))
    os.symlink("f1", top / "link")
    os.link(top / "f0", top / "small/hard")
    return top


def built(folder: Path, out: Path, options: WriteOptions) -> bytes:
    with HeadStart(options) as start:
        tree = scan(folder, start.offer)
        write_image(tree, out, options.replaced(ahead=start))
    return out.read_bytes()


def by_threads(folder: Path, out: Path, options: WriteOptions) -> bytes:
    write_image(scan(folder), out, options)
    return out.read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"jobs": 5},
        {"compression": "lz4hc", "level": 3},
        {"compression": "lz4hc"},
        {"compression": "zstd", "level": 1},
        {"pcluster": 4096, "full_index": True},
        {"ztailpacking": True},
        {"fragments": "tails", "compression": "lz4hc", "level": 3},
        {"fragments": "tails", "xattr_tolerance": -1, "inode_form": "extended"},
        {"rules": (CompressionRule(match="*/f1", compression="none"),)},
        {"profile": (b"/f6", b"/f0")},
        {"chunk_size": 16384},
    ],
    ids=str,
)
def test_bytes_are_the_same(folder: Path, tmp_path: Path, changes: dict[str, Any], crews: list[Crew]) -> None:
    options = LZ4.replaced(**changes)
    expected = by_threads(folder, tmp_path / "threads", options)
    assert not crews
    assert built(folder, tmp_path / "processes", options) == expected
    assert len(crews) == (not options.rules)  # with rules nothing is certain before the tree is known


def test_a_file_of_several_pieces(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "large").write_bytes((text(30_000, 9) * 560)[:PIECE] + mixed(123_457, 10))
    assert built(tmp_path / "tree", tmp_path / "out", LZ4) == by_threads(tmp_path / "tree", tmp_path / "threads", LZ4)


@pytest.mark.parametrize("changes", [{"jobs": 1}, {"compression": "none", "pcluster": None}, {"dedupe": True}], ids=str)
def test_where_there_are_none(folder: Path, tmp_path: Path, changes: dict[str, Any], crews: list[Crew]) -> None:
    options = LZ4.replaced(**changes)
    assert built(folder, tmp_path / "out", options) == by_threads(folder, tmp_path / "threads", options)
    assert not crews


def test_where_no_process_can_be_forked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refused)
    before = set(os.listdir("/proc/self/fd"))
    assert built(folder, tmp_path / "out", LZ4) == by_threads(folder, tmp_path / "threads", LZ4)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_where_no_shared_memory_can_be_mapped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crews: list[Crew]
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(mmap, "mmap", refused)
    before = set(os.listdir("/proc/self/fd"))
    assert built(folder, tmp_path / "out", LZ4) == by_threads(folder, tmp_path / "threads", LZ4)
    assert set(os.listdir("/proc/self/fd")) <= before and not crews


@pytest.mark.parametrize("units", [12, 40])
def test_with_little_memory_threads_do_the_rest(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: int
) -> None:
    monkeypatch.setattr(arena, "UNITS", units)
    assert built(folder, tmp_path / "out", LZ4) == by_threads(folder, tmp_path / "threads", LZ4)


def test_results_that_do_not_fit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = Crew._deliver

    def in_little_room(self: Crew, stored: list[Stored], first: int, units: int) -> tuple[int, int]:
        return deliver(self, stored, first, 1)

    monkeypatch.setattr(Crew, "_deliver", in_little_room)
    assert built(folder, tmp_path / "out", LZ4) == by_threads(folder, tmp_path / "threads", LZ4)


def test_memory_that_ends(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process could not store completely is done in this one."""
    whole = os.pwritev

    def half(file: int, buffers: list[bytes], at: int) -> int:
        return whole(file, buffers if os.getpid() == PARENT else buffers[: len(buffers) // 2], at)

    monkeypatch.setattr(os, "pwritev", half)
    assert built(folder, tmp_path / "out", LZ4) == by_threads(folder, tmp_path / "threads", LZ4)


def test_memory_that_ends_before_anything_is_sent(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crews: list[Crew]
) -> None:
    """A task that cannot be stored completely is not sent."""
    whole = os.pwritev

    def half(file: int, buffers: list[bytes], at: int) -> int:
        return whole(file, [buffers[0][: len(buffers[0]) // 2]] if os.getpid() == PARENT else buffers, at)

    monkeypatch.setattr(os, "pwritev", half)
    assert built(folder, tmp_path / "out", LZ4) == by_threads(folder, tmp_path / "threads", LZ4)
    assert len(crews) == 1 and not crews[0]._number


def test_more_results_than_a_call_can_write(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "BUFFERS_MAX", 2)
    assert built(folder, tmp_path / "out", LZ4) == by_threads(folder, tmp_path / "threads", LZ4)


def test_a_kernel_before_noexec_seal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crews: list[Crew]
) -> None:
    create = os.memfd_create
    asked: list[int] = []

    def older(name: str, flags: int = os.MFD_CLOEXEC) -> int:
        asked.append(flags)
        if flags & ~os.MFD_CLOEXEC:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", older)
    assert built(folder, tmp_path / "out", LZ4) == by_threads(folder, tmp_path / "threads", LZ4)
    assert len(crews) == 1 and asked == [os.MFD_CLOEXEC | arena.NOEXEC_SEAL, os.MFD_CLOEXEC]


def test_where_no_file_is_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crews: list[Crew]
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert built(folder, tmp_path / "out", LZ4) == by_threads(folder, tmp_path / "threads", LZ4)
    assert not crews


def test_cache_baseline_and_meter(folder: Path, tmp_path: Path) -> None:
    meters = [Meter(lambda: 0.0), Meter(lambda: 0.0)]
    expected = by_threads(folder, tmp_path / "threads", LZ4.replaced(meter=meters[0]))
    meters[1].watch(abs)(1)  # before there are processes, which are not to count it again
    assert built(folder, tmp_path / "out", LZ4.replaced(meter=meters[1])) == expected
    assert meters[0].calls == meters[1].calls - 1 > 0
    for hits in (False, True):
        with CompressionCache(tmp_path / "cache") as cache:
            assert built(folder, tmp_path / "out", LZ4.replaced(cache=cache)) == expected
            assert (cache.hits > 0, cache.misses > 0, cache.problem) == (hits, not hits, None)
    assert built(folder, tmp_path / "new", LZ4.replaced(baseline=tmp_path / "out")) == expected


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with CompressionCache(tmp_path / "file" / "cache") as cache:
        built(folder, tmp_path / "out", LZ4.replaced(cache=cache))
    assert isinstance(cache.problem, NotADirectoryError)


def in_processes(monkeypatch: pytest.MonkeyPatch, what: Any) -> None:
    """Make the processes, not this one, do something when they get their first piece."""
    store = HeadStart._store

    def broken(self: HeadStart, piece: Piece) -> Stored:
        if os.getpid() != PARENT:
            what()
        return store(self, piece)

    monkeypatch.setattr(HeadStart, "_store", broken)


def test_a_process_that_is_killed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_processes(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ErofsEdgeError, match="was killed") as caught:
        built(folder, tmp_path / "out", LZ4)
    assert caught.value.hint is not None and "--jobs 1" in caught.value.hint
    assert os.listdir(tmp_path) == []


def test_an_error_in_a_process_is_met_here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_processes(monkeypatch, lambda: 1 // 0)
    assert built(folder, tmp_path / "out", LZ4) == by_threads(folder, tmp_path / "threads", LZ4)


def test_a_file_that_changes_is_named(folder: Path, tmp_path: Path) -> None:
    with HeadStart(LZ4) as start:
        tree = scan(folder, start.offer)
        tree.root.children[b"f5"].content = FileContent(folder / "f5", 9)
        with pytest.raises(SourceError, match="changed its size") as caught:
            write_image(tree, tmp_path / "out", LZ4.replaced(ahead=start))
    assert caught.value.where == "/f5"
    assert os.listdir(tmp_path) == []


def test_a_full_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output, "_write_all", full)
    with pytest.raises(CapacityError, match="no space left"):
        built(folder, tmp_path / "out", LZ4)
    assert os.listdir(tmp_path) == []


def test_an_interrupt(folder: Path, tmp_path: Path) -> None:
    def interrupted(_done: int, _total: int) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        built(folder, tmp_path / "out", LZ4.replaced(progress=interrupted))
    assert os.listdir(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from erofs_edge.erofs import ahead
ahead.WORTH_FORKING = 0
os.cpu_count = lambda: 2
from erofs_edge.erofs.write import WriteOptions, write_image
from erofs_edge.sources.directory import scan

def killed(done, total):
    print(len(start.crew._pids), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

options = WriteOptions(compression="lz4", jobs=3, progress=killed)
start = ahead.HeadStart(options)
write_image(scan(Path(sys.argv[1]), start.offer), Path(sys.argv[2]), options.replaced(ahead=start))
"""


def test_processes_end_with_their_parent(folder: Path, tmp_path: Path) -> None:
    """They hold the pipe that is read here, so it ends with the last of them."""
    argv = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "out")]
    done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=120, check=False)
    assert (done.stdout.strip(), done.returncode) == (b"2", -signal.SIGKILL)
    assert os.listdir(tmp_path) == []


ASLEEP = """
import os, signal, sys, time
from pathlib import Path
from erofs_edge.erofs.crew import Crew
from erofs_edge.erofs.piece import Piece
from erofs_edge.erofs.plan import Node
from erofs_edge.tree import FileContent, Inode

here, there = os.pipe()

def asleep(piece):
    os.write(there, b"x")
    time.sleep(3600)

one = Crew(asleep, 2, None, None, 4096)
node = Node(Inode(0o100644, content=FileContent(Path(sys.argv[1]), 1)), b"/file", 0, None, size=1)
one.submit([Piece(node, 0, 1)])
os.read(here, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_at_work_ends_with_its_parent(tmp_path: Path) -> None:
    """Even with its task unfinished, which would otherwise keep the pipe open for an hour."""
    (tmp_path / "file").write_bytes(b"x")
    argv = [sys.executable, "-c", ASLEEP, str(tmp_path / "file")]
    done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=120, check=False)
    assert (done.stdout, done.returncode) == (b"", -signal.SIGKILL)


def as_it_is(piece: Piece) -> Stored:
    content = piece.node.inode.content
    assert content is not None
    return Stored(piece, None, content.read(piece.offset, piece.length))


def test_the_last_process_waits_for_the_caller(tmp_path: Path) -> None:
    """If that is the only process, nothing is done until the caller has nothing else to do."""
    path = tmp_path / "file"
    path.write_bytes(noise(UNIT, 1))
    node = Node(Inode(0o100644, content=FileContent(path, UNIT)), b"/file", 0, None, size=UNIT)
    one = Crew(as_it_is, 1, None, None, 4096)
    try:
        begun = one.submit([Piece(node, 0, UNIT)])
        assert begun is not None
        assert not one._poll.poll(300)
        one.begin_all()
        assert one._poll.poll(60_000)
        assert begun.result()[0].data == path.read_bytes()
    finally:
        one.kill()


def test_memory_goes_back_when_there_are_no_more_tasks(tmp_path: Path) -> None:
    """Except that of results still in use."""
    path = tmp_path / "file"
    path.write_bytes(noise(UNIT, 1))
    node = Node(Inode(0o100644, content=FileContent(path, UNIT)), b"/file", 1, None, size=UNIT)
    one = Crew(as_it_is, 1, None, None, 4096)
    try:
        tickets = [one.submit([Piece(node, 0, UNIT)]) for _ in range(3)]
        results = [ticket.result()[0] for ticket in tickets if ticket is not None]
        places = [ticket.first * UNIT for ticket in tickets if ticket is not None]
        kept = results[1]
        del results, tickets
        one.close()
        found = [one._arena._map[place : place + UNIT] for place in places]
        assert found == [bytes(UNIT), path.read_bytes(), bytes(UNIT)]
        assert kept.data == path.read_bytes()
        del kept
    finally:
        one.kill()


def test_memory_is_used_again(tmp_path: Path) -> None:
    """A result keeps its part of the memory until nothing refers to it."""
    path = tmp_path / "file"
    path.write_bytes(noise(3 * UNIT, 1))
    node = Node(Inode(0o100644, content=FileContent(path, 3 * UNIT)), b"/file", 1, None, size=3 * UNIT)
    one = Crew(as_it_is, 1, None, None, 4096)
    try:
        everything = one._arena._free
        for _ in range(2):
            tickets = [one.submit([Piece(node, 0, 3 * UNIT)]) for _ in range(5)]
            results = [ticket.result()[0] for ticket in tickets if ticket is not None]
            assert len(results) == 5
            assert all(stored.data == path.read_bytes() for stored in results)
            assert one._arena.take(1) == 20  # bytes and record of each in four units
            one._arena.give_back(20, 1)
            kept = results[2]
            del results, tickets
            assert kept.data == path.read_bytes()
            del kept
            assert one._arena.take(arena.UNITS) == 0
            one._arena.give_back(0, arena.UNITS)
        assert one._arena._free == everything
    finally:
        one.kill()
