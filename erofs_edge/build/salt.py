# SPDX-License-Identifier: Apache-2.0
"""The salt of a build's hash tree: its own, or that of the line of images that it continues."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from erofs_edge.build.inputs import Inputs
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.manifest.lockfile import lock_bytes
from erofs_edge.sources.base import image_of
from erofs_edge.verity.check import read_superblock


def salt_of(inputs: Inputs) -> bytes:
    """The salt of the system's hash tree, 32 bytes, or the baseline's. It is known before the image, so the tree can be
    made while the image is written.

    It derives from what the image is made of: manifests, and the hashes of all packages in their locks. Two images with
    the same salt differ only in files of this machine or in layout; blocks that are equal in both then have equal
    digests.
    """
    if (inherited := inherited_salt(inputs)) is not None:
        return inherited
    manifests = [one.loaded.digest for one in (inputs.system, *inputs.layers)]
    locks = [inputs.lock, inputs.system.lock, *(layer.lock for layer in inputs.layers)]
    parts = [manifests, [hashlib.sha256(lock_bytes(lock)).hexdigest() for lock in locks]]
    return hashlib.sha256(b"erofs-edge system salt\0" + json.dumps(parts).encode()).digest()


def inherited_salt(inputs: Inputs) -> bytes | None:
    """The salt of the baseline's hash tree; None without a baseline, or without a tree in it.

    With it, unchanged blocks keep their digests, and hash blocks over them stay unchanged too; with a new salt the
    whole tree of an update would differ. The salt keeps its purpose: digests of one line of images are of no use
    against another line, and within a line they never change their meaning.
    """
    baseline = inputs.system.loaded.value.erofs.baseline
    if baseline is None:
        return None
    path = image_of(Path(baseline))
    try:
        with Image(path, verify_checksum=False) as image:
            end = image.superblock.size
        return read_superblock(path, end).salt
    except (ErofsEdgeError, OSError):
        return None  # a bare image
