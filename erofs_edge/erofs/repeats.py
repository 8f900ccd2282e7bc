# SPDX-License-Identifier: Apache-2.0
"""Find where files repeat bytes of earlier ones, at any offset.

Every position whose next four bytes hash to a small value is an anchor: about one in RATE positions, wherever equal
bytes are. Anchors whose next WINDOW bytes are equal are compared byte by byte, forward and backward; the longest match
wins. Matches are then weighed: shared bytes save their compressed size, but cost partly filled blocks, compression
interrupted on both sides, and a longer index.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from erofs_edge.codec.lz4 import FixedOutput, address_of
from erofs_edge.erofs.codings import Codings
from erofs_edge.erofs.compress import COMPRESSED_MAGIC
from erofs_edge.erofs.contents import PIECE, read_piece
from erofs_edge.erofs.malloc import give_back_free_memory
from erofs_edge.erofs.ondisk import FULL_INDEX
from erofs_edge.erofs.plan import Node
from erofs_edge.threads import Threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE = 1024
STRIDE = 3  # anchors
WINDOW = 64  # bytes
MULTIPLIER = 0x9E3779B1
SCANNED = 1 << 18  # bytes hashed at a time: what fits a processor's cache
SHORTEST = 4  # minimum content in blocks
CANDIDATES = 8  # number of earlier places with which an anchor is compared
BATCH = 4 << 20  # bytes of files per task
STEP = 1 << 10  # bytes to compare first; doubled each time
PAGE, PAGES = 1 << 18, 96  # bytes read at a time for comparing, and number of reads kept
WEIGHED = 1 << 18  # bytes compressed to weigh a match
DENSER = 0.9  # size with better codecs, relative to the fast one

Key = tuple[Node, int]
"""a piece: its file and first byte"""


class Repeat(NamedTuple):
    """Bytes [start, start + length) of a file equal those of `source` from `source_start` on."""

    start: int
    length: int
    source: Node
    source_start: int


class Repeats:
    """found    what each piece repeats, in order, without overlaps; starts are bytes of the file
    cuts     bytes within a piece at which an extent should start because others repeat what follows
    numbers  numbers of the pieces that others repeat
    sources  their files
    """

    __slots__ = ("cuts", "found", "numbers", "sources")

    def __init__(self) -> None:
        self.found: dict[Key, list[Repeat]] = {}
        self.cuts: dict[Key, list[int]] = {}
        self.numbers: dict[Key, int] = {}
        self.sources: set[Node] = set()


def find_repeats(
    files: Iterable[Node], codings: Codings, pool: Threads, *, block_size: int, larger_than: int = 0
) -> Repeats:
    """Find what files repeat, in order, of themselves and of earlier ones compressed with the same algorithm."""
    least = max(SHORTEST * block_size, larger_than + 1)
    searched = [node for node in files if node.size >= least and codings.of(node) is not None]
    scanned = [one for batch in pool.map(_scan_batch, _batches(searched)) for one in batch]
    repeats = _Search(searched, codings, block_size).run(scanned)
    del scanned  # 16 bytes for each kilobyte of all files
    give_back_free_memory()
    return repeats


def _batches(files: Sequence[Node]) -> list[list[Node]]:
    batches: list[list[Node]] = []
    size = BATCH
    for node in files:
        if size >= BATCH:
            batches.append([])
            size = 0
        batches[-1].append(node)
        size += node.size
    return batches


Anchors = tuple["NDArray[np.int64]", "NDArray[np.uint64]"]


def _scan_batch(batch: list[Node]) -> list[Anchors]:
    return [_scan(node) for node in batch]


def _scan(node: Node) -> Anchors:
    """Return (positions, hashes of what is there) of a file's anchors. Runs of a single value have none."""
    import numpy as np

    positions, hashes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    assert node.inode.content is not None  # noqa: S101 - it is not empty
    for offset in range(0, node.size, PIECE):
        data = read_piece(node.inode.content, offset, min(PIECE + WINDOW, node.size - offset), node.where)
        if not offset and data.startswith(COMPRESSED_MAGIC):
            break
        at = _anchors(data)
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), WINDOW)[at]
        words = np.ascontiguousarray(windows).view("<u8")
        varied = (words != words[:, :1]).any(axis=1)
        positions.append(at[varied] + offset)
        hashes.append(_hash(words[varied]))
    return np.concatenate(positions), np.concatenate(hashes)


