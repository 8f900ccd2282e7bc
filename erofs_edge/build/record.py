# SPDX-License-Identifier: Apache-2.0
"""release.json: what a build made, from what, and what the device must find. Also the note that nothing has changed.

release.json is an output like the others: it contains no time of day, host path or user. The private state file beside
it records sizes and times of the outputs, so that an unchanged build ends without reading them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from erofs_edge import __version__
from erofs_edge.build import names
from erofs_edge.build.beside import beside
from erofs_edge.disk.sparse import sparse_sha256
from erofs_edge.errors import ErofsEdgeError, VerificationError
from erofs_edge.writing import new_file, write_exactly

if TYPE_CHECKING:
    from erofs_edge.build.inputs import Inputs
    from erofs_edge.build.stages import Made
    from erofs_edge.trust.signer import Signer

RELEASE = names.RELEASE
STATE = ".state.json"
KINDS = {
    "board": str, "arch": str, "epoch": int, "files": dict, "sign": dict, "sign.name": str, "sign.rollback_index": int,
    "system": dict, "system.name": str, "system.root_hash": str,
}  # fmt: skip
"""types of the record's values that are used outside `verify`; groups come before their members"""


def write_json(path: Path, value: object) -> None:
    """Write sorted, indented JSON; the file gets its name once it is complete. Raises as `new_file` does."""
    with new_file(path, path.name) as file:
        write_exactly(file.fd, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode(), 0)


class _Read(dict[str, Any]):
    """An object of a record that may be truncated or come from elsewhere: missing values are reported as errors."""

    where = ""

    def __missing__(self, key: str) -> Any:
        raise VerificationError(
            f"{RELEASE} is damaged: it has no '{key}' where every build has one", where=self.where, hint="build again"
        )


def read_release(out: Path) -> dict[str, Any]:
    """Read the record in an output folder. Raises ErofsEdgeError if it is missing or damaged (KINDS), and later if a
    value is used that it lacks."""
    path = out / RELEASE
    try:
        record: dict[str, Any] = json.loads(path.read_text(), object_hook=partial(_object, str(path)))
    except FileNotFoundError:
        raise ErofsEdgeError(
            "nothing has been built here", where=str(out), hint=f"erofs-edge build BOARD -o {out}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ErofsEdgeError(f"not a release record: {error}", where=str(path), hint="build again") from error
    if not isinstance(record, dict) or record.get("format") != 1:
        raise ErofsEdgeError("a release record of another version of erofs-edge", where=str(path), hint="build again")
    for name, kind in KINDS.items():
        group, _, key = name.rpartition(".")
        there = record.get(group, {}) if group else record
        if key in there and not isinstance(there[key], kind):
            raise VerificationError(
                f"{RELEASE} is damaged: its '{name}' has the wrong type", where=str(path), hint="build again"
            )
    return record


def _object(where: str, value: dict[str, Any]) -> _Read:
    read = _Read(value)
    read.where = where
    return read


def describe(
    inputs: Inputs, inputs_digest: str, signer: Signer, made: Made, files: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The value of release.json, a function of the inputs."""
    from erofs_edge.build.inputs import FORMAT_VERSION
    from erofs_edge.build.loader import loader_record
    from erofs_edge.codec.lz4 import VERSION, WHEEL

    board, system = inputs.board.value, inputs.system.loaded.value
    erofs, verity, fec = made.system.erofs, made.system.verity, made.system.fec
    return {
        "format": 1,
        "erofs_edge": {"version": __version__, "bytes": FORMAT_VERSION, "lz4": f"{VERSION} (wheel {WHEEL})"},
        "board": board.board,
        "product": board.product,
        "arch": board.arch,
        "epoch": inputs.epoch,
        "inputs": {
            "digest": inputs_digest,
            "board": inputs.board.digest,
            "system": inputs.system.loaded.digest,
            "packages": sum(len(p) for lock in (inputs.lock, inputs.system.lock) for p in lock.packages.values()),
        },
        "sign": {
            "name": signer.name,
            "development": signer.development,
            "rollback_index": board.sign.rollback_index,
        },
        "system": {
            "name": system.system,
            "partition": inputs.partition,
            "slots": board.disk.partitions[inputs.partition].slots,
            "root_hash": verity.root_hash.hex(),
            "salt": verity.salt.hex(),
            "verity_uuid": str(uuid.UUID(bytes=verity.uuid)),
            "block_size": verity.block_size,
            "data_blocks": verity.data_blocks,
            "hash_offset": verity.hash_offset,
            "fec": {"roots": fec.roots, "blocks": fec.blocks, "offset": fec.offset} if fec else None,
            "erofs_uuid": str(uuid.UUID(bytes=erofs.uuid)),
            "inodes": erofs.inodes,
            "uncompressed": erofs.uncompressed,
            "smoke": msgspec.to_builtins(system.smoke),
        },
        "boot": {"kernel": made.boot.kernel_version, "u_boot": loader_record(board)},
        "scripts": {
            "unknown": [f"{note.package}.{note.script}" for note in made.system.report.unknown],
            "changed": [f"{note.package}.{note.script}" for note in made.system.report.changed],
        },
        "partitions": {
            placement.name: {"start": placement.start, "size": placement.size, "guid": made.layout.guid(placement.name)}
            for placement in made.layout.placements
        },
        "files": files,
    }


Files = dict[str, dict[str, Any]]
"""name → size and SHA-256, as the record lists outputs"""


def outputs(out: Path, names: Iterable[str], known: Files | None = None) -> Files:
    """Size and SHA-256 of each output; `known` ones are not read."""
    known = known or {}
    todo = sorted((name for name in names if name not in known), key=lambda name: -(out / name).stat().st_size)
    with ThreadPoolExecutor(2) as pool:
        hashes = dict(zip(todo, pool.map(lambda name: sparse_sha256(out / name), todo), strict=True))
    found = {name: {"size": (out / name).stat().st_size, "sha256": hashes[name]} for name in todo}
    return dict(sorted((known | found).items()))


@contextmanager
def outputs_meanwhile(out: Path) -> Iterator[Files]:
    """The outputs now in the folder, complete when the block ends: the largest file, the disk, is hashed while the
    block and the hashing of the other files run."""
    paths = sorted((path for path in out.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
    *others, disk = (path.name for path in paths)
    found: Files = {}
    with beside(partial(outputs, out, [disk])) as largest:
        yield found
        found |= outputs(out, others)
        found |= largest()


def remember(out: Path, inputs_digest: str, names: list[str]) -> None:
    """Note that the outputs belong to these inputs."""
    files = {name: _stamp(out / name) for name in [*names, RELEASE]}
    write_json(out / STATE, {"inputs": inputs_digest, "files": files})


def unchanged(out: Path, inputs_digest: str) -> bool:
    """Whether every output is still the one that these inputs made."""
    try:
        state = json.loads((out / STATE).read_text())
        return state["inputs"] == inputs_digest and all(
            _stamp(out / name) == stamp for name, stamp in state["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]
