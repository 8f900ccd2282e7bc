# SPDX-License-Identifier: Apache-2.0
"""Every pair of the writer's features in one image: our reader, fsck.erofs and the kernel read the input back; kernels
older than required are refused."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from compare import differences
from covering import Row, covering, pairs_of
from mounts import loop
from treediff import diff
from writer_check import write
from writer_trees import file, mixed, noise, text

from erofs_edge.erofs.check import check
from erofs_edge.erofs.gate import Kernel
from erofs_edge.erofs.ondisk import BLKSZBITS_MIN
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.rules import CompressionRule
from erofs_edge.errors import UsageError
from erofs_edge.tree import FileTree

FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "codec": {
        "lz4": {"compression": "lz4"},
        "none": {"compression": "none"},
        "lz4hc": {"compression": "lz4hc"},
        "lz4hc,3": {"compression": "lz4hc", "level": 3},
        "zstd": {"compression": "zstd"},
        "deflate": {"compression": "deflate", "level": 1},
        "lzma": {"compression": "lzma", "level": 0},
    },
    "pcluster": {"block": {}, "16K": {"pcluster": 16384}, "64K": {"pcluster": 65536}},
    "block": {"4K": {}, "1K": {"block_size": 1024}, "512": {"block_size": 1 << BLKSZBITS_MIN}},
    "rules": {
        "none": {},
        "other": {"rules": (CompressionRule(match="*3", compression="zstd", level=1),)},
        "raw": {"rules": (CompressionRule(match="/part/*", compression="none"),)},
    },
    "tail": {
        "blocks": {},
        "ztailpacking": {"ztailpacking": True},
        "fragments": {"fragments": "tails"},
        "all-fragments": {"fragments": "all"},
        "both": {"fragments": "tails", "ztailpacking": True},
        "small": {"fragments": "all", "packed_pcluster": 8192},
    },
    "dedupe": {"no": {}, "yes": {"dedupe": True}},
    "chunks": {
        "no": {},
        "4K": {"chunk_size": 4096},
        "indexes": {"chunk_size": 8192, "chunk_indexes": True},
        "blob": {"chunk_size": 4096, "blob": Path("blob")},
    },
    "prefixes": {"no": {}, "yes": {"xattr_prefixes": (b"user.prefix.", b"security.sel")}},
    "xattrs": {"shared": {}, "own": {"xattr_tolerance": 100}, "all shared": {"xattr_tolerance": 0}},
    "filter": {"yes": {}, "no": {"xattr_filter": False}},
    "labels": {"no": {}, "yes": {}},
    "inode": {"auto": {}, "extended": {"inode_form": "extended"}},
    "inline": {"yes": {}, "no": {"inline_tails": False}},
    "index": {"compact": {}, "full": {"full_index": True}},
    "checksum": {"yes": {}, "no": {"checksum": False}},
}


def options_of(row: Row) -> dict[str, Any]:
    return {key: value for name, choice in row.items() for key, value in FACTORS[name][choice].items()}


def allowed(row: Row) -> bool:
    try:
        WriteOptions(**options_of(row))
    except UsageError:
        return False
    return True


ROWS, IMPOSSIBLE = covering({name: list(values) for name, values in FACTORS.items()}, allowed)


def is_excluded(pair: dict[str, str]) -> bool:
    """Whether WriteOptions refuses the combination."""
    tail = pair.get("tail", "blocks")
    packed = tail not in ("blocks", "ztailpacking")
    chunked = pair.get("chunks", "no") != "no"
    return (pair.get("codec") == "none" and tail != "blocks") or (packed and chunked)


def test_the_array_covers_every_pair() -> None:
    names = list(FACTORS)
    every = {
        frozenset([(a, x), (b, y)])
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        for x in FACTORS[a]
        for y in FACTORS[b]
    }
    covered = set().union(*map(pairs_of, ROWS))
    assert covered | IMPOSSIBLE >= every
    assert {pair for pair in every if is_excluded(dict(pair))} == IMPOSSIBLE
    assert len(ROWS) < 70


def tree_for(row: Row) -> FileTree:
    tree = FileTree()
    for i, size in enumerate([0, 1, 60, 511, 513, 4095, 4096, 4097, 9000, 16_385, 70_001]):
        for kind in (text, mixed):
            tree.add(f"{kind.__name__}-{size}", file(kind(size, i), mtime_ns=i * 10**9))
    common = mixed(120_000, 77)
    tree.add("part/1", file(noise(3333) + common, xattrs={b"user.prefix.k": b"v", b"user.p": b"2"}))
    tree.add("part/2", file(text(9999, 3) + common[:100_001], xattrs={b"user.prefix.k": b"v"}))
    tree.add("part/3", file(common, 0o755, xattrs={b"user.prefix.k": b"v" * 100, b"trusted.t": b""}))
    tree.add("part/twin", file(common, mtime_ns=5))
    tree.add("sparse", file(b"a" * 4096 + bytes(40_960) + b"b" * 5000))
    tree.add("noise", file(b"\xfd7zXZ\0" + noise(30_000, 4)))
    tree.add("deep/er/file", file(b"deep"))
    if row["labels"] == "yes":
        for n, (_, inode) in enumerate(tree.walk()):
            inode.xattrs = {**inode.xattrs, b"security.selinux": b"system_u:object_r:t%d_t:s0" % (n % 3)}
    return tree


@pytest.mark.root
@pytest.mark.oracle
@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row.values()))
def test_all_readers_see_the_input(needs_root: None, oracle: Callable[[str], str], tmp_path: Path, row: Row) -> None:
    options = options_of(row)
    blob = tmp_path / "blob" if "blob" in options else None
    if blob:
        options["blob"] = blob
    tree = tree_for(row)
    info = write(tree, image := tmp_path / "i", **options)
    devices = [blob] if blob else []
    with Image(image, devices=devices) as opened:
        assert diff(opened.tree(), tree) == []
    assert [str(finding) for finding in check(image, devices=devices).findings] == []
    assert kernel_differences(image, blob, tree) == []
    assert fsck_differences(oracle("fsck.erofs-1.9"), image, blob, tree) == []
    gate_holds(tree, tmp_path / "again", info.minimum_kernel, options, blob)


def kernel_differences(image: Path, blob: Path | None, tree: FileTree) -> list[str]:
    target = image.parent / "mounted"
    target.mkdir()
    with loop(blob, "--read-only") if blob else nullcontext("") as device:
        how = f"loop,ro,device={device}" if blob else "loop,ro"
        subprocess.run(["mount", "-t", "erofs", "-o", how, str(image), str(target)], check=True, capture_output=True)
        try:
            return differences(tree, target)
        finally:
            subprocess.run(["umount", str(target)], check=True)


def fsck_differences(program: str, image: Path, blob: Path | None, tree: FileTree) -> list[str]:
    target = image.parent / "extracted"
    more = [f"--device={blob}"] if blob else []
    argv = [program, "--no-xattrs", *more, f"--extract={target}", str(image)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode or "<E>" in done.stderr:
        return (done.stdout + done.stderr).splitlines()
    return differences(tree, target, xattrs=False)


def gate_holds(tree: FileTree, out: Path, least: tuple[int, int], options: dict[str, Any], blob: Path | None) -> None:
    """Check that the required kernel is accepted and the one before refused, in which case nothing is written."""
    if blob:
        options = {**options, "blob": out.with_name("other")}
    write(tree, out, kernel=Kernel(least), **options)
    out.unlink()
    older = (least[0], least[1] - 1) if least[1] else (least[0] - 1, 19)
    if least > (5, 4):
        with pytest.raises(UsageError, match=f"needs {least[0]}\\.{least[1]}"):
            write(tree, out, kernel=Kernel(older), **options)
        assert not out.exists()
