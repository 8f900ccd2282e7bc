# SPDX-License-Identifier: Apache-2.0
"""The benchmarks can be run from a clone, and docs/benchmarks.md names what there is."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from erofs_edge.manifest.model import LockedPackage
from erofs_edge.sources.debian.mirror import Mirror

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"
ALONE = {"corpus.py", "repair_kernel.py", "run.py", "same.py"}
"""not among those that run.py runs"""
SHARED = {"common.py", "guest.py"}
NAMES = sorted(path.name for path in FOLDER.glob("*.py"))


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ran(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def table(text: str) -> list[list[str]]:
    """The rows of a markdown table, without its two head lines."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert set(rows[1]) == {"---"}
    return rows[2:]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SHARED | {"corpus.py", "same.py"}])
def test_help_lists_the_options_of_the_usage(name: str) -> None:
    done = ran(name, "--help")
    assert done.returncode == 0, done.stderr
    text, _, options = done.stdout.partition("\noptions:\n")
    usage = text.split("usage: python benchmarks/", 1)[1].split("\n\n", 1)[0]
    assert usage.startswith(name)
    assert set(re.findall(r"--[a-z-]+", usage)) <= set(re.findall(r"--[a-z-]+", options))


def test_all_benchmarks_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = loaded("run", monkeypatch).SCRIPTS
    assert len(set(scripts)) == len(scripts)
    assert {*scripts} == {*NAMES} - ALONE - SHARED


def test_the_page_names_scripts_that_exist() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    named = {word.rpartition("/")[2] for word in re.findall(r"`([\w/]+\.py)\b[^`]*`", page)}
    others = {path.name for folder in ("tests", "erofs_edge") for path in (ROOT / folder).rglob("*.py")}
    assert {*NAMES} & named
    assert named <= {*NAMES} | others


def a_tree(folder: Path, seed: int) -> Path:
    """A tree of which some files depend on the seed."""
    for number in range(120):
        chance = random.Random(number if number % 10 else (seed, number).__repr__())
        place = folder / f"{number % 7}" / f"file-{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(bytes(chance.choices(b"abcdefgh\n", k=9000)))
    return folder


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    return a_tree(tmp_path / "root", 1), a_tree(tmp_path / "update", 2)


def test_a_newer_tree_is_found_beside_the_older_one(trees: tuple[Path, Path]) -> None:
    done = ran("layers.py", "--tree", trees[0])
    assert done.returncode == 0, done.stderr
    rows = table(done.stdout)
    assert len(rows) == 5
    for _, first, second, both, _ in rows:
        assert 0 < int(second) < int(first)
        assert both == f"{(int(first) + int(second)) / int(first):.3f}x"


def test_a_newer_tree_that_is_missing_is_named(tmp_path: Path) -> None:
    done = ran("layers.py", "--tree", a_tree(tmp_path / "alone", 1))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"{tmp_path}/update does not exist: name a newer version of {tmp_path}/alone with --update\n"
    )


def test_generated_updates_are_compared(trees: tuple[Path, Path]) -> None:
    done = ran("stable_layout.py", "--tree", trees[0], "--updates", 1)
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in table(done.stdout)] == ["root → update", "generated 1"]


def test_a_failure_does_not_stop_the_others(trees: tuple[Path, Path]) -> None:
    trees[1].rename(trees[1].with_name("elsewhere"))
    done = ran("run.py", "--only", "layers.py", "diff.py", "--runs", 1, "--tree", trees[0])
    assert done.returncode == 1
    assert done.stderr.endswith("failed: layers.py\n")
    assert len(table(done.stdout)) == 2


