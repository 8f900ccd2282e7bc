# SPDX-License-Identifier: Apache-2.0
"""`flash --from URL`: get a board's image from a channel, and download only the blocks that are not available
locally."""

from __future__ import annotations

import stat
from pathlib import Path

from erofs_edge.cli.output import note, size_text, step
from erofs_edge.errors import SourceError, UsageError


def from_channel(url: str, root: Path | None, sigstore: Path | None, what: Path | None, to: str) -> Path:
    """Return the image that the channel at a URL offers for the board of `what` (a board file), or for its only board.

    root      the channel's first root, for the first visit
    sigstore  a policy for its Sigstore bundles, which is remembered

    Raises what `Channel` raises, and UsageError if it is unclear which board is meant.
    """
    from erofs_edge.cli.channel import _needed

    _needed()
    from erofs_edge.channel.follow import Channel
    from erofs_edge.trust.sigstore import read_policy

    board = None
    if what is not None:
        if what.suffix not in {".yaml", ".yml"}:
            raise UsageError(
                "--from URL takes the image from the channel, not from here",
                where=str(what),
                hint="name a board file, or nothing",
            )
        from erofs_edge.manifest.load import load_board

        board = load_board(what).value.board
    policy = None if sigstore is None else read_policy(sigstore)
    with step("Following the channel"):
        channel = Channel(url, root, policy=policy)
    with channel:
        boards = channel.boards()
        if board is None and len(boards) != 1:
            raise UsageError(
                f"the channel has {len(boards)} boards", where=url, hint=f"name the file of one: {', '.join(boards)}"
            )
        with step("Fetching missing blocks") as progress:
            release = channel.release(board or boards[0], _seeds(to), progress)
    done = release.fetched
    note(f"{size_text(done.remote)} fetched in {done.requests} requests, {size_text(done.local)} already here")
    return release.image


def older_image(old: str) -> Path:
    """Return --from as a path, if it is not a URL. Raises SourceError if the path does not exist."""
    path = Path(old)
    if not path.exists():
        raise SourceError(
            "no such file or folder",
            where=old,
            hint="--from takes an older image, the folder of a build, or the URL of a channel",
        )
    return path


def _seeds(to: str) -> list[Path]:
    """Return the target itself, if it can be read like a file."""
    path = Path(to)
    try:
        mode = path.stat().st_mode if "://" not in to else 0
    except OSError:
        return []
    return [path] if stat.S_ISREG(mode) or stat.S_ISBLK(mode) else []
