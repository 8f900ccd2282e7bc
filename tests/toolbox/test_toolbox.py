# SPDX-License-Identifier: Apache-2.0
"""The private prefix: complete sets cost no network, missing tools say what to do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.errors import ToolError
from erofs_edge.sources.debian.mirror import Mirror
from erofs_edge.toolbox import fetch, prefix


def no_network() -> Mirror:
    raise AssertionError("the mirror was asked for")


def test_complete_set_needs_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(prefix.VARIABLE, str(tmp_path))
    (tmp_path / "bin").mkdir()
    for name in fetch.SETS["qemu"].programs:
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
    (tmp_path / prefix.STAMP).write_text(json.dumps({"qemu": {"qemu-system-arm": "1"}}))
    assert fetch.fetch_sets(["qemu"], no_network, print) == {"qemu": {"qemu-system-arm": "1"}}


def test_set_with_a_lost_wrapper_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(prefix.VARIABLE, str(tmp_path))
    (tmp_path / prefix.STAMP).write_text(json.dumps({"qemu": {"qemu-system-arm": "1"}}))
    with pytest.raises(AssertionError, match="the mirror was asked for"):
        fetch.fetch_sets(["qemu"], no_network, print)


@pytest.mark.parametrize("names", fetch.SETS, ids=str)
def test_missing_tool_names_the_command_that_fetches_it(
    names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(prefix.VARIABLE, str(tmp_path))
    command = "erofs-edge tools fetch" if names == "qemu" else "erofs-edge tools fetch --oracles"
    for tool in {name for made in fetch.SETS[names].programs.values() for name in made} - {"qemu-system-x86_64"}:
        with pytest.raises(ToolError) as caught:
            prefix.find(tool, host=False)
        assert caught.value.hint == command, tool


def test_programs_of_the_administrator_are_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(prefix.VARIABLE, str(tmp_path / "prefix"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(prefix, "SBIN", (str(tmp_path / "sbin"),))
    program = tmp_path / "sbin/mke2fs"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert prefix.find("mke2fs") == program
    with pytest.raises(ToolError):
        prefix.find("mke2fs", host=False)


def test_broken_record_counts_as_nothing(tmp_path: Path) -> None:
    (tmp_path / prefix.STAMP).write_text("{half")
    assert prefix.installed(tmp_path) == {}


def test_wrappers_run_the_generation_that_they_name(oracle: Callable[[str], str]) -> None:
    done = subprocess.run([oracle("dump.erofs-1.5"), "-V"], capture_output=True, text=True, check=False)
    assert "1.5" in done.stdout + done.stderr
    done = subprocess.run([oracle("mkfs.erofs-1.8"), "-V"], capture_output=True, text=True, check=True)
    assert " 1.8" in done.stdout
    done = subprocess.run([oracle("mkfs.erofs-1.9"), "-V"], capture_output=True, text=True, check=True)
    major, minor = done.stdout.split()[2].split(".")[:2]
    assert (int(major), int(minor)) >= (1, 9)
