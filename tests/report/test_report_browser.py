# SPDX-License-Identifier: Apache-2.0
"""A page about 20,000 files: small enough, and Chromium shows it (that it needs no script: test_report.py)."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from hashlib import shake_128
from pathlib import Path

import pytest
from browser import Browser
from click.testing import CliRunner

from erofs_edge.cli.report import report
from erofs_edge.report.pictures import COLOURS
from erofs_edge.tree import BytesContent, FileTree, Inode

FILES = 20_000
SIZE_MAX = 3 << 20


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(tmp_path_factory.mktemp("browser"))


def large_tree() -> FileTree:
    """20,000 files of two packages, of up to 800 bytes, names as long as those of a system."""
    tree = FileTree(Inode(stat.S_IFDIR | 0o755, origin="tool"))
    noise = shake_128(b"").digest(800)
    for number in range(FILES):
        folder = f"usr/{('bin', 'lib/aarch64-linux-gnu', 'share/doc')[number % 3]}/{number % 199:03}-package"
        data = f"{number}".encode() + noise[: number * 7919 % len(noise)]
        origin = ("tool", "libx", "accounts")[number % 7 % 3]
        tree.add(f"{folder}/name-of-a-file-{number:05}", Inode(0o100644, content=BytesContent(data), origin=origin))
    return tree


def test_twenty_thousand_files(make: Callable[..., Path], browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    done = CliRunner().invoke(report, [str(make("out", large_tree())), "-o", str(path)])
    assert done.exit_code == 0, done.output
    text = path.read_text()
    assert len(text.encode()) < SIZE_MAX
    assert text.count("<rect") < 12_000, "what a browser can draw at once"
    shown = browser.run(path, "--dump-dom")
    for name in ("summary", "packages", "layout", "bill", "use"):
        assert f'<section id="{name}">' in shown
    assert shown.count("<rect") == text.count("<rect") and shown.count("<svg") == 3
    assert len(set(re.findall("^  name-of-a-file-[0-9]{5}(?=$|<)", shown, re.M))) == FILES
    seen = browser.pixels(path)
    for kind in ("programs", "documentation"):
        assert bytes.fromhex(COLOURS[kind][1:]) in seen, f"{kind} are drawn"


def test_hostile_names_are_text_in_a_browser(make: Callable[..., Path], browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert CliRunner().invoke(report, [str(make("out")), "-o", str(path)]).exit_code == 0
    shown = browser.run(path, "--dump-dom")
    assert "<script" not in shown and shown.count("&lt;script&gt;alert(1)") >= 3
