# SPDX-License-Identifier: Apache-2.0
"""The options of `fs build` that change the tree before it is written: labels, owners, exclusions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from erofs_edge.cli.options import FilePath, together
from erofs_edge.cli.output import note
from erofs_edge.errors import ErofsEdgeError, UsageError
from erofs_edge.names import fsencode

if TYPE_CHECKING:
    from pathlib import Path

    from erofs_edge.tree import FileTree

FILE = FilePath(exists=True, dir_okay=False)
_OPTIONS = [
    click.option("--file-contexts", type=FILE, metavar="FILE", help="Set SELinux labels from a file_contexts file."),
    click.option(
        "--fs-config-file",
        type=FILE,
        metavar="FILE",
        help="Set owners, modes and capabilities from an AOSP fs_config file.",
    ),
    click.option(
        "--mount-point",
        default="/",
        metavar="DIR",
        help="The mount point that those two files assume.",
        show_default=True,
    ),
    click.option("--exclude-path", multiple=True, metavar="PATH", help="Leave out this path. May be repeated."),
    click.option(
        "--exclude-regex", multiple=True, metavar="REGEX", help="Leave out paths that match. May be repeated."
    ),
    click.option("--force-uid", type=int, metavar="UID", help="Make this user the owner of everything."),
    click.option("--force-gid", type=int, metavar="GID", help="Make this the group of everything."),
    click.option("--uid-offset", type=int, default=0, metavar="N", help="Add this to every user ID."),
    click.option("--gid-offset", type=int, default=0, metavar="N", help="Add this to every group ID."),
    click.option("--hard-dereference", is_flag=True, help="Store each hard link as a separate file."),
]
TREE_NAMES = (
    "file_contexts", "fs_config_file", "mount_point", "exclude_path", "exclude_regex", "force_uid", "force_gid",
    "uid_offset", "gid_offset", "hard_dereference",
)  # fmt: skip
"""the keywords of `changed`"""


tree_options = together(*_OPTIONS)
"""the decorator; its options are the keyword arguments of `changed`"""


def without_effect(given: dict[str, Any], tree: dict[str, Any]) -> list[str]:
    """Print warnings about options that change nothing beside the others, and return them. `tree` holds the options of
    this module.

    Raises UsageError for owners that contradict each other.
    """
    if given["all_root"] and (tree["force_uid"] or tree["force_gid"]):
        raise UsageError("--all-root contradicts --force-uid and --force-gid", hint="leave one of them out")
    found = []
    if given["pcluster"] is not None and given["compression"] == "none":
        found.append("-C has no effect without -z: nothing is compressed")
    if tree["mount_point"] != "/" and tree["file_contexts"] is None and tree["fs_config_file"] is None:
        found.append("--mount-point has no effect without --file-contexts or --fs-config-file")
    for text in found:
        note(f"warning: {text}")
    return found


def without_outputs(tree: FileTree, source: str, image: str, blob: Path | None) -> list[str]:
    """Leave out files that the build will replace, such as an older image in the source folder. Prints warnings and
    returns them.

    Raises UsageError if such a file is not an image, nor the extra device of the older image.
    """
    top = os.path.join(os.path.realpath(source), "")
    found = []
    for output in [image] if blob is None else [image, os.fspath(blob)]:
        path = os.path.realpath(output)
        if not path.startswith(top):
            continue
        from erofs_edge.sources import rewrite

        replaced = _is_image(path) if output is image else _is_device_of(path, image)
        if os.path.isfile(path) and not replaced:
            kind = "no EROFS image" if output is image else f"not the extra device of {image}"
            raise UsageError(
                f"the output would replace a file of {source} that is {kind}",
                where=output,
                hint="give it another name",
            )
        if not rewrite.exclude(tree, [fsencode(path[len(top) :].replace(os.sep, "/"))], []):
            found.append(f"{output} is inside {source}: the older image there is left out")
    for text in found:
        note(f"warning: {text}")
    return found


def _is_image(path: str) -> bool:
    from erofs_edge.erofs.ondisk import SUPER_MAGIC, SUPER_OFFSET

    try:
        with open(path, "rb") as file:
            file.seek(SUPER_OFFSET)
            return file.read(4) == SUPER_MAGIC.to_bytes(4, "little")
    except OSError:
        return False


def _is_device_of(path: str, image: str) -> bool:
    """Whether a file is what an older image names as its extra device, by its hash."""
    from pathlib import Path

    from erofs_edge.erofs.bases import hashed
    from erofs_edge.erofs.read import Image

    try:
        with Image(image) as older:
            tags = [device.tag for device in older.superblock.devices]
        return bool(tags) and hashed(Path(path), os.path.getsize(path)).encode() in tags
    except (ErofsEdgeError, OSError):
        return False


def changed(
    tree: FileTree,
    *,
    file_contexts: Path | None,
    fs_config_file: Path | None,
    mount_point: str,
    exclude_path: tuple[str, ...],
    exclude_regex: tuple[str, ...],
    force_uid: int | None,
    force_gid: int | None,
    uid_offset: int,
    gid_offset: int,
    hard_dereference: bool,
) -> tuple[FileTree, list[str]]:
    """Apply the options to the tree in place: exclusions first, labels last. Return it, and the exclusions that matched
    nothing."""
    from erofs_edge.sources import rewrite

    idle: list[str] = []
    if exclude_path or exclude_regex:
        idle = rewrite.exclude(tree, map(fsencode, exclude_path), exclude_regex)
    if hard_dereference:
        rewrite.split_hard_links(tree)
    if fs_config_file is not None:
        from erofs_edge.sources import fs_config

        config = fs_config.read_fs_config(fs_config_file)
        fs_config.apply_fs_config(tree, config, mount_point, str(fs_config_file))
    owners: dict[str, Any] = {"uid": force_uid, "gid": force_gid, "uid_offset": uid_offset, "gid_offset": gid_offset}
    if force_uid is not None or force_gid is not None or uid_offset or gid_offset:
        rewrite.set_owners(tree, **owners)
    if file_contexts is not None:
        from erofs_edge.sources import file_contexts as contexts

        contexts.apply_file_contexts(tree, contexts.read_file_contexts(file_contexts), mount_point)
    return tree, idle
