# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sources.debian.locking import BOARD, MANIFEST, FakeArchive

from erofs_edge.cli.main import cli
from erofs_edge.manifest.load import load_lock

Run = Callable[..., Result]


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeArchive:
    made = FakeArchive(tmp_path / "archive")
    made.install(monkeypatch)
    monkeypatch.setenv("EROFS_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("edge.yaml").write_text(MANIFEST)
    Path("demo.yaml").write_text(BOARD)
    return made


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, ["lock", *args])


def test_a_manifest_new_unchanged_and_updated(archive: FakeArchive) -> None:
    result = run("edge.yaml")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("edge.lock: 4 packages, ")
    assert result.stdout.endswith(", new\n")
    before = Path("edge.lock").read_bytes()
    archive.date += 5
    assert run("edge.yaml").stdout.endswith(", unchanged\n")
    assert Path("edge.lock").read_bytes() == before
    archive.add("libc6", "2.0")
    Path("edge.yaml").write_text(MANIFEST.replace("base-files", "kmod"))
    lines = run("edge.yaml").stdout.splitlines()
    assert lines[0].endswith("1 updated, 1 added, 1 removed")
    assert lines[1:] == ["  updated  libc6 1.0 → 2.0", "  added    kmod 1.0", "  removed  base-files 1.0"]
    assert load_lock("edge.lock").date == archive.date


def test_a_board_and_its_manifests(archive: FakeArchive) -> None:
    result = run("demo.yaml")
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["demo.lock", "edge.lock"]
    assert load_lock("demo.lock").packages.keys() == {"kernel", "initramfs", "firmware"}
    assert load_lock("edge.lock").packages.keys() == {"system"}


def test_a_folder_of_its_own(archive: FakeArchive) -> None:
    run("demo.yaml")
    before = Path("edge.lock").read_bytes()
    archive.add("libc6", "2.0")
    result = run("demo.yaml", "-o", "out/locks/")
    assert result.exit_code == 0, result.output
    assert "updated  libc6 1.0 → 2.0" in result.stdout
    assert sorted(path.name for path in Path("out/locks").iterdir()) == ["demo.board.lock", "edge.lock"]
    assert Path("edge.lock").read_bytes() == before, "the lock beside the manifest stays as it is"
    assert load_lock("out/locks/edge.lock").users == load_lock("edge.lock").users
    assert "unchanged" in run("demo.yaml", "-o", "out/locks").stdout


def test_a_file_of_its_own(archive: FakeArchive) -> None:
    assert run("edge.yaml", "-o", "other.lock").exit_code == 0
    assert load_lock("other.lock").name == "edge"
    assert not Path("edge.lock").exists()
    result = run("demo.yaml", "-o", "other2.lock")
    assert result.exit_code == 2
    assert "a board has several locks" in result.stderr
    assert "-o other2.lock/" in result.stderr
    Path("tool.yaml").write_text("system: tool\nkind: sysext\n")
    Path("edge.yaml").write_text(f"{MANIFEST}layers: [tool.yaml]\n")
    result = run("edge.yaml", "-o", "other2.lock")
    assert (result.exit_code, "a manifest with layers has several locks" in result.stderr) == (2, True)
    assert archive.opened == [("trixie", "arm64")], "the misuse is told before anything is done"


def test_json(archive: FakeArchive) -> None:
    run("edge.yaml")
    archive.add("libc6", "2.0")
    (record,) = json.loads(run("edge.yaml", "--json").stdout)["locks"]
    assert record["path"] == "edge.lock"
    assert record["packages"] == {"system": 4}
    assert record["updated"] == [{"group": "system", "name": "libc6", "old": "1.0", "new": "2.0"}]
    assert (record["added"], record["removed"], record["ids"]) == ([], [], [])


def test_a_failure_writes_nothing(archive: FakeArchive) -> None:
    Path("edge.yaml").write_text(MANIFEST + "  - nothing\n")
    result = run("demo.yaml")
    assert result.exit_code == 3
    assert "edge.yaml:6:5: no such package: nothing" in result.stderr
    assert not list(Path().glob("*.lock"))


def test_neither_a_board_nor_a_manifest(archive: FakeArchive) -> None:
    Path("x.yaml").write_text("a: b\n")
    result = run("x.yaml")
    assert result.exit_code == 3
    assert "neither a board nor a manifest" in result.stderr


def test_locks_of_the_installed_package_are_not_written(archive: FakeArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Path("stock")
    (shipped / "manifests").mkdir(parents=True)
    Path("edge.yaml").rename(shipped / "manifests/edge.yaml")
    monkeypatch.setattr("erofs_edge.manifest.stock.SHIPPED", shipped.absolute())
    done = run("edge")
    assert done.exit_code == 2 and "edge belongs to the installed package\nhint: make a product" in done.stderr
    assert "erofs-edge new NAME --board edge" in done.stderr
    assert not list(shipped.rglob("*.lock"))
    assert run("edge", "-o", "edge.lock").exit_code == 0 and load_lock("edge.lock").name == "edge"
