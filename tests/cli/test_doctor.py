# SPDX-License-Identifier: Apache-2.0
"""`doctor`: finds what is missing, names the one command that fixes it, and changes nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge import doctor
from erofs_edge.cli.main import cli
from erofs_edge.errors import MirrorError, ToolError
from erofs_edge.toolbox.fetch import ORACLE_SETS

DISK = shutil.disk_usage("/")


@pytest.fixture(autouse=True)
def healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has everything, with its folders below tmp_path."""
    monkeypatch.chdir(tmp_path)
    for variable, name in (("CACHE", "cache"), ("KEYS", "keys"), ("PREFIX", "prefix")):
        monkeypatch.setenv(f"EROFS_EDGE_{variable}", str(tmp_path / name))
    monkeypatch.setenv("EROFS_EDGE_MIRROR", "http://mirror.example/debian")
    monkeypatch.setattr("erofs_edge.sources.debian.mirror._keyring", lambda root, signed_by: Path("/key.gpg"))
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("apt-get", "dpkg-deb", "gpgv"):
        (tools / name).write_text("#!/bin/sh\n")
        (tools / name).chmod(0o755)
    qemu = tools / "qemu"
    qemu.write_text("#!/bin/sh\necho QEMU emulator version 10.0.1\n")
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/bin")
    monkeypatch.setenv("EROFS_EDGE_QEMU", str(qemu))
    (tmp_path / "prefix").mkdir()
    sets = {name: {"x": "1"} for name in ORACLE_SETS}
    (tmp_path / "prefix/tools.json").write_text(json.dumps(sets))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DISK._replace(free=doctor.FREE_BYTES))
    return tmp_path


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *args])


def finding(name: str) -> doctor.Finding:
    return next(f for f in doctor.examine() if f.name == name)


def test_a_healthy_machine_can_do_everything_and_is_not_changed(healthy: Path) -> None:
    before = sorted(healthy.rglob("*"))
    result = run()
    assert result.exit_code == 0, result.output
    assert "MISSING" not in result.stdout
    assert result.stdout.endswith("build boards: yes\nupdate locks: yes\nboot in QEMU: yes\nrun the tests: yes\n")
    assert sorted(healthy.rglob("*")) == before


def test_the_record() -> None:
    record = json.loads(run("--json").stdout)
    assert record["ready"] == {"build": True, "lock": True, "boot": True, "test": True}
    assert {"name", "purpose", "ok", "seen", "mend"} == set(record["findings"][0])


def refuse(error: Exception) -> object:
    def raiser(*args: object, **kwargs: object) -> None:
        raise error

    return raiser


def test_no_mirror_stops_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    error = MirrorError("no Debian mirror is configured on this host", hint="set EROFS_EDGE_MIRROR")
    monkeypatch.setattr("erofs_edge.sources.debian.mirror.host_mirror", refuse(error))
    result = run()
    assert result.exit_code == 1
    assert "build boards: not yet\n  set EROFS_EDGE_MIRROR\n" in result.stdout
    ready = json.loads(run("--json").stdout)["ready"]
    assert ready == {"build": False, "lock": False, "boot": True, "test": False}, "what was built can still be booted"


def test_a_codec_with_other_bytes_stops_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ToolError("the lz4 wheel gives other bytes", hint="pip install lz4==4.4.5")
    monkeypatch.setattr("erofs_edge.codec.registry.open_compressor", refuse(error))
    assert finding("codec").mend == "pip install lz4==4.4.5"
    assert run().exit_code == 1


def test_too_little_space_says_how_much_is_lacking(monkeypatch: pytest.MonkeyPatch, healthy: Path) -> None:
    free = DISK._replace(free=doctor.FREE_BYTES - (100 << 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    assert finding("space here").mend == f"free 101 MiB on the file system of {healthy}"
    assert run().exit_code == 1


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, healthy: Path) -> None:
    (healthy / "file").touch()
    monkeypatch.setenv("EROFS_EDGE_CACHE", str(healthy / "file"))
    assert finding("cache").mend == "export EROFS_EDGE_CACHE=a-folder-of-yours"
    monkeypatch.setenv("EROFS_EDGE_CACHE", str(healthy / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not finding("cache").ok and not finding("development keys").ok


def test_what_the_cache_holds_is_counted(healthy: Path) -> None:
    (healthy / "cache/blobs").mkdir(parents=True)
    (healthy / "cache/blobs/a").write_bytes(bytes(3 << 20))
    assert finding("cached").seen == "1 files, 3 MiB"


def test_a_missing_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MODULES", ("click", "no_such_module_here"))
    assert finding("Python packages") == doctor.Finding(
        "Python packages", "build", False, "missing: no_such_module_here", "tools/bootstrap .venv"
    )


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PYTHON", (9, 9))
    assert "9.9 or newer is needed" in finding("Python").seen


@pytest.mark.parametrize(
    ("program", "purpose", "name"),
    [("apt-get", "lock", "apt-get"), ("dpkg-deb", "lock", "dpkg-deb"), ("gpgv", "lock", "signature check of apt")],
)
def test_missing_programs_stop_only_what_needs_them(
    monkeypatch: pytest.MonkeyPatch, healthy: Path, program: str, purpose: str, name: str
) -> None:
    (healthy / "bin" / program).unlink()
    monkeypatch.setenv("PATH", str(healthy / "bin"))
    found = finding(name)
    assert (found.ok, found.purpose) == (False, purpose)
    assert found.mend
    result = run()
    assert result.exit_code == 0
    assert "build boards: yes\nupdate locks: not yet\n" in result.stdout


def test_no_qemu_and_an_old_one(monkeypatch: pytest.MonkeyPatch, healthy: Path) -> None:
    (healthy / "bin/qemu").write_text("#!/bin/sh\necho QEMU emulator version 5.2.0\n")
    assert "too old" in finding("QEMU").seen
    assert "erofs-edge tools fetch" in (finding("QEMU").mend or "")
    monkeypatch.delenv("EROFS_EDGE_QEMU")
    monkeypatch.setenv("PATH", str(healthy / "bin"))
    assert finding("QEMU").mend == "erofs-edge tools fetch"
    result = run()
    assert (result.exit_code, "boot in QEMU: not yet\n  erofs-edge tools fetch\n" in result.stdout) == (0, True)


def test_missing_reference_tools(healthy: Path) -> None:
    (healthy / "prefix/tools.json").unlink()
    assert finding("reference tools").mend == "erofs-edge tools fetch --oracles"
    assert "run the tests: not yet\n  erofs-edge tools fetch --oracles\n" in run().stdout
