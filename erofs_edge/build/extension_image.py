# SPDX-License-Identifier: Apache-2.0
"""NAME.raw of a manifest that is not a system: file system, hash tree and signature in one disk image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.build.inputs import Locked
from erofs_edge.build.stages import Bench, write_options
from erofs_edge.disk.ddi import write_ddi
from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.write import write_image
from erofs_edge.sources.budget import check_image, check_paths
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.sources.debian.supply import fetch_locked
from erofs_edge.sources.extension import extension_tree
from erofs_edge.tree import FileTree
from erofs_edge.trust.certificate import Certificate, self_signed
from erofs_edge.trust.root_hash import verity_signature_json
from erofs_edge.verity.tree import format_tree


@dataclass(frozen=True, slots=True)
class ExtensionImage:
    """A finished image and the tree that it contains."""

    path: Path
    tree: FileTree
    root_hash: bytes
    inodes: int
    certificate: Certificate
    notes: list[str]


def write_extension(locked: Locked, host: Iterable[str], epoch: int, bench: Bench) -> ExtensionImage:
    """Write NAME.raw into the bench's folder. `host` names the packages to leave out, `epoch` dates the certificate.

    Raises any kind of ErofsEdgeError.
    """
    loaded, lock, name = locked.loaded, locked.lock, locked.loaded.value.system
    cache, work, step = bench.cache, bench.work, bench.step
    with step(f"packages of {name}") as progress:
        debs = fetch_locked(lock.packages["system"], loaded, host_mirror, cache, progress)
    with step(f"files of {name}"):
        made = extension_tree(loaded, lock, debs, cache, host)
    made.notes.extend(f"{one} matches nothing" for one in check_paths(loaded, made.tree))
    data, tree, image = work / f"{name}.data", work / f"{name}.tree", work / f"{name}.raw"
    with step(f"image of {name}") as progress, CompressionCache(cache.root / "compressed") as compressed:
        used = compressed if bench.compression_cache else None
        writing = write_options(loaded, lock.date, None).replaced(jobs=bench.jobs, cache=used, progress=progress)
        info = write_image(made.tree, data, writing)
        verity = format_tree(data, tree)
        certificate = self_signed(bench.signer, epoch)
        signature = verity_signature_json(verity.root_hash, bench.signer, certificate)
        write_ddi(
            image, name=name, arch=loaded.value.arch, data=data, tree=tree,
            root_hash=verity.root_hash, signature=signature,
        )  # fmt: skip
    data.unlink()
    tree.unlink()
    check_image(loaded, made.tree, image.stat().st_size)
    return ExtensionImage(image, made.tree, verity.root_hash, info.inodes, certificate, made.notes)
