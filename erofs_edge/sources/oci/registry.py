# SPDX-License-Identifier: Apache-2.0
"""Client of a registry: OCI distribution-spec 1.1, "Pull"; tokens as in Docker's "Token Authentication". Pushes use it
too (registry/remote.py).

Nothing received is trusted: callers check manifests and blobs against digests. Credentials are sent to the registry and
to the token service that it names, over TLS unless plain HTTP was chosen, and never along a redirect to another host.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import threading
import urllib.parse
from collections.abc import Callable

import msgspec

from erofs_edge.errors import MirrorError, SourceError
from erofs_edge.sources.http import REDIRECTS, Body, Client, GoneError, Upload, body_of, drain, public, redirected
from erofs_edge.sources.oci.credentials import Login
from erofs_edge.sources.oci.documents import INDEX_TYPES, MANIFEST_TYPES, MAX_DOCUMENT, check_bytes
from erofs_edge.sources.oci.reference import Reference

PEER = "the registry"
_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: list[dict[str, object]] = []


class Registry:
    """One repository of a registry. `login` is called when the registry requests authentication."""

    def __init__(
        self, reference: Reference, *, plain_http: bool = False, login: Callable[[], Login | None] = lambda: None
    ) -> None:
        self.reference = reference
        scheme = "http" if plain_http or reference.is_local else "https"
        self.base = f"{scheme}://{reference.registry}/v2/{reference.name}"
        self._client = Client(PEER)
        self._login = login
        self._lock = threading.Lock()
        self._authorization = ""

    def manifest(self, name: str) -> bytes:
        """The index or manifest of a tag, or of a digest ('sha256:…'), against which the content is then checked.

        Raises SourceError if there is none, MirrorError if the registry cannot be reached or refuses, VerificationError
        if the content does not match the digest.
        """
        uri = f"{self.base}/manifests/{name}"
        try:
            body = self._read(uri, 0, {"Accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))})
        except GoneError:
            raise SourceError(
                f"the registry has no {self.reference.name} {name}", where=public(uri), hint="check name and tag"
            ) from None
        data = b""
        for piece in body.pieces:
            data += piece
            if len(data) > MAX_DOCUMENT:
                self.abort()
                raise SourceError(f"a manifest of more than {MAX_DOCUMENT} bytes", where=public(uri))
        if name.startswith("sha256:"):
            check_bytes(data, name.removeprefix("sha256:"), hashlib.sha256(data).hexdigest(), public(uri))
        return data

    def blob_uri(self, digest: str) -> str:
        """The URI of a blob ('sha256:…'), for `read`."""
        return f"{self.base}/blobs/{digest}"

    def read(self, uri: str, start: int) -> Body:
        """A blob from byte `start` on, if the registry supports that, else from its beginning; see Client.read."""
        return self._read(uri, start, {"Range": f"bytes={start}-"} if start else {})

    def abort(self) -> None:
        """Make all reads in progress fail, and all later ones."""
        self._client.abort()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _read(self, uri: str, start: int, headers: dict[str, str]) -> Body:
        response = self.ask(uri, headers)
        if response.status == 416 and start:
            drain(response)
            return self._read(uri, 0, {})
        if response.status in (404, 410):
            drain(response)
            raise GoneError(uri)
        if response.status not in (200, 206):
            raise self.refused(uri, response)
        return body_of(response, uri, start, PEER)

    def ask(
        self, uri: str, headers: dict[str, str], *, method: str = "GET", body: Upload | None = None
    ) -> http.client.HTTPResponse:
        """The answer after authentication and, for reads, after redirects; see Client.ask.

        Raises MirrorError if the registry cannot be reached, requires a login that is not configured, or redirects in
        circles.
        """
        try:
            return self._ask(uri, headers, method, body)
        except ValueError as error:
            raise MirrorError(f"not a usable URI: {error}", where=public(uri)) from error

    def _ask(self, uri: str, headers: dict[str, str], method: str, body: Upload | None) -> http.client.HTTPResponse:
        def send(there: str, authorization: str) -> http.client.HTTPResponse:
            same = urllib.parse.urlsplit(there)[:2] == urllib.parse.urlsplit(self.base)[:2]
            extra = {"Authorization": authorization} if authorization and same else {}
            return self._client.ask(there, {**headers, **extra}, method=method, body=body)

        sent = self._authorization
        response = send(uri, sent)
        if response.status == 401:
            challenge = response.headers.get_all("WWW-Authenticate") or []
            drain(response)
            with self._lock:
                if self._authorization == sent:
                    self._authorization = self._authorize(challenge, uri)
            response = send(uri, self._authorization)
        here = uri
        for _ in range(REDIRECTS):
            if response.status not in (301, 302, 303, 307, 308) or method not in ("GET", "HEAD"):
                return response
            drain(response)
            there = redirected(here, response, PEER)
            if here.startswith("https:") and not there.startswith("https:"):
                raise MirrorError(f"{PEER} redirects from TLS to plain HTTP", where=public(there))
            response, here = send(there, self._authorization), there
        if response.status in (301, 302, 303, 307, 308):
            raise MirrorError(f"more than {REDIRECTS} redirects", where=public(uri))
        return response

    def _authorize(self, challenges: list[str], uri: str) -> str:
        """The Authorization header for the registry's challenge. Raises MirrorError if there are no credentials."""
        login = self._login()
        for challenge in challenges:
            scheme, _, rest = challenge.strip().partition(" ")
            if scheme.lower() == "bearer":
                parameters = {key.lower(): quoted or bare for key, quoted, bare in _PARAMETER.findall(rest)}
                return "Bearer " + self._token(parameters, login)
            if scheme.lower() == "basic" and login is not None and login.user:
                return login.basic
        hint = "log in: docker login or podman login, or name another file in REGISTRY_AUTH_FILE"
        raise MirrorError(f"{PEER} requires a login", where=public(uri), hint=hint)

    def _token(self, parameters: dict[str, str], login: Login | None) -> str:
        realm = parameters.get("realm", "")
        plain = self.base.startswith("http:")
        if not realm.startswith("https://") and not (plain and realm.startswith("http://")):
            raise MirrorError(f"{PEER} names no usable token service: {realm[:200]!r}", where=self.reference.registry)
        query = {
            "service": parameters.get("service", ""),
            "scope": parameters.get("scope") or f"repository:{self.reference.name}:pull",
        }
        if login is not None and login.identity_token:
            form = {**query, "grant_type": "refresh_token", "client_id": "erofs-edge"}
            form["refresh_token"] = login.identity_token
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response = self._client.ask(realm, headers, body=urllib.parse.urlencode(form).encode())
        else:
            uri = f"{realm}{'&' if '?' in realm else '?'}{urllib.parse.urlencode(query)}"
            response = self._client.ask(uri, {"Authorization": login.basic} if login is not None else {})
        if response.status != 200:
            raise self.refused(realm, response)
        try:
            answer = msgspec.json.decode(_short(response), type=_Token)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise MirrorError("the token service gave no usable answer", where=public(realm)) from error
        token = answer.token or answer.access_token
        if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token):
            raise MirrorError("the token service gave no token", where=public(realm))
        return token

    def refused(self, uri: str, response: http.client.HTTPResponse) -> MirrorError:
        """The registry's refusal, in its own words if it gave any, as an error to raise."""
        words = ""
        try:
            for error in msgspec.json.decode(_short(response), type=_Errors).errors[:1]:
                words = f": {str(error.get('message') or error.get('code') or '')[:200]}"
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
        hint = None
        if response.status in (401, 403):
            hint = "check the login in docker's configuration, and that it has the right to do this in this repository"
        elif response.status == 429:
            hint = "the registry limits requests: wait, or log in"
        return MirrorError(f"{PEER} answered {response.status} {response.reason}{words}", where=public(uri), hint=hint)


def _short(response: http.client.HTTPResponse) -> bytes:
    try:
        data = response.read(1 << 20)
        drain(response)
        return data
    except (OSError, http.client.HTTPException):
        return b""
