# SPDX-License-Identifier: Apache-2.0
"""`--stats`: the codecs' share of a build's time."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import pytest
from click.testing import CliRunner
from writer_check import written
from writer_trees import file, mixed

from erofs_edge.cli.fs_build import build
from erofs_edge.erofs.meter import Meter
from erofs_edge.tree import FileTree


def test_calls_are_counted_and_change_nothing(tmp_path: Path) -> None:
    tree = FileTree()
    for i in range(5):
        tree.add(f"{i}", file(mixed(300_000, i)))
    seconds = count(0, 3)
    meter = Meter(lambda: next(seconds))
    for compression in ("lz4hc", "zstd"):
        plain = written(tree, tmp_path, compression=compression, pcluster=65536)
        before = meter.calls
        assert written(tree, tmp_path, compression=compression, pcluster=65536, meter=meter, jobs=1) == plain
        assert meter.calls >= before + 5
    assert meter.seconds == 3 * meter.calls


@pytest.mark.parametrize("compression", ["none", "lz4hc"])
def test_the_share_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str) -> None:
    monkeypatch.setenv("EROFS_EDGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(mixed(200_000))
    arguments = [str(tmp_path / "tree"), "-o", str(tmp_path / "i"), "-z", compression, "--no-cache"]
    runner = CliRunner()
    assert "time" not in json.loads(runner.invoke(build, [*arguments, "--json"]).stdout)
    record = json.loads(runner.invoke(build, [*arguments, "--stats", "--json"]).stdout)
    time = record["time"]
    assert record["size"] == (tmp_path / "i").stat().st_size
    assert (time["codec_calls"] > 0) == (compression != "none")
    assert time["codec_wall"] <= time["codec_cpu"] and time["wall"] > 0 and time["processors"] >= 1
    if compression != "none":
        rounding = 0.0005
        least, most = (
            (time["wall"] + way * rounding) * time["processors"] / max(time["codec_cpu"] - way * rounding, 1e-9)
            for way in (-1, 1)
        )
        assert least - rounding <= time["overhead"] <= most + rounding
    said = runner.invoke(build, [*arguments, "--stats"]).stdout
    assert f"{time['codec_calls']} calls" in said and "the codecs alone" in said
