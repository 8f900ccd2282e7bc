# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge lock`: pin every input of a board or a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import json_option

if TYPE_CHECKING:
    from erofs_edge.sources.debian.lock import Changes, Relocked


@click.command()
@click.argument("manifest", metavar="BOARD|MANIFEST", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="FILE|FOLDER",
    help="Write here instead of to NAME.lock beside the manifest. A folder gets NAME.lock for each manifest, and "
    "NAME.board.lock for the board.",
)  # fmt: skip
@json_option
def lock(manifest: Path, output: str | None, as_json: bool) -> None:
    """Pin every input of a board or a manifest in its lock file.

    For a board, this locks its own packages (kernel, initramfs, firmware) and every manifest on its disk. Packages are
    resolved from the host's Debian mirror (or EROFS_EDGE_MIRROR) in a private apt root; the host's packages are not
    touched. IDs of system users that the old lock pins are kept.

    \b
    Example:
      erofs-edge lock boards/gateway.yaml
    """
    from erofs_edge.cli.output import emit_json, step
    from erofs_edge.errors import UsageError
    from erofs_edge.manifest.load import load_any, save_lock
    from erofs_edge.manifest.model import Board
    from erofs_edge.manifest.stock import is_shipped
    from erofs_edge.sources.cache import Cache
    from erofs_edge.sources.debian.lock import changes, lock_all
    from erofs_edge.sources.debian.mirror import host_mirror

    loaded = load_any(manifest)
    folder = Path(output) if output is not None and (output.endswith("/") or Path(output).is_dir()) else None
    if output is not None and folder is None and (isinstance(loaded.value, Board) or loaded.value.layers):
        what = "a board" if isinstance(loaded.value, Board) else "a manifest with layers"
        raise UsageError(f"{what} has several locks", hint=f"name a folder: -o {output}/")
    if output is None and is_shipped(loaded.path):
        raise UsageError(
            f"{manifest} belongs to the installed package",
            hint=f"make a product of your own (erofs-edge new NAME --board {manifest}), or write elsewhere: -o FOLDER",
        )
    with step(f"lock {manifest}") as progress:
        done = lock_all(loaded, mirror=host_mirror(), cache=Cache(), folder=folder, progress=progress)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    records = []
    for one in done:
        path = one.path if output is None else Path(output) if folder is None else one.within(folder)
        if one.new is not one.old or path != one.path:
            save_lock(one.new, path)
        records.append((_shown(path), one, changes(one.old, one.new)))
    if as_json:
        emit_json({"locks": [_record(*record) for record in records]})
        return
    for record in records:
        click.echo(_text(*record))


def _shown(path: Path) -> Path:
    """Return the path relative to the working directory, if it is below that."""
    absolute = path.absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path


def _record(path: Path, one: Relocked, changed: Changes) -> dict[str, object]:
    return {
        "path": path,
        "name": one.new.name,
        "suite": one.new.suite,
        "date": one.new.date,
        "packages": {group: len(packages) for group, packages in sorted(one.new.packages.items())},
        "added": [{"group": group, "name": name, "version": version} for group, name, version in changed.added],
        "removed": [{"group": group, "name": name, "version": version} for group, name, version in changed.removed],
        "updated": [
            {"group": group, "name": name, "old": old, "new": new} for group, name, old, new in changed.updated
        ],
        "ids": changed.ids,
    }


def _text(path: Path, one: Relocked, changed: Changes) -> str:
    from erofs_edge.cli.output import size_text

    packages = [package for group in one.new.packages.values() for package in group]
    head = f"{path}: {len(packages)} packages, {size_text(sum(package.size for package in packages))}"
    if one.old is None:
        return f"{head}, new"
    if not changed:
        return f"{head}, " + ("unchanged" if one.new is one.old else "the same packages")
    lines = [f"{head}, {len(changed.updated)} updated, {len(changed.added)} added, {len(changed.removed)} removed"]
    lines += [f"  updated  {name} {old} → {new}" for _, name, old, new in changed.updated]
    lines += [f"  added    {name} {version}" for _, name, version in changed.added]
    lines += [f"  removed  {name} {version}" for _, name, version in changed.removed]
    lines += [f"  pinned   {text}" for text in changed.ids]
    return "\n".join(lines)
