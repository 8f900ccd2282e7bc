# SPDX-License-Identifier: Apache-2.0
"""`fs build -z` and `--compress-hints`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from erofs_edge.cli.fs_build import build
from erofs_edge.cli.fs_build_compression import Algorithm, parse_algorithms, read_hints
from erofs_edge.erofs.read import Image
from erofs_edge.errors import UsageError


def test_spellings() -> None:
    assert parse_algorithms("none") == [Algorithm("none")]
    assert parse_algorithms("zstd,3") == [Algorithm("zstd", 3)]
    assert parse_algorithms("lz4hc,9,exact") == [Algorithm("lz4hc", 9, exact=True)]
    assert parse_algorithms("lzma,level=6,dictsize=64K") == [Algorithm("lzma", 6, 65536)]
    assert parse_algorithms("lzma,dictsize=1M:zstd,dictsize=64k:deflate,dictsize=0x8000") == [
        Algorithm("lzma", None, 1 << 20),
        Algorithm("zstd", None, 65536),
        Algorithm("deflate", None, 32768),
    ]
    assert parse_algorithms("zstd,dictsize=0") == [Algorithm("zstd")]
    assert parse_algorithms("lz4hc,9:zstd,dictsize=131072:lz4") == [
        Algorithm("lz4hc", 9),
        Algorithm("zstd", None, 131072),
        Algorithm("lz4"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "none,1", "lz4hc,x", "zstd,3,", "zstd,size=3", "zstd,dictsize=1G", "lz4:none", "zstd,3,3", "zstd,3,level=5",
        "lzma,level=0,6", "zstd,dictsize=64KB", "zstd,dictsize=0xK", "zstd,3K",
    ],
)  # fmt: skip
def test_bad_spellings(text: str) -> None:
    with pytest.raises(UsageError, match="-z"):
        parse_algorithms(text)


def test_hints(tmp_path: Path) -> None:
    hints = tmp_path / "hints"
    hints.write_text("# what\n\n0 \\.gz$\n65536 1 ^usr/lib/.*\\.so\n16384\t^usr\n")
    none, libraries, rest = read_hints(hints, parse_algorithms("lz4hc,9:zstd,5"), 4096)
    assert none.matches(b"/a/b.gz") and not none.matches(b"/a/b.gzx") and none.compression == "none"
    assert libraries.matches(b"/usr/lib/x/a.so.1") and not libraries.matches(b"/opt/usr/lib/a.so")
    assert (libraries.compression, libraries.level, libraries.pcluster) == ("zstd", 5, 65536)
    assert (rest.compression, rest.level, rest.pcluster) == ("lz4hc", 9, 16384)


@pytest.mark.parametrize("line", ["4096", "x \\.so", "4096 2 \\.so", "5000 \\.so", "4096 0 ("])
def test_bad_hints_are_named(line: str, tmp_path: Path) -> None:
    hints = tmp_path / "hints"
    hints.write_text(f"4096 fine\n{line}\n")
    with pytest.raises(UsageError) as caught:
        read_hints(hints, parse_algorithms("lz4:zstd"), 4096)
    assert caught.value.where == f"{hints}:2"


def test_build_with_hints(tmp_path: Path) -> None:
    source, image, hints = tmp_path / "s", tmp_path / "i", tmp_path / "hints"
    source.mkdir()
    for name in ("a.so", "b.txt", "c.gz"):
        (source / name).write_bytes(b"some text that repeats " * 3000)
    hints.write_text("0 gz$\n16384 1 so$\n")
    arguments = [str(source), "-o", str(image), "-z", "lz4:zstd,3", "--compress-hints", str(hints), "--no-cache"]
    done = CliRunner().invoke(build, arguments)
    assert done.exit_code == 0, done.output
    with Image(image) as made:
        used = {
            n: {e.algorithm for e in made.extents(made.lookup(n)) if e.kind.name == "ENCODED"}
            for n in ("a.so", "b.txt", "c.gz")
        }
        assert used == {"a.so": {3}, "b.txt": {0}, "c.gz": set()}
