# SPDX-License-Identifier: Apache-2.0
"""Images with zstd, deflate and MicroLZMA, and with several codecs by path rules."""

from __future__ import annotations

import random
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from treediff import diff
from writer_check import Oracle, fsck_differences, kernel_differences, write, written
from writer_trees import file, mixed, noise, text, trees

from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.check import check
from erofs_edge.erofs.ondisk import ALGORITHM_NAMES
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.rules import CompressionRule
from erofs_edge.errors import ErofsFormatError, UsageError
from erofs_edge.tree import FileTree

MODES: dict[str, dict[str, Any]] = {
    "zstd": {"compression": "zstd"},
    "zstd,9 64K": {"compression": "zstd", "level": 9, "pcluster": 65536},
    "zstd 16K, window": {"compression": "zstd", "pcluster": 16384, "dictionary": 1 << 20},
    "deflate": {"compression": "deflate", "level": 1},
    "deflate,12 64K": {"compression": "deflate", "level": 12, "pcluster": 65536},
    "lzma,1": {"compression": "lzma", "level": 1},
    "lzma,100 1M": {"compression": "lzma", "level": 100, "pcluster": 1 << 20},
    "zstd ztailpacking": {"compression": "zstd", "pcluster": 16384, "ztailpacking": True},
    "deflate fragments": {"compression": "deflate", "pcluster": 16384, "fragments": "tails"},
    "zstd all-fragments": {"compression": "zstd", "pcluster": 16384, "fragments": "all"},
}
RULES = (
    CompressionRule(match="*.raw", compression="none"),
    CompressionRule(match="/sizes/**", compression="zstd", level=1, pcluster=16384),
    CompressionRule(match="deep/*/x*", compression="lzma", level=1, pcluster=65536),
    CompressionRule(match=re.compile(rb"f[0-3]$"), compression="deflate"),
)
ANY = [
    CompressionRule(match=m, compression=c) for m, c in (("?*[0-7]", "zstd"), ("**", "deflate"), ("*[a-z]*", "none"))
]
modes = pytest.mark.parametrize("options", MODES.values(), ids=MODES)


