# SPDX-License-Identifier: Apache-2.0
"""A web server of one file, for firmware in QEMU that starts over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE = 64 << 10
KIND = "application/octet-stream"
PATIENCE = 60  # seconds for a client that does not ask, or does not take what it asked for


@contextmanager
def serve_file(path: Path) -> Iterator[int]:
    """The port of 127.0.0.1 where `/NAME` of that file is had, and nothing else, until the end of the context. The file
    may come into being later: until then it is not found."""

    class Handler(BaseHTTPRequestHandler):
        """One request for each connection (HTTP/1.0), as U-Boot makes them."""

        timeout = PATIENCE

        def do_GET(self) -> None:
            """The file, or 404."""
            try:
                file = path.open("rb") if self.path == f"/{path.name}" else None
            except OSError:
                file = None
            if file is None:
                self.send_error(404)
                return
            with file:
                self.send_response(200)
                self.send_header("Content-Type", KIND)
                self.send_header("Content-Length", str(path.stat().st_size))
                self.end_headers()  # in one packet with the status: U-Boot looks for both in the first one
                while piece := file.read(PIECE):
                    self.wfile.write(piece)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    class Quiet(ThreadingHTTPServer):
        """A machine that is ended in the middle of a transfer is nothing to tell."""

        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """The connection is closed, as after any other end."""

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
