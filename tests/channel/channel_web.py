# SPDX-License-Identifier: Apache-2.0
"""A web server that supports ranges and counts what it sent, and functions that fill a channel behind it."""

from __future__ import annotations

import http.server
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from erofs_edge.channel.publish import Keys, add, publish
from erofs_edge.simulator.build import build_folder
from erofs_edge.trust.key import KeySigner

Change = Callable[[str, bytes], bytes | None]


@dataclass
class Web:
    """Serves `folder` at `url`. `change(path, content)` may answer with something else, or None for 404; `sent`: bytes
    by path of its first folder; `ranges`: whether ranges are supported."""

    folder: Path
    url: str = ""
    ranges: bool = True
    sent: dict[str, int] = field(default_factory=dict)
    change: Change = field(default=lambda path, data: data)


def handler_of(web: Web) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = web.folder / self.path.lstrip("/")
            data = web.change(self.path, path.read_bytes()) if path.is_file() else None
            if data is None:
                self.send_error(404)
                return
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if web.ranges else None
            if asked:
                size, first, last = len(data), int(asked[1]), int(asked[2])
                data = data[first : last + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{size}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            kind = self.path.split("/")[1]
            web.sent[kind] = web.sent.get(kind, 0) + len(data)
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


def roles(keys: dict[str, KeySigner]) -> dict[str, Keys]:
    online = Keys((keys["online"],))
    return {
        "root": Keys((keys["r1"], keys["r2"]), 2),
        "targets": Keys((keys["t1"], keys["t2"]), 2),
        "snapshot": online,
        "timestamp": online,
    }


def release(web: Web, keys: dict[str, KeySigner], tmp_path: Path, version: int) -> Path:
    """Publish a version. Return the folder of its build."""
    out = build_folder(tmp_path / f"v{version}", version)
    add(web.folder, out)
    publish(web.folder, [keys[name] for name in ("t1", "t2", "online")], now=datetime.now(UTC))
    return out
