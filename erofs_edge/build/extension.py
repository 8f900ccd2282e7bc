# SPDX-License-Identifier: Apache-2.0
"""Build a manifest that is not a system into a disk image for systemd, with file system, hash tree and signature, which
ships and updates independently of any board.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erofs_edge import __version__
from erofs_edge.build.extension_image import write_extension
from erofs_edge.build.inputs import FORMAT_VERSION, Locked, lock_of, system_files
from erofs_edge.build.pipeline import BuildOptions, BuildResult, hand_over, workshop
from erofs_edge.build.record import RELEASE, outputs, read_release, remember, unchanged, write_json
from erofs_edge.build.signing import refuse_development
from erofs_edge.build.stages import Bench, Step, quiet
from erofs_edge.manifest.load import load_system
from erofs_edge.manifest.lockfile import lock_bytes
from erofs_edge.sources.cache import Cache
from erofs_edge.trust.key import public_key_pem
from erofs_edge.trust.signer import open_signer

KEY = "dev:dev"
"""the default signing key: there is no board to name one"""


@dataclass(frozen=True, slots=True)
class ExtensionInputs:
    """own: the manifest with its lock. host: the system that it extends, with its lock, if it names one."""

    own: Locked
    host: Locked | None

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over everything that can influence an output byte, except the key."""
        parts: list[object] = [FORMAT_VERSION, __version__, self.own.loaded.digest]
        parts += [hashlib.sha256(lock_bytes(one.lock)).hexdigest() for one in (self.own, self.host) if one is not None]
        parts += system_files(self.own.loaded.value)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def host_packages(self) -> list[str]:
        """The packages that the host already has."""
        return [package.name for package in self.host.lock.packages["system"]] if self.host is not None else []


def gather_extension(manifest: Path) -> ExtensionInputs:
    """Load a manifest, its host and their locks. Raises ManifestError if one is missing, wrong, or does not fit."""
    loaded = load_system(manifest)
    if loaded.value.kind == "system":
        raise loaded.error(
            "kind",
            "a system is built as part of a board",
            hint=f"erofs-edge build BOARD --system {manifest}, or `kind: sysext`",
        )
    host = None
    if loaded.value.host is not None:
        system = load_system(Path(loaded.value.host))
        if (system.value.suite, system.value.arch) != (loaded.value.suite, loaded.value.arch):
            raise loaded.error("host", f"the host is {system.value.suite} for {system.value.arch}")
        host = Locked(system, lock_of(system))
    return ExtensionInputs(Locked(loaded, lock_of(loaded)), host)


def build_extension(manifest: Path, options: BuildOptions, step: Step = quiet) -> BuildResult:
    """Build NAME.raw into options.out. Raises any kind of ErofsEdgeError."""
    cache = Cache(options.cache)
    inputs = gather_extension(manifest)
    signer = open_signer(options.key or KEY)
    if options.release:
        refuse_development(signer)
    inputs_digest = hashlib.sha256(inputs.digest.encode() + public_key_pem(signer)).hexdigest()
    if not options.force and unchanged(options.out, inputs_digest):
        return BuildResult(options.out, read_release(options.out), fresh=False)
    with workshop(options.out) as work:
        image, record, notes = make_extension(
            inputs, Bench(work, cache, signer, step, options.jobs, options.compression_cache)
        )
        names = [image.name]
        record |= {"inputs": inputs_digest, "files": outputs(work, names)}
        write_json(work / RELEASE, record)
        hand_over(work, options.out, names)
    remember(options.out, inputs_digest, names)
    return BuildResult(options.out, record, fresh=True, notes=notes)


def make_extension(inputs: ExtensionInputs, bench: Bench) -> tuple[Path, dict[str, Any], list[str]]:
    """Make NAME.raw in the bench's folder; return what to record of it, and notes for the user."""
    system, lock = inputs.own.loaded.value, inputs.own.lock
    made = write_extension(inputs.own, inputs.host_packages, lock.date, bench)
    record: dict[str, Any] = {
        "format": 1,
        "erofs_edge": {"version": __version__, "bytes": FORMAT_VERSION},
        "kind": system.kind,
        "name": system.system,
        "arch": system.arch,
        "epoch": lock.date,
        "root_hash": made.root_hash.hex(),
        "inodes": made.inodes,
        "certificate": made.certificate.pem.decode(),
        "sign": {"name": bench.signer.name, "development": bench.signer.development},
    }
    return made.path, record, made.notes
