# SPDX-License-Identifier: Apache-2.0
"""A mirror on this machine that misbehaves on demand."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
import urllib.parse
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from erofs_edge.manifest.model import LockedPackage
from erofs_edge.sources.debian.mirror import Mirror


class FakeMirror:
    """files: path → content. Faults are by path, too:

    cut      the connection breaks after so many bytes of each answer, as often as `cuts` says (default: always)
    status   answer with this status instead
    pause    seconds before each 10,000 bytes
    hold     nothing after so many bytes of an answer until `go` is set; `held_up` says that nobody did in two minutes
    ranges   whether ranges are served
    hang_up  close the connection after each answer without having said so
    refusal  the body of answers with a status that is no success
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.cuts: dict[str, int] = {}
        self.status: dict[str, int] = {}
        self.redirect: dict[str, str] = {}
        self.pause: dict[str, float] = {}
        self.hold: dict[str, int] = {}
        self.go = threading.Event()
        self.held_up = False
        self.ranges = True
        self.hang_up = False
        self.refusal = b"no"
        self.requests: list[tuple[str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        self.sent: Counter[str] = Counter()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    def mirror(self, scheme: str = "http", host: str | None = None) -> Mirror:
        base = f"{scheme}://{host or f'127.0.0.1:{self.port}'}"
        return Mirror({"debian": f"{base}/debian", "debian-security": f"{base}/security"}, Path("/none"))

    def add(self, name: str, data: bytes, version: str = "1.0", archive: str = "debian") -> LockedPackage:
        path = f"pool/main/{name}_{version}_arm64.deb"
        self.files[f"/{archive.removeprefix('debian-')}/{path}"] = data
        return locked(name, data, path, version=version, archive=archive)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                outer.connections += 1

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

            def do_GET(self) -> None:
                outer.answer(self)

        return Handler

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(handler.path).path)
        wanted = handler.headers.get("Range")
        self.requests.append((path, wanted))
        self.headers.append(dict(handler.headers))
        data = self.files.get(path)
        status = self.status.get(path, 200 if data is not None else 404)
        if path in self.redirect:
            handler.send_response(302)
            handler.send_header("Location", self.redirect[path])
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if status != 200 or data is None:
            body = self.refusal
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            with contextlib.suppress(OSError):
                handler.wfile.write(body)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        if start >= len(data) and start:
            handler.send_response(416)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        self._send(handler, path, data[start:])
        if self.hang_up:
            handler.close_connection = True

    def _send(self, handler: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        limit = len(body)
        if path in self.cut and self.cuts.get(path, 1) > 0:
            self.cuts[path] = self.cuts.get(path, 10**9) - 1
            limit = min(limit, self.cut[path])
        for at in range(0, limit, 10_000):
            time.sleep(self.pause.get(path, 0))
            if at >= self.hold.get(path, limit) and not self.go.wait(120):
                self.held_up = True
            piece = body[at : min(at + 10_000, limit)]
            self.sent[path] += len(piece)  # before the client can have it: it may look at once
            try:
                handler.wfile.write(piece)
            except OSError:
                self.sent[path] -= len(piece)
                handler.close_connection = True
                return
        if limit < len(body):
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)


def locked(
    name: str, data: bytes, path: str, *, version: str = "1.0", archive: str = "debian", sha256: str | None = None
) -> LockedPackage:
    return LockedPackage(
        name=name,
        version=version,
        arch="arm64",
        archive=archive,
        path=path,
        size=len(data),
        sha256=sha256 or hashlib.sha256(data).hexdigest(),
    )