def small_tree() -> FileTree:
    tree = FileTree()
    for size in (0, 1, 4095, 4096, 4097, 8192, 65537, 200_000):
        tree.add(f"sizes/text-{size}", file(text(size, size)))
        tree.add(f"sizes/mixed-{size}", file(mixed(size, size)))
    for i in range(5):
        tree.add(f"many/f{i}", file(text(70_000, i // 2)))
        tree.add(f"many/f{i}.raw", file(text(70_000, i // 2)))
    tree.add("deep/er/x", file(text(400_000, 3) + noise(30_000) + bytes(100_000)))
    tree.add("deep/er/y/x", file(bytes(1_000_000) + text(100)))
    return tree


@modes
@pytest.mark.oracle
@pytest.mark.root
def test_everyone_reads_them(options: dict[str, Any], tmp_path: Path, oracle: Oracle, needs_root: None) -> None:
    tree, image = small_tree(), tmp_path / "image"
    info = write(tree, image, **options)
    assert info.compressed > 10
    assert fsck_differences(oracle, image, tree) == []
    assert kernel_differences(image, tree) == []
    with Image(image) as ours:
        assert diff(ours.tree(), tree) == []
    assert not check(image).findings


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees(), rules=st.permutations(ANY), blocks=st.sampled_from([1, 4]))
def test_any_tree_comes_back(tmp_path: Path, tree: FileTree, rules: list[CompressionRule], blocks: int) -> None:
    image = tmp_path / "image"
    write(tree, image, compression="lz4", pcluster=4096 * blocks, rules=tuple(rules))
    with Image(image) as ours:
        assert diff(ours.tree(), tree) == []
    assert not check(image).findings


@pytest.mark.parametrize("name", ["zstd", "deflate", "lzma"])
def test_hostile_data(name: str, tmp_path: Path) -> None:
    tree, path = FileTree(), tmp_path / "image"
    tree.add("f", file(text(300_000)))
    write(tree, path, compression=name, level=1, pcluster=16384)
    with Image(path) as image:
        extent = list(image.extents(image.lookup("f")))[1]
    sound = path.read_bytes()
    rng = random.Random(1)
    for _ in range(60):
        raw = bytearray(sound)
        at = extent.address + rng.choice([rng.randrange(extent.size), rng.randrange(40)])
        raw[at : at + 4] = rng.randbytes(4)
        path.write_bytes(raw)
        with Image(path) as image, suppress(ErofsFormatError):
            assert len(image.read(image.lookup("f"), 0, 300_000)) == 300_000
    path.write_bytes(sound[: extent.address] + bytes(extent.size) + sound[extent.address + extent.size :])
    with Image(path) as image, pytest.raises(ErofsFormatError, match=f"offset {extent.address:#x}"):
        image.read(image.lookup("f"), 0, 300_000)


@pytest.mark.parametrize("name", ["zstd", "deflate", "lzma"])
def test_determinism(name: str, tmp_path: Path) -> None:
    options = {"compression": name, "level": 1, "pcluster": 16384, "rules": RULES}
    first = written(small_tree(), tmp_path, jobs=1, **options)
    for jobs in (2, 8):
        assert written(small_tree(), tmp_path, jobs=jobs, **options) == first
    for misses in (True, False):
        with CompressionCache(tmp_path / "cache") as cache:
            info = write(small_tree(), tmp_path / "cached", cache=cache, **options)
            assert bool(info.cache_misses) is misses
        assert (tmp_path / "cached").read_bytes() == first


def test_the_cache_tells_codecs_and_dictionaries_apart(tmp_path: Path) -> None:
    seen = set()
    for options in ({}, {"level": 2}, {"dictionary": 65536}, {"pcluster": 8192}):
        with CompressionCache(tmp_path / "cache") as cache:
            info = write(small_tree(), tmp_path / "i", cache=cache, compression="zstd", **options)
            assert info.cache_misses and not info.cache_hits
        seen.add((tmp_path / "i").read_bytes())
    assert len(seen) == 4


@pytest.mark.oracle
@pytest.mark.root
def test_rules_choose_for_each_file(tmp_path: Path, oracle: Oracle, needs_root: None) -> None:
    tree, image = small_tree(), tmp_path / "image"
    info = write(tree, image, compression="lz4hc", level=3, rules=RULES)
    assert {"zstd", "lz4", "lzma", "deflate"} <= set(info.features)
    assert fsck_differences(oracle, image, tree) == []
    assert kernel_differences(image, tree) == []
    with Image(image) as ours:
        assert diff(ours.tree(), tree) == []
        how = {
            path: {ALGORITHM_NAMES[e.algorithm] for e in ours.extents(ours.lookup(path)) if e.kind.name == "ENCODED"}
            for path in ("sizes/text-65537", "deep/er/x", "deep/er/y/x", "many/f1", "many/f4", "many/f4.raw")
        }
        assert ours.superblock.algorithms == 0b1111
    assert how == {
        "sizes/text-65537": {"zstd"},
        "deep/er/x": {"lzma"},
        "deep/er/y/x": {"lz4"},
        "many/f1": {"deflate"},
        "many/f4": {"lz4"},
        "many/f4.raw": set(),
    }


def test_only_what_is_used_is_listed(tmp_path: Path) -> None:
    plain = written(small_tree(), tmp_path, compression="lz4")
    unused = (CompressionRule(match="nothing-like-it", compression="zstd"),)
    assert written(small_tree(), tmp_path, compression="lz4", rules=unused) == plain
    write(small_tree(), tmp_path / "i", compression="none", rules=RULES[:2])
    with Image(tmp_path / "i") as image:
        assert image.superblock.algorithms == 0b1000
    with_none = (CompressionRule(match="**", compression="none"),)
    info = write(small_tree(), tmp_path / "i", compression="lz4", rules=with_none)
    assert info.compressed == 0


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.so", ["/a.so", "/usr/lib/b.so"], ["/a.so.1", "/x.so/y"]),
        ("lib/*.so", ["/lib/a.so"], ["/usr/lib/a.so", "/lib/x/a.so"]),
        ("/lib/**", ["/lib/a", "/lib/x/y"], ["/usr/lib/a", "/lib"]),
        ("**/x", ["/x", "/a/b/x"], ["/ax"]),
        ("[!a]?", ["/bc"], ["/ac", "/b"]),
        ("a+b", ["/a+b"], ["/aab"]),
        ("\udcff*", ["/\udcffz"], ["/z"]),
    ],
)
def test_globs(pattern: str, yes: list[str], no: list[str]) -> None:
    rule = CompressionRule(match=pattern, compression="none")
    for path in yes + no:
        assert rule.matches(path.encode("utf-8", "surrogateescape")) is (path in yes), path


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd", "level": 23},
        {"compression": "zstd", "dictionary": 3 << 16},
        {"compression": "lz4", "dictionary": 65536},
        {"rules": (CompressionRule(match="*", compression="zip"),)},
        {"rules": (CompressionRule(match="*", compression="none", level=3),)},
        {"rules": (CompressionRule(match="*", compression="lz4", pcluster=5000),)},
        {"rules": (CompressionRule(match="*", compression="lzma", dictionary=1),)},
        {"rules": (CompressionRule(match="lib[z-a].so", compression="lz4"),)},
    ],
    ids=str,
)
def test_what_makes_no_sense(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write(FileTree(), tmp_path / "i", **options)


def test_a_kernel_that_lacks_the_codec_of_a_rule(tmp_path: Path) -> None:
    from erofs_edge.erofs.gate import parse_kernel

    with pytest.raises(UsageError, match=r"zstd needs 6\.10"):
        write(small_tree(), tmp_path / "i", kernel=parse_kernel("6.6"), compression="lz4", rules=RULES[:2])
