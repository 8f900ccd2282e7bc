# SPDX-License-Identifier: Apache-2.0
"""HTTP and file: read from a mirror or a registry, over connections that are kept open.

Each thread has one connection to each host. Proxies come from the environment (http_proxy, https_proxy, no_proxy), as
in urllib.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from erofs_edge.errors import MirrorError

CONNECT_TIMEOUT = 10.0  # seconds
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 18  # bytes
REDIRECTS = 5
AGENT = "erofs-edge"


Upload = bytes | Callable[[], Iterable[bytes]]
"""the body of a request: bytes, or a function that yields them in pieces, anew for each attempt"""


class GoneError(Exception):
    """The peer answered that it does not have the file."""


class Body(NamedTuple):
    """A file from byte `start` on, in pieces."""

    start: int
    pieces: Iterator[bytes]


def check_scheme(uri: str) -> None:
    """Raises MirrorError if `Client.read` cannot read a URI."""
    try:
        scheme = urllib.parse.urlsplit(uri).scheme
    except ValueError as error:
        raise MirrorError(f"not a usable URI: {error}", where=public(uri)) from error
    if scheme not in ("http", "https", "file", "copy"):
        raise MirrorError(f"mirrors over {scheme!r} are not supported", where=public(uri))


class Client:
    """Connections for a pool of threads. `abort()` wakes every thread that is reading; `close()` is for the end.

    `peer` is the name of the other side in errors.
    """

    def __init__(self, peer: str = "the mirror") -> None:
        self.peer = peer
        self._local = threading.local()
        self._open: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._closed = False

    def read(self, uri: str, start: int) -> Body:
        """The file at `uri`, from byte `start` on if the server supports that, else from its beginning.

        Raises GoneError if it does not exist, MirrorError if the mirror cannot be reached or breaks off; the pieces
        raise MirrorError, too. Either read them to their end or close the client.
        """
        try:
            if urllib.parse.urlsplit(uri).scheme in ("file", "copy"):
                return Body(start, _local_pieces(uri, start))
            return self._follow(uri, start)
        except ValueError as error:
            raise MirrorError(f"not a usable URI: {error}", where=public(uri)) from error

    def _follow(self, uri: str, start: int) -> Body:
        for _ in range(REDIRECTS + 1):
            response = self._ask(uri, start)
            if response.status in (301, 302, 303, 307, 308):
                drain(response)
                uri = redirected(uri, response, self.peer)
                continue
            return self._body(response, uri, start)
        raise MirrorError(f"more than {REDIRECTS} redirects", where=public(uri))

    def abort(self) -> None:
        """Make all reads in progress fail, in whatever thread, and all later ones."""
        with self._lock:
            self._closed = True
            for connection in self._open:
                sock: socket.socket | None = connection.sock
                if sock is not None:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close all connections; no thread may be reading any more."""
        with self._lock:
            self._closed = True
            for connection in self._open:
                connection.close()
            self._open.clear()

    def _body(self, response: http.client.HTTPResponse, uri: str, start: int) -> Body:
        if response.status in (404, 410):
            drain(response)
            raise GoneError(uri)
        if response.status == 416:
            # what we have is longer than the file: start over
            drain(response)
            if start:
                return self._follow(uri, 0)
        return body_of(response, uri, start, self.peer)

    def _ask(self, uri: str, start: int) -> http.client.HTTPResponse:
        return self.ask(uri, {"Range": f"bytes={start}-"} if start else {})

    def ask(
        self, uri: str, headers: Mapping[str, str], *, method: str | None = None, body: Upload | None = None
    ) -> http.client.HTTPResponse:
        """The answer to a GET, or with `body` a POST, or the given `method`, whatever its status; redirects are not
        followed. A body in pieces needs its Content-Length among the headers.

        Read it to its end (see `drain`), or the next request closes its connection. Raises MirrorError if the peer
        cannot be reached, ValueError for an unusable URI.
        """
        parts = urllib.parse.urlsplit(uri)
        headers = {"User-Agent": AGENT, "Accept-Encoding": "identity", **headers}
        if parts.username is not None:
            headers["Authorization"] = _basic(parts)
        proxy = _proxy(parts)
        target = urllib.parse.quote(parts.path or "/", safe="/%~:@!$&'()*,;=")
        if parts.query:
            target += "?" + parts.query
        if proxy is not None and parts.scheme == "http":
            target = urllib.parse.urlunsplit(("http", parts.netloc.rpartition("@")[2], target, "", ""))
            if proxy.username is not None:
                headers["Proxy-Authorization"] = _basic(proxy)
        key = (parts.scheme, parts.netloc)
        while True:
            connection, used = self._connection(key, parts, proxy)
            try:
                if not used:
                    _connect(connection)
                data = body() if callable(body) else body
                connection.request(method or ("GET" if body is None else "POST"), target, data, headers)
                response = connection.getresponse()
                self._local.last = (key, response)
                return response
            except (OSError, http.client.HTTPException) as error:
                self._forget(key, connection)
                # a server may close an idle connection at any time: that is not a failure
                if not used or self._closed:
                    raise MirrorError(f"cannot reach {self.peer}: {_reason(error)}", where=public(uri)) from error

    def _connection(
        self, key: tuple[str, str], parts: urllib.parse.SplitResult, proxy: urllib.parse.SplitResult | None
    ) -> tuple[http.client.HTTPConnection, bool]:
        """This thread's connection to a host, and whether it has been used before."""
        mine: dict[tuple[str, str], http.client.HTTPConnection] = self._local.__dict__.setdefault("open", {})
        last_key, last = self._local.__dict__.get("last", (None, None))
        if last is not None and not last.isclosed() and last_key in mine:
            # an answer that was not read to its end blocks the connection
            self._forget(last_key, mine[last_key])
        if key in mine:
            return mine[key], True
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        host, port = parts.hostname or "", parts.port
        if proxy is None:
            connection = kind(host, port, timeout=CONNECT_TIMEOUT)
        else:
            connection = kind(proxy.hostname or "", proxy.port or 80, timeout=CONNECT_TIMEOUT)
            if parts.scheme == "https":
                tunnel = {"Proxy-Authorization": _basic(proxy)} if proxy.username is not None else {}
                connection.set_tunnel(host, port, headers=tunnel)
        with self._lock:
            if self._closed:
                raise MirrorError("the download was stopped", where=host)
            self._open.append(connection)
        mine[key] = connection
        return connection, False

    def _forget(self, key: tuple[str, str], connection: http.client.HTTPConnection) -> None:
        connection.close()
        self._local.__dict__.get("open", {}).pop(key, None)
        with self._lock:
            if connection in self._open:
                self._open.remove(connection)


