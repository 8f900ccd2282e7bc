# SPDX-License-Identifier: Apache-2.0
"""Web servers on this machine for what runs in QEMU: for one file, when firmware boots over HTTP; and for any
requests.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

PIECE = 64 << 10
KIND = "application/octet-stream"
PATIENCE = 60  # seconds for a client that sends no request, or does not take the answer


@contextmanager
def serve_file(path: Path) -> Iterator[int]:
    """The port of 127.0.0.1 on which `/NAME` of that file is served, and nothing else, for the duration of the block.
    The file may be created later: until then the answer is 404."""

    class Handler(BaseHTTPRequestHandler):
        """One request per connection (HTTP/1.0), as from U-Boot."""

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
            """Discard log messages."""

    with served(Handler) as port:
        yield port


@contextmanager
def served(handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of 127.0.0.1 on which these requests are served, over HTTPS with `tls`, for the duration of the
    block.
    """
    server = _Quiet(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(ThreadingHTTPServer):
    """A machine that is stopped in the middle of a transfer is not worth a message."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Just close the connection, as after any other end."""
