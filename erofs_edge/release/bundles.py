# SPDX-License-Identifier: Apache-2.0
"""Bundles for RAUC and systemd-sysupdate as files of a release.

bundles.json lists them, so that a rebuild makes them again. A release's folder is also a source from which
systemd-sysupdate takes its newest version: SHA256SUMS is there.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from erofs_edge.build.record import read_release, write_json
from erofs_edge.build.signing import CERTIFICATE
from erofs_edge.bundle.content import no_slots, slot_files
from erofs_edge.bundle.rauc import BLOCK, read_bundle, write_bundle
from erofs_edge.bundle.sysupdate import DEFINITIONS, Form, check_address, write_flat, write_transfers
from erofs_edge.disk.sparse import sparse_sha256
from erofs_edge.errors import VerificationError
from erofs_edge.manifest.model import Board
from erofs_edge.report.facts import read_record
from erofs_edge.trust.certificate import read_certificate
from erofs_edge.trust.key import Signer, VerificationKey
from erofs_edge.writing import scratch_folder

BUNDLES = "bundles.json"
RAUC = "update.raucb"


@dataclass(frozen=True, slots=True)
class Wish:
    """rauc: a RAUC bundle. sysupdate: the address where devices find the newest release; None for no such files.
    form: what they install from there."""

    rauc: bool = False
    sysupdate: str | None = None
    form: Form = "image"


NOTHING = Wish()


def check_wish(wish: Wish, board: Board) -> None:
    """Raises UsageError for bundles that `write_bundles` could not make from any build of the board."""
    if wish.sysupdate is not None:
        check_address(wish.sysupdate)
    slotted = any(partition.slots for partition in board.disk.partitions.values())
    if wish.rauc and (board.boot.uefi is not None or not slotted):
        raise no_slots(board.board)


def write_bundles(work: Path, wish: Wish, signer: Signer) -> None:
    """Write them and bundles.json into a folder that has images and a record; nothing if nothing is requested.

    Raises UsageError for a board without slots or an invalid address, ErofsEdgeError if the signer fails.
    """
    found: dict[str, Any] = {}
    if wish.rauc:
        certificate = read_certificate(work / CERTIFICATE, signer, int(read_release(work)["epoch"]))
        found["rauc"] = {"file": RAUC} | asdict(write_bundle(work, work / RAUC, signer, certificate))
    if wish.sysupdate is not None:
        files, definitions = write_flat(work, url=wish.sysupdate, form=wish.form)
        found["sysupdate"] = {
            "url": wish.sysupdate, "form": wish.form, "files": [path.name for path in files],
            "definitions": [path.name for path in definitions],
        }  # fmt: skip
    if found:
        write_json(work / BUNDLES, found)


def wish_of(release: Path) -> Wish:
    """The request for which the bundles of a release were made. Raises VerificationError for a damaged bundles.json."""
    if not (release / BUNDLES).exists():
        return NOTHING
    found = read_record(release / BUNDLES, dict)
    if not set(found) <= {"rauc", "sysupdate"} or ("sysupdate" in found and not _is_sysupdate(found["sysupdate"])):
        raise VerificationError(f"{BUNDLES} is damaged: it says nothing of a bundle", where=str(release / BUNDLES))
    asked = found.get("sysupdate")
    return Wish("rauc" in found) if asked is None else Wish("rauc" in found, asked["url"], asked["form"])


def _is_sysupdate(value: Any) -> bool:
    lists = [value.get("files"), value.get("definitions")] if isinstance(value, dict) else [None]
    return (
        all(isinstance(one, list) and all(isinstance(name, str) for name in one) for one in lists)
        and isinstance(value.get("url"), str)
        and value.get("form") in get_args(Form)
    )


def check_bundles(release: Path, key: VerificationKey) -> list[str]:
    """Names of the bundles of a release, each signed with the key down to its last block, and belonging to this build.

    Raises VerificationError for one that is not, ErofsEdgeError if one cannot be read.
    """
    wish = wish_of(release)
    if wish == NOTHING:
        return []
    said, names = read_record(release / BUNDLES, dict), []
    if wish.rauc:
        bundle = read_bundle(release / RAUC, key)
        images = {one.name: one.sha256 for one in bundle.images}
        told = asdict(bundle) | {"images": [asdict(one) for one in bundle.images]}
        if {"file": RAUC} | told != said["rauc"] or images != _padded(release):
            raise VerificationError("a bundle of another build", where=str(release / RAUC))
        names.append(RAUC)
    if wish.sysupdate is not None:
        names += _check_sysupdate(release, wish.sysupdate, wish.form, said["sysupdate"])
    return names


def _check_sysupdate(release: Path, url: str, form: Form, said: dict[str, Any]) -> list[str]:
    """Names of the files, which must be those that the build gives. Raises VerificationError if they are not."""
    with scratch_folder("bundle") as work:
        made = write_transfers(release, work, url=url, form=form)
        definitions = sorted((work / DEFINITIONS).iterdir())
        told = {"files": [path.name for path in made], "definitions": [path.name for path in definitions]}
        if {name: said[name] for name in told} != told:
            raise VerificationError("it names other files than this build gives", where=str(release / BUNDLES))
        for path in [*made, *definitions]:
            there = release / path.name
            if not there.is_file() or sparse_sha256(there) != sparse_sha256(path):
                raise VerificationError("not the system of this build", where=str(there))
        return told["files"]


def _padded(release: Path) -> dict[str, str]:
    """Slot class → SHA-256 of the build's file for it, padded to whole blocks as in a bundle."""
    found = {}
    for base, path in slot_files(release).items():
        with path.open("rb") as handle:
            told = hashlib.file_digest(handle, "sha256")
        told.update(bytes(-path.stat().st_size % BLOCK))
        found[base] = told.hexdigest()
    return found
