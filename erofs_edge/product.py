# SPDX-License-Identifier: Apache-2.0
"""A product of your own: a folder with a board that extends a stock one, its system, its files and locks.

It builds as it is, because the locks of the stock board and manifest pin everything that it needs so far.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from erofs_edge.errors import ErofsEdgeError, UsageError
from erofs_edge.manifest.load import Loaded, load_board, load_lock, load_system, lock_path, save_lock
from erofs_edge.manifest.model import CONTENT_WORDS, Board, System
from erofs_edge.manifest.schema import schema_text
from erofs_edge.manifest.stock import stock_file, stock_names
from erofs_edge.writing import folder_beside, refuse_unwritable

NAME = re.compile(r"[a-z0-9][a-z0-9._+-]{0,62}")


@dataclass(frozen=True, slots=True)
class Product:
    """files are paths below the folder, sorted."""

    folder: Path
    board: Path
    system: Path
    files: list[str]


def make_product(folder: Path, *, board: str, system: str | None = None) -> Product:
    """Make a product in a folder of its own, whose name it takes. `board` and `system` name stock ones.

    Nothing is left behind after a failure. Raises UsageError for an invalid name, an unknown board or system, or a
    folder that is not empty.
    """
    name = folder.absolute().name
    if not NAME.fullmatch(name):
        raise UsageError(f"not a valid name for a product: {name!r}", hint="use lower-case letters, digits and . _ + -")
    if stock_file(name) is not None:
        raise UsageError(f"{name} is the name of a stock board or system", hint="choose another one")
    base = load_board(_stock(board, "boards"))
    partition, content = next(
        (key, one.content)
        for key, one in base.value.disk.partitions.items()
        if one.content is not None and one.content not in CONTENT_WORDS
    )
    below = load_system(_stock(system, "manifests") if system is not None else content)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("this already exists", where=str(folder), hint="name a folder that does not exist yet")
    refuse_unwritable(folder.absolute().parent)
    with ExitStack() as stack:
        try:
            folder.absolute().parent.mkdir(parents=True, exist_ok=True)
            work = stack.enter_context(folder_beside(folder.absolute()))
        except OSError as error:
            raise UsageError(f"cannot write: {error.strerror}", where=str(folder)) from error
        try:
            for path, text in _texts(name, base, below, partition).items():
                (work / path).parent.mkdir(parents=True, exist_ok=True)
                (work / path).write_text(text, encoding="utf-8")
            for kind, own, loaded in (("boards", name, base), ("manifests", f"{name}-system", below)):
                lock = load_lock(lock_path(loaded.path))
                save_lock(msgspec.structs.replace(lock, name=own), work / kind / f"{own}.lock")
            work.chmod(0o755)
            work.replace(folder)
        except OSError as error:
            raise ErofsEdgeError(f"cannot write: {error.strerror}", where=str(folder)) from error
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Product(folder, folder / f"boards/{name}.yaml", folder / f"manifests/{name}-system.yaml", files)


def _stock(name: str, kind: str) -> Path:
    path = stock_file(name, (kind,))
    if path is None:
        raise UsageError(
            f"no stock {kind.removesuffix('s')} {name!r}", hint=f"there are {', '.join(stock_names(kind))}"
        )
    return path


def _texts(name: str, base: Loaded[Board], below: Loaded[System], partition: str) -> dict[str, str]:
    board, system = base.value.board, below.value.system
    return {
        f"boards/{name}.yaml": BOARD.format(name=name, board=board, partition=partition),
        f"manifests/{name}-system.yaml": SYSTEM.format(name=name, system=system),
        f"manifests/files/{name}/etc/issue": f"{name} \\n \\l\n\n",
        "schema/board.schema.json": schema_text("board"),
        "schema/manifest.schema.json": schema_text("manifest"),
        "README.md": README.format(name=name, board=board, system=system, emulated=_emulated(base.value, name)),
        ".gitignore": "/out/\n",
    }


def _emulated(board: Board, name: str) -> str:
    if board.qemu is not None:
        return f"$ erofs-edge boot {name} --smoke    # test the whole boot chain in QEMU\n"
    return ""


BOARD = """\
# yaml-language-server: $schema=../schema/board.schema.json
# What differs from the stock board {board}; `erofs-edge explain {name}` prints the complete board.
board: {name}
extends: {board}

disk:
  partitions:
    {partition}: {{content: ../manifests/{name}-system.yaml}}

sign: {{key: "dev:{name}"}}
"""

SYSTEM = """\
# yaml-language-server: $schema=../schema/manifest.schema.json
# What differs from the stock system {system}. After changing packages or sources, run: erofs-edge lock {name}
system: {name}-system
extends: {system}

hostname: {name}

# packages+: [tcpdump]

overlay+:
  # everything below this folder goes onto the device, owned by root
  - from: files/{name}
"""

README = """\
# {name}

A product for the board `{board}`, based on the stock system `{system}`; erofs-edge builds it.

| file | content |
|---|---|
| `boards/{name}.yaml` | the device: what differs from the stock board `{board}` |
| `manifests/{name}-system.yaml` | the system: what differs from the stock system `{system}` |
| `manifests/files/{name}/` | files that are copied to the device |
| `*.lock` | every package, pinned by its hash; commit these files too |
| `schema/` | JSON Schemas for editors, written by `erofs-edge schema board` and `erofs-edge schema manifest` |

```console
$ erofs-edge explain {name}         # every value, and where it comes from
$ erofs-edge lock {name}            # pin today's packages; build uses no others
$ erofs-edge build {name}           # out/{name}/disk.img
{emulated}$ erofs-edge flash boards/{name}.yaml -o out/{name} --to /dev/sdX --plan
```

`sign.key` in the board file names a development key, which is made on this machine at first use. It protects nothing:
change it before you ship anything.
"""
