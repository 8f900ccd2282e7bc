# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge channel`: releases with TUF metadata, in a folder for any web server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import emit_json, json_option, note, size_text, step, table
from erofs_edge.errors import ToolError, UsageError

if TYPE_CHECKING:
    from datetime import datetime

    from erofs_edge.trust.key import Signer

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group()
def channel() -> None:
    """Publish releases in a channel that `flash --from URL` follows.

    TUF metadata proves that a release is signed, has not expired, and is not older than what was seen before.

    \b
    Example:
      erofs-edge channel init web/channel --root-key file:root.pem --key file:release.pem
      erofs-edge channel add web/channel release/v1
      erofs-edge channel publish web/channel --key file:release.pem
    """


@channel.command()
@click.argument("folder", type=_FOLDER)
@click.option(
    "--root-key", "root_keys", metavar="URI", multiple=True, required=True,
    help="A root key, which vouches for all other keys; keep it offline. May be repeated.",
)  # fmt: skip
@click.option(
    "--threshold", type=click.IntRange(min=1), default=1, show_default=True, help="How many root keys must sign."
)
@click.option("--key", "keys", help="A key that signs releases. May be repeated.", metavar="URI", multiple=True,
              required=True)  # fmt: skip
@click.option("--key-threshold", type=click.IntRange(min=1), default=1, show_default=True,
              help="How many keys must sign a release.")  # fmt: skip
@click.option(
    "--online-key", metavar="URI", help="The key that renews the channel every few days.  [default: the first --key]"
)
@json_option
def init(
    folder: Path,
    root_keys: tuple[str, ...],
    threshold: int,
    keys: tuple[str, ...],
    key_threshold: int,
    online_key: str | None,
    as_json: bool,
) -> None:
    """Make an empty channel in FOLDER.

    Give its metadata/1.root.json to devices, and to the hosts that flash them, in a way you trust.
    """
    _needed()
    from erofs_edge.channel.publish import Keys
    from erofs_edge.channel.publish import init as make

    releasing = Keys(_open(keys), key_threshold)
    online = Keys(_open((online_key,)) if online_key else releasing.signers[:1])
    roles = {
        "root": Keys(_open(root_keys), threshold),
        "targets": releasing,
        "snapshot": online,
        "timestamp": online,
    }
    root = make(folder, roles, now=_now())
    if as_json:
        emit_json({"folder": str(folder), "root": str(root)})
    else:
        click.echo(f"root  {root}")


@channel.command()
@click.argument("folder", type=_FOLDER)
@click.argument("out", metavar="OUT", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sigstore", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="POLICY",
              help="Require, from now on, a Sigstore bundle that POLICY accepts (`keys sigstore`).")  # fmt: skip
@json_option
def add(folder: Path, out: Path, sigstore: Path | None, as_json: bool) -> None:
    """Add the release (or build) in OUT to the channel.

    `channel publish` makes it visible. A Sigstore bundle over its release.json is added too, if OUT has
    release.json.sigstore.json.
    """
    _needed()
    from erofs_edge.channel.publish import add as put
    from erofs_edge.trust.sigstore import read_policy

    policy = None if sigstore is None else read_policy(sigstore)
    with step("Indexing the image"):
        names = put(folder, out, policy)
    if as_json:
        emit_json({"folder": str(folder), "targets": names})
    else:
        click.echo("\n".join(names))


@channel.command()
@click.argument("folder", type=_FOLDER)
@click.option(
    "--key", "keys", metavar="URI", multiple=True, required=True,
    help="A key to sign with. The online key alone suffices if nothing was added. May be repeated.",
)  # fmt: skip
@click.option("--days", type=click.IntRange(1, 3650), default=14, show_default=True,
              help="For how many days devices accept this state as current.")  # fmt: skip
