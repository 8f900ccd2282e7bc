# SPDX-License-Identifier: Apache-2.0
"""Damaged records of a build or a channel give clear errors: endlessly nested JSON, values of the wrong type."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from erofs_edge.build import record, relock
from erofs_edge.build.contents import CONTENTS, read_contents
from erofs_edge.bundle.content import default_version
from erofs_edge.channel import publish
from erofs_edge.cli.main import cli
from erofs_edge.errors import ErofsEdgeError, FormatError, VerificationError
from erofs_edge.release.archive import INDEX, unpack_archive
from erofs_edge.report.facts import read_record
from erofs_edge.toolbox import prefix

DEEP = '{"a":' * 100_000


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (record.RELEASE, record.read_release),
        (CONTENTS, read_contents),
        ("since.json", lambda folder: read_record(folder / "since.json", dict)),
        (publish.STAGED, publish._staged),
    ],
    ids=["release", "contents", "since", "staged"],
)
def test_a_record_is_damaged(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    (tmp_path / name).write_text(DEEP)
    with pytest.raises(ErofsEdgeError) as caught:
        read(tmp_path)
    assert caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize("name", record.KINDS)
@pytest.mark.parametrize("value", [[], 1.5, None])
def test_a_value_of_another_kind(tmp_path: Path, name: str, value: object) -> None:
    group, _, key = name.rpartition(".")
    record.write_json(tmp_path / record.RELEASE, {"format": 1, **({group: {key: value}} if group else {key: value})})
    with pytest.raises(VerificationError, match=f"release.json is damaged: its '{name}' has the wrong type") as caught:
        record.read_release(tmp_path)
    assert caught.value.where == str(tmp_path / record.RELEASE)


@pytest.mark.parametrize("epoch", [10**30, 10**18])
def test_an_epoch_that_is_no_time(epoch: int) -> None:
    with pytest.raises(VerificationError, match="its 'epoch' is no time"):
        default_version({"epoch": epoch, "sign": {"rollback_index": 1}})


@pytest.mark.parametrize("text", [DEEP, "[1]", "7", "null"])
def test_what_is_only_remembered_is_forgotten(tmp_path: Path, text: str) -> None:
    (tmp_path / record.STATE).write_text(text)
    (tmp_path / relock.ORIGINS).write_text(text)
    (tmp_path / prefix.STAMP).write_text(text)
    assert not record.unchanged(tmp_path, "digest")
    assert relock.valid(tmp_path) is None
    assert prefix.installed(tmp_path) == {}


def test_an_archive_of_inputs(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "inputs.tar", "w") as tar:
        info = tarfile.TarInfo(INDEX)
        info.size = len(DEEP)
        tar.addfile(info, io.BytesIO(DEEP.encode()))
    with pytest.raises(FormatError, match="not an archive of inputs"):
        unpack_archive(tmp_path / "inputs.tar", tmp_path / "out")


def test_what_was_added_to_a_channel_is_no_list(tmp_path: Path) -> None:
    (tmp_path / publish.STAGED).write_text("7")
    with pytest.raises(ErofsEdgeError, match="not a list of what was added"):
        publish._staged(tmp_path)


@pytest.mark.parametrize("words", [["report"], ["sbom", "write", "-o", "x"], ["files", "why", "/x", "-o"]])
def test_commands_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / record.RELEASE).write_text(DEEP)
    (out / CONTENTS).write_text(DEEP)
    done = CliRunner().invoke(cli, [*words, "out"])
    assert done.exit_code in (1, 4) and "internal error" not in done.stderr and ".json: " in done.stderr
