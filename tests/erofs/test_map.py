# SPDX-License-Identifier: Apache-2.0
"""The map of an image: every byte once, and a picture of it that is valid XML whatever the names are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from reader_trees import make_tree, mkfs

from erofs_edge.cli.fs import fs
from erofs_edge.erofs.picture import COLUMNS, ROWS, svg
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.regions import KINDS, Map, Region, map_image
from erofs_edge.verity.tree import append

Oracle = Callable[[str], str]
SVG = "{http://www.w3.org/2000/svg}"
EXPECTED = {
    "-zlz4 -C16384": {"lz4 data", "plain data", "inline data", "indexes", "symlinks", "directories", "attributes"},
    "--chunksize=4096": {"plain data", "indexes"},
    "-zzstd -C16384 -Eall-fragments": {"fragments"},
    "-zlz4 -m4096": {"metabox", "lz4 data"},
    "--xattr-prefix=user.long.": {"plain data"},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("map") / "tree")


@pytest.mark.parametrize("options", EXPECTED)
def test_every_byte_once(options: str, source: Path, tmp_path: Path, oracle: Oracle) -> None:
    path = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, options.split())
    with Image(path) as image:
        found = map_image(image)
        assert (found.regions[0].start, found.regions[-1].end) == (0, path.stat().st_size)
        assert all(a.end == b.start and a.start < a.end for a, b in pairwise(found.regions))
        totals = found.totals()
        assert sum(totals.values()) == found.size
        assert EXPECTED[options] | {"superblock and tables", "inodes", "boot area"} <= totals.keys()
        data = path.read_bytes()
        padding = [region for region in found.regions if region.kind == "padding"]
        assert all(not any(data[region.start : region.end]) for region in padding)
        names = {region.label for region in found.regions}
        assert "/mixed" in names or "(packed inode)" in names


def test_what_lies_behind_the_image(source: Path, tmp_path: Path, oracle: Oracle) -> None:
    path = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, ["-zlz4"])
    size = path.stat().st_size
    append(path)
    with Image(path) as image:
        last = map_image(image).regions[-1]
    assert last == Region(size, path.stat().st_size, "hash tree", "")
    path.write_bytes(path.read_bytes()[:size] + b"something")
    with Image(path) as image:
        assert map_image(image).regions[-1] == Region(size, size + 9, "behind the image", "")


def test_the_picture(source: Path, tmp_path: Path, oracle: Oracle) -> None:
    path = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, ["-zlz4"])
    append(path)
    runner = CliRunner()
    out = tmp_path / "map.svg"
    assert runner.invoke(fs, ["map", "--svg", str(path), "-o", str(out)]).exit_code == 0
    printed = runner.invoke(fs, ["map", "--svg", str(path)]).output
    assert out.read_text("utf-8") == printed  # the same image, the same bytes
    both = runner.invoke(fs, ["map", "--svg", str(path), "-o", str(out), "--json"])
    assert both.stdout == runner.invoke(fs, ["map", str(path), "--json"]).stdout and out.read_text("utf-8") == printed
    assert "both go to" in str(runner.invoke(fs, ["map", "--svg", str(path), "--json"]).exception)
    root = ET.fromstring(printed)
    rectangles = [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    hovers = [rect.findtext(f"{SVG}title") or "" for rect in rectangles]
    assert any(hover.startswith("lz4 data: /") for hover in hovers)
    assert any(hover.startswith("hash tree") for hover in hovers)
    legend = [text.text or "" for text in root.iter(f"{SVG}text")]
    with Image(path) as image:
        assert all(any(text.startswith(f"{kind}: ") for text in legend) for kind in map_image(image).totals())
    # no two rectangles overlap, and the whole file is drawn
    cells = [(int(r.attrib["y"]), int(r.attrib["x"]), int(r.attrib["width"])) for r in rectangles]
    assert all(a[0] < b[0] or a[1] + a[2] == b[1] for a, b in pairwise(cells))


def test_names_and_sizes_of_any_kind() -> None:
    """Names that XML cannot represent; 100 GiB of regions that are too small for a cell."""
    size = 100 << 30
    regions = [Region(0, 1, "inodes", "/a\0<&\udcff\n"), Region(1, size - 5, "plain data", "/b"),
               Region(size - 5, size, "padding", "")]  # fmt: skip
    root = ET.fromstring(svg(Map(size, size, 4096, regions), 'x"<y>'))
    drawn = [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    assert sum(int(rect.attrib["width"]) for rect in drawn) <= ROWS * COLUMNS
    assert {rect.findtext(f"{SVG}title", "").split(":")[0] for rect in drawn} == {"plain data"}
    small = svg(Map(100, 100, 4096, [Region(0, 100, "inodes", "/a\0<&\udcff\n")]), "t")
    assert "inodes: /a\\x00&lt;&amp;\\udcff\\n (0x0 to 0x64)" in small
    ET.fromstring(small)
    assert len(KINDS) == len(set(KINDS))


def test_the_table_and_its_errors(source: Path, tmp_path: Path, oracle: Oracle) -> None:
    path = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, ["-zlz4"])
    runner = CliRunner()
    lines = runner.invoke(fs, ["map", str(path)]).output.splitlines()
    assert lines[0].split() == ["kind", "bytes", "size", "share"]
    assert any(line.startswith("lz4 data") for line in lines)
    assert '"totals"' in runner.invoke(fs, ["map", "--json", str(path)]).output
    assert "for the picture of" in str(runner.invoke(fs, ["map", str(path), "-o", "x"]).exception)
    missing = tmp_path / "no/folder.svg"
    assert "cannot write" in str(runner.invoke(fs, ["map", "--svg", str(path), "-o", str(missing)]).exception)
