# SPDX-License-Identifier: Apache-2.0
"""Container images made by hand, written as layouts and pushed to registries."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard
from sources.samples import entry, tar_bytes
from waiting import WAIT

OCI = "application/vnd.oci.image."
MANIFEST = OCI + "manifest.v1+json"
INDEX = OCI + "index.v1+json"
CODECS = {
    "": lambda data: data,
    "+gzip": lambda data: gzip.compress(data, mtime=0),
    "+zstd": zstandard.ZstdCompressor().compress,
}
Entries = list[tuple[tarfile.TarInfo, bytes]]


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass
class Image:
    """blobs by digest; `manifest` is one of them. `descriptor` is what an index says of it."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifest: bytes = b""
    descriptor: dict[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.manifest).hexdigest()

    def add(self, data: bytes, media_type: str) -> dict[str, Any]:
        self.blobs[digest(data)] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def image(layers: list[bytes], codec: str = "+gzip", arch: str = "arm64", variant: str = "", **manifest: Any) -> Image:
    """An image of tar archives, the lowest first."""
    made = Image()
    config = {
        "architecture": arch,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": made.add(json.dumps(config).encode(), OCI + "config.v1+json"),
        "layers": [made.add(CODECS[codec](layer), f"{OCI}layer.v1.tar{codec}") for layer in layers],
        **manifest,
    }
    made.manifest = json.dumps(document).encode()
    platform = {"architecture": arch, "os": "linux", **({"variant": variant} if variant else {})}
    made.descriptor = {**made.add(made.manifest, MANIFEST), "platform": platform}
    return made


def index_of(*images: Image) -> bytes:
    manifests = [one.descriptor for one in images]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode()


def write_layout(folder: Path, *images: Image, index: bytes | None = None) -> Path:
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_bytes(index or index_of(*images))
    for one in images:
        for name, data in one.blobs.items():
            (blobs / name.removeprefix("sha256:")).write_bytes(data)
    return folder


def tar_of(folder: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for one in sorted(folder.rglob("*")):
            tar.add(one, one.relative_to(folder), recursive=False)
    return path


def named(one: Image, name: str) -> Image:
    descriptor = {**one.descriptor, "annotations": {"org.opencontainers.image.ref.name": name}}
    return Image(one.blobs, one.manifest, descriptor)


def files(**contents: str) -> bytes:
    """A layer of small files; '__' in a name is '/'."""
    return tar_bytes([entry(name.replace("__", "/"), text.encode()) for name, text in contents.items()])


def push(port: int, name: str, tag: str, *images: Image, headers: dict[str, str] | None = None, tls: Any = None) -> str:
    """Push images (and an index where there are several) in plain requests; the digest of what the tag names."""
    kind: Any = http.client.HTTPSConnection if tls is not None else http.client.HTTPConnection
    connection = kind("127.0.0.1", port, timeout=WAIT, **({"context": tls} if tls is not None else {}))
    headers = headers or {}

    def ask(method: str, path: str, body: bytes = b"", **more: str) -> http.client.HTTPResponse:
        connection.request(method, path, body, {**headers, **{k.replace("_", "-"): v for k, v in more.items()}})
        response = connection.getresponse()
        text = response.read()
        assert response.status < 300, (method, path, response.status, text)
        return response

    for one in images:
        for known, data in one.blobs.items():
            if data is one.manifest:
                continue
            place = ask("POST", f"/v2/{name}/blobs/uploads/").headers["Location"]
            place = place[place.index("/v2/") :]
            at = f"{place}{'&' if '?' in place else '?'}digest={known}"
            ask("PUT", at, data, Content_Type="application/octet-stream")
        ask("PUT", f"/v2/{name}/manifests/{digest(one.manifest)}", one.manifest, Content_Type=MANIFEST)
    top, kind_of = (images[0].manifest, MANIFEST) if len(images) == 1 else (index_of(*images), INDEX)
    ask("PUT", f"/v2/{name}/manifests/{tag}", top, Content_Type=kind_of)
    connection.close()
    return digest(top)


def many(entries: Entries) -> bytes:
    return tar_bytes(entries)


def raw_tar(*members: tuple[str, bytes]) -> bytes:
    """A tar whose names are taken as they are, doubles included."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
