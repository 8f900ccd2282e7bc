# SPDX-License-Identifier: Apache-2.0
"""Assemble an image from blocks that are already here and from others, fetched in ranges from a web server.

Wherever a block comes from (an older image, the device itself or the server), its SHA-256 is compared with the index
before it is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

from erofs_edge.channel.index import BLOCK, Index
from erofs_edge.disk.sparse import data_extents
from erofs_edge.errors import CapacityError, MirrorError, SourceError, VerificationError
from erofs_edge.sources.http import Client, body_of, drain, public, redirected
from erofs_edge.writing import sparse_beside

GAP = 2  # blocks fetched needlessly: fewer than one more request would cost
REQUEST = 1024  # maximum blocks per request
_READ = 4 << 20
_REDIRECTS = 5

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Fetched:
    """Bytes of the image's blocks that were found here and that came from the server; number of requests to it."""

    local: int
    remote: int
    requests: int


def make_image(
    index: Index, url: str, target: Path, seeds: Sequence[Path], client: Client, progress: Progress | None = None
) -> Fetched:
    """Make the image of an index. `url`: the file of its blocks; `seeds`: images or devices to search first.

    The target is written beside its place and renamed. Raises MirrorError if the server cannot be reached or breaks
    off, VerificationError if a block does not match the index, CapacityError if the disk is full.
    """
    wanted = {index.digest(number): number for number in range(index.distinct)}
    where = _users(index)
    try:
        with sparse_beside(target, index.size, "the image") as fd:
            for seed in seeds:
                _take(fd, seed, index, wanted, where)
            local = index.distinct - len(wanted)
            runs = list(_runs(sorted(wanted.values())))
            total = sum(count for _, count in runs)
            done = 0
            for first, data in _fetch(url, runs, client):
                for inside in range(0, len(data), BLOCK):
                    number, block = first + inside // BLOCK, data[inside : inside + BLOCK]
                    if hashlib.sha256(block).digest() != index.digest(number):
                        raise VerificationError(f"block {number} does not match the index", where=public(url))
                    _put(fd, block, where[number])
                done += len(data) // BLOCK
                if progress is not None:
                    progress(done * BLOCK, total * BLOCK)
    except OSError as error:
        raise CapacityError(f"cannot write the image: {error.strerror}", where=str(target)) from error
    return Fetched(local * BLOCK, total * BLOCK, len(runs))


def _users(index: Index) -> list[list[int]]:
    """The offsets at which each distinct block is used."""
    where: list[list[int]] = [[] for _ in range(index.distinct)]
    places = iter(index.places)
    for start, end in index.ranges:
        for at in range(start, end, BLOCK):
            where[next(places)].append(at)
    return where


def _put(fd: int, block: bytes, offsets: list[int]) -> None:
    for at in offsets:
        os.pwrite(fd, block, at)


def _take(fd: int, seed: Path, index: Index, wanted: dict[bytes, int], where: list[list[int]]) -> None:
    """Copy the blocks that a seed has and mark them as no longer needed. An unreadable seed has none."""
    try:
        source = os.open(seed, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        size = min(os.lseek(source, 0, os.SEEK_END), index.size)
        for start, end in _data(source, size, index):
            for at in range(start, end, _READ):
                if not wanted:
                    return
                data = os.pread(source, min(_READ, end - at), at)
                for inside in range(0, len(data) - BLOCK + 1, BLOCK):
                    block = data[inside : inside + BLOCK]
                    number = wanted.pop(hashlib.sha256(block).digest(), None)
                    if number is not None:
                        _put(fd, block, where[number])
    except OSError:
        return  # what it has supplied so far is verified; the rest is fetched
    finally:
        os.close(source)


def _data(source: int, size: int, index: Index) -> Iterator[tuple[int, int]]:
    """Where to search: the data of a file; on a device, which may be large, the places where the image has data."""
    import stat

    if stat.S_ISREG(os.fstat(source).st_mode):
        for first, last in data_extents(source, size, 0):
            yield first - first % BLOCK, last
        return
    yield from ((start, min(end, size)) for start, end in index.ranges if start < size)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of the requests: small gaps are read too."""
    first = last = -1
    for number in numbers:
        if first >= 0 and (number - last - 1 > GAP or number - first >= REQUEST):
            yield first, last - first + 1
            first = number
        elif first < 0:
            first = number
        last = number
    if first >= 0:
        yield first, last - first + 1


def _fetch(url: str, runs: list[tuple[int, int]], client: Client) -> Iterator[tuple[int, bytes]]:
    """(number of the first block, whole blocks). A server without ranges sends everything once."""
    for position, (first, count) in enumerate(runs):
        found = _range(url, first * BLOCK, count * BLOCK, client)
        if not isinstance(found, bytes):
            yield from _whole(found, runs[position:], url, client)
            return
        yield first, found


def _range(url: str, start: int, length: int, client: Client) -> bytes | Iterator[bytes]:
    """A range of a file on the server; the whole file in pieces if the server does not support ranges."""
    if url.startswith("file:"):
        return _local(url, start, length)
    for _ in range(_REDIRECTS):
        response = client.ask(url, {"Range": f"bytes={start}-{start + length - 1}"})
        if response.status in (301, 302, 303, 307, 308):
            drain(response)
            url = redirected(url, response, client.peer)
            continue
        if response.status == 200:
            return body_of(response, url, 0, client.peer).pieces
        if response.status in (404, 410):
            drain(response)
            raise SourceError("the channel has no such file", where=public(url))
        if response.status != 206:
            drain(response)
            raise MirrorError(f"{client.peer} answered {response.status} {response.reason}", where=public(url))
        try:
            data = response.read(length)
        except (OSError, HTTPException) as error:
            raise MirrorError(f"the transfer from {client.peer} broke off: {error}", where=public(url)) from error
        said = response.headers.get("Content-Range", "")
        if len(data) != length or not said.startswith(f"bytes {start}-{start + length - 1}/"):
            raise MirrorError(f"{client.peer} sent a different range than was asked for", where=public(url))
        return data
    raise MirrorError(f"more than {_REDIRECTS} redirects", where=public(url))


def _local(url: str, start: int, length: int) -> bytes:
    """Bytes of a file of this machine: a channel on a USB stick."""
    path = Path(unquote(urlsplit(url).path))
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(length)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
    if len(data) != length:
        raise SourceError("the file is too short", where=str(path))
    return data


def _whole(
    pieces: Iterator[bytes], runs: list[tuple[int, int]], url: str, client: Client
) -> Iterator[tuple[int, bytes]]:
    """The needed parts of a file that is sent as a whole."""
    held, at = b"", 0
    for first, count in runs:
        start, end = first * BLOCK, (first + count) * BLOCK
        while at + len(held) < end:
            at, held = (at, held) if at + len(held) > start else (at + len(held), b"")
            piece = next(pieces, b"")
            if not piece:
                raise MirrorError(f"{client.peer} sent less than was asked for", where=public(url))
            held += piece
        yield first, held[start - at : end - at]
        held, at = held[end - at :], end
    for _ in pieces:
        pass