@json_option
def publish(folder: Path, keys: tuple[str, ...], days: int, as_json: bool) -> None:
    """Sign what was added and declare the channel current.

    Devices see nothing new until the last file is written.
    """
    _needed()
    from erofs_edge.channel.publish import DAYS
    from erofs_edge.channel.publish import publish as sign

    times = DAYS | {"timestamp": days, "snapshot": max(days, DAYS["snapshot"]), "targets": max(days, DAYS["targets"])}
    versions = sign(folder, _open(keys), now=_now(), days=times)
    if as_json:
        emit_json({"folder": str(folder), "versions": versions})
    else:
        table(versions.items())


@channel.command()
@click.argument("folder", type=_FOLDER)
@click.option("--root-key", "root_keys", help="An old root key. May be repeated.", metavar="URI", multiple=True,
              required=True)  # fmt: skip
@click.option(
    "--new-root-key", "new_root", help="A root key from now on. May be repeated.", metavar="URI", multiple=True
)
@click.option(
    "--threshold", type=click.IntRange(min=1), default=1, show_default=True, help="How many new root keys must sign."
)
@click.option(
    "--new-key", "new_keys", help="A key for releases from now on. May be repeated.", metavar="URI", multiple=True
)
@click.option(
    "--key-threshold", type=click.IntRange(min=1), default=1, show_default=True, help="How many new keys must sign."
)
@click.option("--new-online-key", metavar="URI", help="The online key from now on.")
@json_option
def renew(
    folder: Path,
    root_keys: tuple[str, ...],
    new_root: tuple[str, ...],
    threshold: int,
    new_keys: tuple[str, ...],
    key_threshold: int,
    new_online_key: str | None,
    as_json: bool,
) -> None:
    """Write the next root: a later expiry date, or other keys.

    Devices follow from whichever root they know. Run `channel publish` afterwards.
    """
    _needed()
    from erofs_edge.channel.publish import Keys, renew_root

    changed = {"root": Keys(_open(new_root), threshold)} if new_root else {}
    changed |= {"targets": Keys(_open(new_keys), key_threshold)} if new_keys else {}
    if new_online_key is not None:
        changed |= {role: Keys(_open((new_online_key,))) for role in ("snapshot", "timestamp")}
    path = renew_root(folder, _open((*root_keys, *new_root)), now=_now(), keys=changed)
    if as_json:
        emit_json({"folder": str(folder), "root": str(path)})
    else:
        click.echo(f"root  {path}")


@channel.command()
@click.argument("url")
@click.option("--channel-root", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="The channel's first root, needed on the first visit.")  # fmt: skip
@json_option
def show(url: str, channel_root: Path | None, as_json: bool) -> None:
    """Show what the channel at URL offers.

    Exits with 4 if it cannot be trusted.
    """
    _needed()
    from erofs_edge.channel.follow import Channel

    with Channel(url, channel_root) as one:
        records = {board: one.record(board) for board in one.boards()}
    if as_json:
        emit_json({"url": url, "boards": records})
        return
    rows = [
        (board, record["system"]["root_hash"][:16], record["sign"]["rollback_index"], size_text(_size(record)))
        for board, record in records.items()
    ]
    table(rows, header=("board", "root hash", "rollback index", "disk"))


def _size(record: dict[str, dict[str, dict[str, int]]]) -> int:
    return record["files"]["disk.img"]["size"]


def _now() -> datetime:
    from datetime import UTC, datetime

    return datetime.now(UTC)


def _needed() -> None:
    """Raises ToolError if python-tuf is not installed."""
    import importlib.util

    if importlib.util.find_spec("tuf") is None:
        raise ToolError("channels need the Python package tuf", hint="pip install 'erofs-edge[channel]'")


def _open(uris: tuple[str, ...]) -> tuple[Signer, ...]:
    from erofs_edge.trust.signer import open_signer

    signers = tuple(open_signer(uri) for uri in uris)
    if not signers:
        raise UsageError("no key was named")
    for one in signers:
        if one.development:
            note(f"note: '{one.name}' is a development key: it protects nothing")
    return signers
