# SPDX-License-Identifier: Apache-2.0
"""A registry's interface beyond pulling: OCI distribution-spec 1.1, "Push", "Listing Referrers" and its fallback for
registries before 1.1, ranges of blobs.

Uploads are a POST and one PUT, which every registry accepts. Nothing is retried here; callers do that. An answer that
is not read costs its connection (Client.ask).
"""

from __future__ import annotations

import http.client
import urllib.parse
from typing import Any

import msgspec

from erofs_edge.errors import MirrorError, SourceError
from erofs_edge.sources.http import CHUNK, Upload, drain, public
from erofs_edge.sources.oci.credentials import find_login
from erofs_edge.sources.oci.documents import INDEX_TYPES, MANIFEST_TYPES, MAX_DOCUMENT
from erofs_edge.sources.oci.reference import Reference
from erofs_edge.sources.oci.registry import PEER, Registry

REFERRERS_MAX = 256
INDEX = INDEX_TYPES[0]


class Referrer(msgspec.Struct, frozen=True, rename={"media_type": "mediaType", "kind": "artifactType"}):
    """A manifest that refers to another: `digest` ('sha256:…'), `kind` its artifactType."""

    digest: str
    size: int = 0
    media_type: str = ""
    kind: str = ""
    annotations: dict[str, str] = {}


class _Index(msgspec.Struct, frozen=True):
    manifests: list[Referrer] = []


class Remote(Registry):
    """One repository of a registry, for reading and writing. Methods raise MirrorError if it fails or refuses."""

    def has_blob(self, sha256: str) -> bool:
        """Whether the repository has a blob."""
        return self._has(self.blob_uri(f"sha256:{sha256}"), {})

    def has_manifest(self, name: str) -> bool:
        """Whether the repository has a manifest under a tag or digest ('sha256:…')."""
        return self._has(f"{self.base}/manifests/{name}", {"Accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))})

    def upload(self, sha256: str, size: int, body: Upload) -> None:
        """Store a blob of `size` bytes. The registry itself refuses one with another hash."""
        start = f"{self.base}/blobs/uploads/"
        response = self.ask(start, {"Content-Length": "0"}, method="POST", body=b"")
        if response.status != 202:
            raise self.refused(start, response)
        drain(response)
        place = urllib.parse.urljoin(start, response.headers.get("Location", ""))
        if start.startswith("https:") and not place.startswith("https:"):
            raise MirrorError(f"{PEER} sends an upload from TLS to plain HTTP", where=public(place))
        uri = f"{place}{'&' if '?' in place else '?'}digest=sha256:{sha256}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        response = self.ask(uri, headers, method="PUT", body=body)
        if response.status != 201:
            raise self.refused(self.blob_uri(f"sha256:{sha256}"), response)
        drain(response)

    def put_manifest(self, name: str, data: bytes, media_type: str) -> bool:
        """Store a manifest under a tag or digest; return whether the registry supports subjects, and lists this one
        there.
        """
        uri = f"{self.base}/manifests/{name}"
        response = self.ask(uri, {"Content-Type": media_type}, method="PUT", body=data)
        if response.status not in (200, 201, 202):
            raise self.refused(uri, response)
        drain(response)
        return "OCI-Subject" in response.headers

    def referrers(self, sha256: str) -> list[Referrer]:
        """The referrers of a manifest, from the registry's list or from the fallback tag."""
        uri = f"{self.base}/referrers/sha256:{sha256}"
        response = self.ask(uri, {"Accept": INDEX})
        if response.status == 200:
            return _listed(self._bounded(response, uri), uri)
        if response.status not in (400, 404, 405):
            raise self.refused(uri, response)
        drain(response)
        return self.tagged_referrers(sha256)

    def tagged_referrers(self, sha256: str) -> list[Referrer]:
        """What the tag sha256-… lists, for registries without a list ("Referrers Tag Schema")."""
        tag = f"sha256-{sha256}"
        if not self.has_manifest(tag):
            return []
        return _listed(self.manifest(tag), f"{self.base}/manifests/{tag}")

    def list_by_tag(self, sha256: str, known: list[Referrer]) -> None:
        """Make that tag list these."""
        manifests = [msgspec.to_builtins(one) for one in known]
        value: dict[str, Any] = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        self.put_manifest(f"sha256-{sha256}", msgspec.json.encode(value, order="sorted"), INDEX)

    def blob(self, sha256: str, limit: int) -> bytes:
        """A small blob, unchecked. Raises SourceError if it has more than `limit` bytes or does not exist."""
        uri = self.blob_uri(f"sha256:{sha256}")
        response = self.ask(uri, {})
        if response.status != 200:
            if response.status in (404, 410):
                drain(response)
                raise SourceError(f"the registry has no sha256:{sha256}", where=public(uri))
            raise self.refused(uri, response)
        return self._bounded(response, uri, limit)

    def range(self, sha256: str, start: int, length: int) -> bytes:
        """Bytes of a blob, unchecked. Raises SourceError if the registry does not support ranges."""
        uri = self.blob_uri(f"sha256:{sha256}")
        response = self.ask(uri, {"Range": f"bytes={start}-{start + length - 1}"})
        if response.status == 200 and (start or response.length != length):
            raise SourceError(
                "the registry cannot send parts of blobs", where=public(uri), hint="fetch all of it: erofs-edge pull"
            )
        if response.status not in (200, 206):
            raise self.refused(uri, response)
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise MirrorError(f"{PEER} answered with other bytes than were asked for", where=public(uri))
        data = self._bounded(response, uri, length)
        if len(data) != length:
            raise MirrorError(
                f"the transfer from {PEER} broke off, {length - len(data)} bytes are missing", where=public(uri)
            )
        return data

    def _has(self, uri: str, headers: dict[str, str]) -> bool:
        response = self.ask(uri, headers, method="HEAD")
        drain(response)
        if response.status in (200, 404):
            return response.status == 200
        raise self.refused(uri, response)

    def _bounded(self, response: http.client.HTTPResponse, uri: str, limit: int = MAX_DOCUMENT) -> bytes:
        parts, have = [], 0
        try:
            while piece := response.read(CHUNK):
                have += len(piece)
                if have > limit:
                    raise SourceError(f"{PEER}'s answer has more than {limit} bytes", where=public(uri))
                parts.append(piece)
        except (OSError, http.client.HTTPException) as error:
            raise MirrorError(f"the transfer from {PEER} broke off: {error}", where=public(uri)) from error
        return b"".join(parts)


def _listed(data: bytes, uri: str) -> list[Referrer]:
    try:
        index = msgspec.json.decode(data, type=_Index)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"not a list of referrers: {error}", where=public(uri)) from error
    return index.manifests[:REFERRERS_MAX]


def open_remote(reference: Reference, *, plain_http: bool = False) -> Remote:
    """The repository of a reference, with the login from docker's configuration."""
    return Remote(reference, plain_http=plain_http, login=lambda: find_login(reference.registry))