def test_images_that_differ_are_found(tmp_path: Path, trees: tuple[Path, Path]) -> None:
    images = [tmp_path / f"{number}.img" for number in range(3)]
    for image, tree, codec in zip(images, (trees[0], trees[0], trees[1]), ("lz4", "zstd", "lz4"), strict=True):
        words = ["fs", "build", str(tree), "-o", str(image), "-z", codec, "-T0", "--all-root", "--no-cache"]
        subprocess.run([sys.executable, "-m", "erofs_edge", *words], check=True, capture_output=True)
    assert ran("same.py", *images[:2]).returncode == 0
    differ = ran("same.py", *images[::2])
    assert differ.returncode == 1
    assert differ.stderr.startswith("the images differ: ")


def package(name: str, version: str) -> LockedPackage:
    return LockedPackage(
        name=name, version=version, arch="arm64", archive="debian", path="pool/x.deb", size=1, sha256="0" * 64
    )


class Index:
    """An archive: name → version."""

    def __init__(self, versions: dict[str, str]) -> None:
        self._versions = versions

    def closure(self, names: Iterable[str]) -> list[LockedPackage]:
        assert "openssl" in names
        return self.describe(self._versions)

    def describe(self, names: Iterable[str]) -> list[LockedPackage]:
        return [package(name, self._versions[name]) for name in names]

    def has(self, name: str) -> bool:
        return name in self._versions


def test_updates_are_the_suites_own_before_those_of_sid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = loaded("corpus", monkeypatch)
    release = {"libc6": "1", "openssl": "3.9", "libssl3t64": "3.9", "dnsmasq-base": "2", "bluez": "5", "libxml2": "2"}
    archives = {
        ("trixie", ""): release,
        ("trixie", "-security"): {"openssl": "3.10", "libssl3t64": "3.10", "libxml2": "1", "dnsmasq-base": "2"},
        ("sid", ""): {"openssl": "4", "libssl3t64": "4", "dnsmasq-base": "3", "libxml2": "3", "libc6": "9"},
    }
    asked = []

    @contextlib.contextmanager
    def opened(mirror: object, suite: str, arch: str, *, pockets: Sequence[str]) -> Iterator[Index]:
        (pocket,) = pockets
        asked.append((suite, pocket))
        yield Index(archives[suite, pocket])

    monkeypatch.setattr(corpus, "open_apt", opened)
    monkeypatch.setattr(corpus, "UPDATED", {
        "openssl": ["openssl", "libssl3t64"], "dnsmasq": ["dnsmasq-base"], "libxml2": ["libxml2"], "bluez": ["bluez"],
    })  # fmt: skip
    older, newer = ({one.name: one.version for one in tree.values()} for tree in corpus._versions(Mirror({}, ROOT)))
    assert asked == [*archives]
    assert older == release | {"libxml2": "1"}
    assert newer == release | {"openssl": "3.10", "libssl3t64": "3.10", "dnsmasq-base": "3"}
    assert capsys.readouterr().err == "no newer version: bluez\n"


def a_deb(folder: Path, name: str, files: dict[str, str]) -> Path:
    root = folder / name
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: none <none@example.com>\nDescription: none\n"
    )
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    out = folder / f"{name}.deb"
    command = ["dpkg-deb", "--root-owner-group", "-b", str(root), str(out)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": "1000000000"})
    return out


def test_equal_packages_give_equal_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = loaded("corpus", monkeypatch)
    debs = {
        "base-files": a_deb(tmp_path, "base-files", {"etc/a": "a"}),
        "b": a_deb(tmp_path, "b", {"etc/b": "b", "usr/share/man/b.1": "b", "usr/share/doc/b/changelog.gz": "b"}),
    }
    found = []
    for number in range(2):
        tree = tmp_path / f"tree-{number}"
        corpus._unpack(debs, tree)
        infos = {path.relative_to(tree): path.lstat() for path in sorted(tree.rglob("*"))}
        found.append({path: (info.st_mode, info.st_mtime_ns) for path, info in infos.items()})
    assert found[0] == found[1]
    files = {str(path) for path in found[0] if (tree / path).is_file()}
    assert files == {"etc/a", "etc/b"}
    assert all(mtime <= 1_000_000_000_000_000_000 for _, mtime in found[0].values())
