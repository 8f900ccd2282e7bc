# SPDX-License-Identifier: Apache-2.0
"""Registries on this machine: Debian's docker-registry with every kind of login, and one that says what it is told."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from waiting import reserved_port, wait_for

SECRET = "user:$2b$04$bnMWdQSDDD6UFrkpF9uiV.kgiiAITBrBWoymSEr.kIJBzmSoJ67DW\n"
"""htpasswd's line of the password 'secret'"""


@contextlib.contextmanager
def real_registry(program: str, folder: Path, **parts: Any) -> Iterator[int]:
    """A running registry with its data in a folder; its port. `parts` go into its configuration (JSON is YAML)."""
    folder.mkdir(parents=True, exist_ok=True)
    port = reserved_port()
    http = {"addr": f"127.0.0.1:{port}", **parts.pop("http", {})}
    storage = {"filesystem": {"rootdirectory": str(folder / "data")}}
    configuration = {"version": "0.1", "log": {"level": "error"}, "storage": storage, "http": http, **parts}
    (folder / "config.yml").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        wait_for(process, port, folder / "log")
        yield port
    finally:
        process.terminate()
        process.wait(60)


def coded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class TokenService:
    """Gives tokens that docker-registry believes: JWT with ES256 and the certificate in x5c."""

    certificate: Path
    port: int
    asked: list[tuple[str, str | None, str]] = field(default_factory=list)
    """(query or form, Authorization, method) of each request"""

    def token(self, scope: str) -> str:
        pem = self.certificate.read_bytes()
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        der = x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERT") :]).public_bytes(
            serialization.Encoding.DER
        )
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        kind, name, actions = scope.split(":")
        now = int(time.time())
        claims = {
            "iss": "tests", "sub": "user", "aud": "the registry", "exp": now + 300, "nbf": now - 10, "iat": now,
            "jti": "1", "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }  # fmt: skip
        signed = f"{coded(json.dumps(header).encode())}.{coded(json.dumps(claims).encode())}"
        r, s = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{coded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def answer(self, query: str, authorization: str | None, method: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append((query, authorization, method))
        fields = dict(urllib.parse.parse_qsl(query))
        known = authorization == "Basic " + base64.b64encode(b"user:secret").decode()
        if not known and fields.get("refresh_token") != "identity":
            return 401, {}, b'{"errors": [{"code": "UNAUTHORIZED", "message": "nobody knows you"}]}'
        key = "access_token" if method == "POST" else "token"
        return 200, {}, json.dumps({key: self.token(fields["scope"])}).encode()


Answer = Callable[[str, dict[str, str], bytes, str], tuple[int, dict[str, str], bytes]]


@contextlib.contextmanager
def fake_server(answer: Answer) -> Iterator[int]:
    """A server that calls answer(path, headers, body, method); its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, data = answer(self.path, dict(self.headers), body, self.command)
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data)
            if "Content-Length" in headers:
                self.close_connection = True

        do_POST = do_PUT = do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Fake:
    """What a registry would say: path below /v2/ → content; `faults`: path → answer instead, as often as listed."""

    contents: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[tuple[int, dict[str, str], bytes]]] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def hold(self, name: str, tag: str, blobs: dict[str, bytes], manifest: bytes) -> None:
        self.contents |= {f"{name}/blobs/{digest}": data for digest, data in blobs.items()}
        self.contents |= {f"{name}/manifests/{one}": manifest for one in (tag, hash_of(manifest))}

    def __call__(self, path: str, headers: dict[str, str], _body: bytes, _method: str) -> Any:
        path = path.removeprefix("/v2/")
        self.seen.append((path, headers))
        if self.faults.get(path):
            return self.faults[path].pop(0)
        if path not in self.contents:
            return 404, {}, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
        data = self.contents[path]
        start = int(headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start:
            return 206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:]
        return 200, {}, data


def hash_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