def _connect(connection: http.client.HTTPConnection) -> None:
    connection.connect()
    sock: socket.socket | None = connection.sock
    if sock is not None:
        sock.settimeout(TIMEOUT)


def body_of(response: http.client.HTTPResponse, uri: str, start: int, peer: str) -> Body:
    """The content of a successful answer. Raises MirrorError for any other."""
    if response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        return Body(start, _pieces(response, uri, peer))
    if response.status == 200:
        return Body(0, _pieces(response, uri, peer))
    drain(response)
    raise MirrorError(f"{peer} answered {response.status} {response.reason}", where=public(uri))


def redirected(uri: str, response: http.client.HTTPResponse, peer: str) -> str:
    """The target of an answer with status 301, 302, 303, 307 or 308. Raises MirrorError unless that is HTTP."""
    target = urllib.parse.urljoin(uri, response.headers.get("Location", ""))
    if urllib.parse.urlsplit(target).scheme not in ("http", "https"):
        raise MirrorError(f"{peer} redirects to another scheme", where=public(target))
    return target


def drain(response: http.client.HTTPResponse) -> None:
    """Read a short answer to its end and discard it, so that the connection can be reused."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        response.read(CHUNK)


def _pieces(response: http.client.HTTPResponse, uri: str, peer: str) -> Iterator[bytes]:
    left = response.length
    try:
        while piece := response.read(CHUNK):
            yield piece
            if left is not None:
                left -= len(piece)
    except (OSError, http.client.HTTPException) as error:
        raise MirrorError(f"the transfer from {peer} broke off: {_reason(error)}", where=public(uri)) from error
    if left:
        raise MirrorError(f"the transfer from {peer} broke off, {left} bytes are missing", where=public(uri))


def _local_pieces(uri: str, start: int) -> Iterator[bytes]:
    path = Path(urllib.parse.unquote(urllib.parse.urlsplit(uri).path))
    try:
        with path.open("rb") as file:
            file.seek(start)
            while piece := file.read(CHUNK):
                yield piece
    except FileNotFoundError:
        raise GoneError(uri) from None
    except OSError as error:
        raise MirrorError(f"cannot read: {error.strerror}", where=str(path)) from error


def _proxy(parts: urllib.parse.SplitResult) -> urllib.parse.SplitResult | None:
    named = urllib.request.getproxies().get(parts.scheme)
    if not named or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return urllib.parse.urlsplit(named if "://" in named else f"http://{named}")


def _basic(parts: urllib.parse.SplitResult) -> str:
    text = f"{urllib.parse.unquote(parts.username or '')}:{urllib.parse.unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(text.encode()).decode()


def public(uri: str) -> str:
    """The URI without user name and password, for messages."""
    try:
        parts = urllib.parse.urlsplit(uri)
    except ValueError:
        return re.sub(r"//.*@", "//", uri)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