def _anchors(data: bytes) -> NDArray[np.int64]:
    import numpy as np

    found = [np.empty(0, np.int64)]
    multiplier, one, limit = np.uint32(MULTIPLIER), np.uint32(1), np.uint32((1 << 32) // RATE)
    last = len(data) - WINDOW
    for base in range(0, last + 1, SCANNED):
        for start in range(base, min(base + 4, last + 1)):
            count = (min(base + SCANNED, last + 1) - start + 3) // 4
            words = np.frombuffer(data, "<u4", count, start)
            found.append(np.flatnonzero(words * multiplier - one < limit) * 4 + start)
    return np.sort(np.concatenate(found))


def _hash(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    import numpy as np

    state = np.zeros(len(words), np.uint64)
    for column in words.T:
        state = (state ^ column) * np.uint64(0x9E3779B97F4A7C15)
        state ^= state >> np.uint64(29)
    return state


def _in_runs(
    positions: NDArray[np.int64], order: NDArray[np.int64], first: NDArray[np.int64], rank: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which anchors were seen before, as was the one STRIDE anchors ahead or back, at the same distance.

    A long match has many anchors; this excludes most of the short ones without looking at their bytes.
    """
    import numpy as np

    by_hash = positions[order]
    farthest = positions - by_hash[first]
    nearest = positions - by_hash[first + np.maximum(rank, 1) - 1]
    runs = np.zeros(len(positions), np.bool_)
    seen = rank > 0
    both = seen[:-STRIDE] & seen[STRIDE:]
    for here in (farthest, nearest):
        for there in (farthest, nearest):
            equal = both & (here[:-STRIDE] == there[STRIDE:])
            runs[:-STRIDE] |= equal
            runs[STRIDE:] |= equal
    return runs


class _Search:
    """Places all files one after the other in a single range of addresses."""

    def __init__(self, files: Sequence[Node], codings: Codings, block_size: int) -> None:
        self.files = files
        self.block_size = block_size
        self.rules = [codings.of(node) for node in files]
        self.starts = [0]
        for node in files:
            self.starts.append(self.starts[-1] + node.size)
        self.pages: OrderedDict[int, bytes] = OrderedDict()
        self.fast = FixedOutput(None, 2 * WEIGHED)
        self.cuts: dict[int, list[int]] = {}
        self.repeats = Repeats()
        self.found: dict[int, list[tuple[int, int, int, int]]] = {}

    def run(self, scanned: Sequence[Anchors]) -> Repeats:
        """Match anchors in order, and keep the matches from which each file gains."""
        import numpy as np

        if not scanned:
            return self.repeats
        algorithms = [rules.codec.algorithm if rules else 0 for rules in self.rules]
        positions = np.concatenate([at + start for (at, _), start in zip(scanned, self.starts, strict=False)])
        hashes = np.concatenate([h ^ np.uint64(a) for (_, h), a in zip(scanned, algorithms, strict=True)])
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(order) else order
        group = np.repeat(begins, np.diff(np.append(begins, len(order))))
        first = np.empty(len(order), np.int64)
        first[order] = group
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - group
        again = np.flatnonzero(_in_runs(positions, order, first, rank))
        by_hash = positions[order]
        current, covered = -1, 0
        taken: list[tuple[int, int, int]] = []
        ends: dict[int, int] = {}
        for address, begin, count in zip(
            positions[again].tolist(), first[again].tolist(), rank[again].tolist(), strict=True
        ):
            if address < covered:
                continue
            number = bisect_right(self.starts, address) - 1
            if number != current:
                self._settle(current, taken)
                current, taken = number, []
                covered = self.starts[number]
                ends = {}
            best = (0, 0, 0)
            for other in by_hash[begin : begin + min(count, CANDIDATES)].tolist():
                if ends.get(address - other, 0) > address:
                    continue  # part of a match that was too short
                length, start = self._match(other, address, covered)
                ends[address - other] = start + length
                best = max(best, (length, start, start + other - address), key=lambda match: match[0])
            if best[0] >= SHORTEST * self.block_size:
                taken.append(best)
                covered = best[1] + best[0]
        self._settle(current, taken)
        return self._result()

    def _match(self, source: int, address: int, covered: int) -> tuple[int, int]:
        """Return (length, first address) of the equal bytes around two addresses, in their files and after
        `covered`."""
        theirs = bisect_right(self.starts, source) - 1
        mine = bisect_right(self.starts, address) - 1
        ahead = min(self.starts[theirs + 1] - source, self.starts[mine + 1] - address)
        back = min(source - self.starts[theirs], address - covered)
        if theirs == mine:  # the original must end before its repetition
            ahead = min(ahead, address - source)
        forward = self._equal(source, address, ahead)
        if theirs == mine:
            back = min(back, max(0, address - source - forward))
        backward = self._equal_before(source, address, back)
        return backward + forward, address - backward

    def _equal(self, a: int, b: int, limit: int) -> int:
        import numpy as np

        done, step = 0, STEP
        while done < limit:
            x, y = self._view(a + done, min(step, limit - done)), self._view(b + done, min(step, limit - done))
            length = min(len(x), len(y))
            if x[:length] != y[:length]:
                return done + int((np.frombuffer(x, np.uint8, length) != np.frombuffer(y, np.uint8, length)).argmax())
            done, step = done + length, 2 * step
        return limit

    def _equal_before(self, a: int, b: int, limit: int) -> int:
        import numpy as np

        done, step = 0, STEP
        while done < limit:
            length = min(step, limit - done)
            x, y = self._bytes(a - done - length, length), self._bytes(b - done - length, length)
            if x != y:
                return done + int((np.frombuffer(x, np.uint8) != np.frombuffer(y, np.uint8))[::-1].argmax())
            done, step = done + length, min(2 * step, PAGE)
        return limit

    def _view(self, address: int, most: int) -> bytes:
        """Return some bytes from an address on, within one file."""
        number = bisect_right(self.starts, address) - 1
        start, node = self.starts[number], self.files[number]
        offset = address - start
        at = offset // PAGE * PAGE
        page = self.pages.get(start + at)
        if page is None:
            assert node.inode.content is not None  # noqa: S101 - it was read before
            page = self.pages[start + at] = read_piece(node.inode.content, at, min(PAGE, node.size - at), node.where)
            if len(self.pages) > PAGES:
                self.pages.popitem(last=False)
        else:
            self.pages.move_to_end(start + at)
        return page[offset - at : offset - at + most]

    def _bytes(self, address: int, length: int) -> bytes:
        out = self._view(address, length)
        while len(out) < length:
            out += self._view(address + len(out), length - len(out))
        return out

    def _settle(self, number: int, taken: list[tuple[int, int, int]]) -> None:
        """Keep the matches (length, address, source) of one file if they save more than they cost."""
        if number < 0 or not taken:
            return
        rules = self.rules[number]
        assert rules is not None  # noqa: S101 - only files with rules are searched
        block_size, start = self.block_size, self.starts[number]
        border = block_size // 4 + rules.pcluster // 64  # one pcluster ends early, one starts without history
        net = -(self.files[number].size // block_size) * (FULL_INDEX.size - 2)
        at = start
        kept: list[tuple[int, int, int]] = []
        new: list[int] = []
        for whole, first, other in taken:
            shift, is_new = self._shift(number, at, first, other, new)
            length, address, source = whole - shift, first + shift, other + shift
            if length < SHORTEST * block_size:
                continue
            gain = self._weight(address, length) - border * (1 + is_new + (address > at))
            if gain <= 0:
                continue
            net += gain
            kept.append((address, length, source))
            if is_new:
                insort(new, source)
            at = address + length
        if net <= 0:
            return
        for source in new:
            insort(self.cuts.setdefault(bisect_right(self.starts, source) - 1, []), source)
        self.found[number] = [(a, n, s, bisect_right(self.starts, s) - 1) for a, n, s in kept]

    def _shift(self, number: int, at: int, address: int, source: int, new: list[int]) -> tuple[int, bool]:
        """Return how many bytes later a match must start so that every extent around it is long enough for an index,
        and whether its source must be cut for that."""
        room = 2 * self.block_size
        theirs = bisect_right(self.starts, source) - 1
        shift = 0
        for _ in range(4):
            before = shift
            if address + shift != at:
                shift = max(shift, at + room - address)
            cut = source + shift
            inside = any(a <= cut < a + n for a, n, *_ in self.found.get(theirs, ()))
            piece = self.starts[theirs] + (cut - self.starts[theirs]) // PIECE * PIECE
            if inside or cut == piece:
                return shift, False
            known = [piece, *self.cuts.get(theirs, ()), *new]
            if cut in known:
                return shift, False
            near = [point for point in known if cut - room < point < cut + room]
            if near:
                shift += min((point if point > cut else point + room) - cut for point in near)
            if shift == before:
                break
        return shift, True

    def _weight(self, address: int, length: int) -> int:
        """Estimate the compressed size of a match in bytes."""
        sample = self._bytes(address, min(length, WEIGHED))
        consumed, produced = self.fast.fill(address_of(sample), len(sample))
        return int(produced * DENSER * length / max(1, consumed))

    def _result(self) -> Repeats:
        """Split the matches by pieces."""
        repeats = self.repeats
        for number, found in self.found.items():
            node, start = self.files[number], self.starts[number]
            for address, length, source, theirs in found:
                other, shift = self.files[theirs], source - self.starts[theirs] - (address - start)
                at, end = address - start, address - start + length
                while at < end:
                    piece = at // PIECE * PIECE
                    part = min(end, piece + PIECE) - at
                    repeats.found.setdefault((node, piece), []).append(Repeat(at, part, other, at + shift))
                    for offset in range((at + shift) // PIECE * PIECE, at + shift + part, PIECE):
                        repeats.numbers.setdefault((other, offset), len(repeats.numbers))
                    at += part
                repeats.sources.add(other)
        for number, cuts in self.cuts.items():
            for address in cuts:
                offset = address - self.starts[number]
                piece = offset // PIECE * PIECE
                repeats.cuts.setdefault((self.files[number], piece), []).append(offset - piece)
        return repeats
