# SPDX-License-Identifier: Apache-2.0
"""A channel as seen by its followers: TUF's client over our connections; nothing that TUF has not verified is used.

The state kept between two visits (root, versions seen) prevents an attacker from presenting an older channel again, so
it is stored with the user's state, not in a cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api import exceptions as tuf
from tuf.api.metadata import Metadata, Targets
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from erofs_edge.channel.fetch import Fetched, Progress, make_image
from erofs_edge.channel.index import parse_index
from erofs_edge.channel.sigstore import check_image, check_record, demanded, remembered
from erofs_edge.errors import ErofsEdgeError, FormatError, MirrorError, SourceError, UsageError, VerificationError
from erofs_edge.homes import user_folder
from erofs_edge.sources.http import Client, GoneError, public
from erofs_edge.trust.sigstore import Policy

INDEX_MAX = 256 << 20  # bytes


def state_directory() -> Path:
    """Where the state of channels is kept: EROFS_EDGE_CHANNELS, else the user's state directory."""
    if override := os.environ.get("EROFS_EDGE_CHANNELS"):
        return Path(override)
    return user_folder("state", "EROFS_EDGE_CHANNELS") / "channels"


class _Connections(FetcherInterface):
    def __init__(self, client: Client) -> None:
        self._client = client

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield from self._client.read(url, 0).pieces
        except GoneError:
            raise tuf.DownloadHTTPError(f"there is no {public(url)}", 404) from None
        except MirrorError as error:
            raise tuf.DownloadError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Release:
    """What a channel offers for a board: its signed record, and the finished image."""

    board: str
    record: dict[str, Any]
    image: Path
    fetched: Fetched


class Channel:
    """The channel at a URL, refreshed. `root`: the first root, needed on the first visit. `policy`: whose Sigstore
    bundles are accepted, remembered; the channel's own policy must be fulfilled as well.

    Raises UsageError without a root, VerificationError for metadata that is expired, older than what was seen, not
    signed by enough keys or inconsistent, MirrorError if the server cannot be reached.
    """

    def __init__(
        self, url: str, root: Path | None = None, state: Path | None = None, policy: Policy | None = None
    ) -> None:
        self.url = url.rstrip("/")
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.folder = (state or state_directory()) / name
        self.client = Client("the channel")
        metadata = self.folder / "metadata"
        if root is None and not (metadata / "root.json").exists():
            raise UsageError(
                "first visit to this channel: its root is needed",
                where=self.url,
                hint="add --channel-root FILE: its metadata/1.root.json, from its owner in a way you trust",
            )
        first = None if root is None else _root(root)
        metadata.mkdir(parents=True, exist_ok=True)
        with _Told(self.url):
            self._updater = Updater(
                str(metadata),
                f"{self.url}/metadata/",
                str(self.folder),
                f"{self.url}/targets/",
                fetcher=_Connections(self.client),
                config=UpdaterConfig(targets_max_length=64 << 20),
                bootstrap=first,
            )
            self._updater.refresh()
        self._policies = demanded(self._find, remembered(self.folder, policy), self.url)

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def boards(self) -> list[str]:
        """Boards for which the channel has releases."""
        with _Told(self.url):  # the client stores what it has verified
            names = Metadata[Targets].from_file(str(self.folder / "metadata" / "targets.json")).signed.targets
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def record(self, board: str) -> dict[str, Any]:
        """The release record of a board. Raises UsageError if there is none, VerificationError as the class does."""
        raw = self._target(f"{board}.json", INDEX_MAX)
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"not a release record: {error}", where=self.url) from error
        if not isinstance(value, dict) or value.get("board") != board:
            raise VerificationError(f"the record is not of board '{board}'", where=self.url)
        check_record(raw, board, self._find, self._policies, self.url)
        return value

    def release(self, board: str, seeds: Sequence[Path] = (), progress: Progress | None = None) -> Release:
        """Fetch the image of a board; blocks in the last image fetched or in the `seeds` are not requested again.

        Raises as `record` and `make_image` do.
        """
        record = self.record(board)
        raw = self._target(f"{board}.index", INDEX_MAX)
        image = self.folder / f"{board}.img"
        blocks = f"{self.url}/blocks/{hashlib.sha256(raw).hexdigest()}.{board}"
        fetched = make_image(parse_index(raw), blocks, image, [image, *seeds], self.client, progress)
        if self._policies:
            check_image(image, record, self.url)
        return Release(board, record, image, fetched)

    def _target(self, name: str, most: int) -> bytes:
        found = self._find(name, most)
        if found is None:
            known = ", ".join(self.boards())
            raise UsageError(f"the channel has no {name}", where=self.url, hint=f"boards: {known or 'none'}")
        return found

    def _find(self, name: str, most: int) -> bytes | None:
        """A target, None if the channel has none of that name."""
        with _Told(self.url):
            info = self._updater.get_targetinfo(name)
            if info is None:
                return None
            if info.length > most:
                raise FormatError(f"{name} has {info.length} bytes", where=self.url)
            path = self._updater.find_cached_target(info) or self._updater.download_target(info)
            return Path(path).read_bytes()


class _Told:
    """Turns TUF's errors into ours."""

    def __init__(self, where: str) -> None:
        self._where = public(where)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, ErofsEdgeError):
            return
        text = " ".join(str(error).split())
        if isinstance(error, tuf.ExpiredMetadataError):
            raise VerificationError(
                f"the channel has expired: {text}", where=self._where,
                hint="its owner must run erofs-edge channel publish again; or this machine's clock is wrong",
            ) from error  # fmt: skip
        if isinstance(error, tuf.BadVersionNumberError):
            raise VerificationError(
                f"the channel is older than when it was last seen: {text}", where=self._where,
                hint="someone may be replaying old releases, or its owner restored a backup",
            ) from error  # fmt: skip
        if isinstance(error, tuf.UnsignedMetadataError):
            raise VerificationError(
                f"not signed by enough of the channel's keys: {text}", where=self._where
            ) from error  # fmt: skip
        if isinstance(error, tuf.RepositoryError | tuf.DownloadLengthMismatchError):
            raise VerificationError(f"the channel is inconsistent: {text}", where=self._where) from error
        if isinstance(error, tuf.DownloadError):
            raise MirrorError(f"cannot follow the channel: {text}", where=self._where) from error
        if isinstance(error, OSError):
            raise SourceError(f"cannot save the state of the channel: {error}", where=self._where) from error


def _root(path: Path) -> bytes:
    """The file of a channel's first root. Raises SourceError if it cannot be read, FormatError if it is not one."""
    try:
        data = path.read_bytes()
        kind = Metadata.from_bytes(data).signed.type
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
    except tuf.RepositoryError:
        kind = "no metadata at all"
    if kind != "root":
        raise FormatError(
            f"not the root of a channel: {kind}",
            where=str(path),
            hint="get metadata/1.root.json from the channel's owner",
        )
    return data
