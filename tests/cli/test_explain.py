# SPDX-License-Identifier: Apache-2.0
"""`explain` and `schema`: the resolved form is complete, correct, and loads as the same value."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli
from erofs_edge.manifest.load import load_any
from erofs_edge.manifest.schema import schema

BOARD = """\
board: demo
disk:
  partitions:
    boot: {size: 64M, slots: [a, b], content: fit}
    system: {size: 512M, slots: [a, b], content: s.yaml}
    misc: {size: 1M, content: slot-state}
    data: {size: rest, filesystem: ext4}
boot:
  u_boot: {package: u-boot-qemu, path: /u-boot.bin}
  cmdline: ["a=b c", "yes", "12:30", "0x10", "null", "", "- x", "# y", "é\\u2028😀\\x85"]
"""

SYSTEM = """\
system: s
packages: [systemd]
overlay: [{from: files, file_mode: 0600}]
users: {root: {gecos: "0123"}}
groups: {i2c: , spi: 7}
entries:
  - {path: /etc/motd, text: "two\\nlines: here\\t# x\\n", xattrs: {user.a: "1"}}
  - {path: /x, type: symlink, target: "true"}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "demo.yaml").write_text(BOARD)
    (tmp_path / "s.yaml").write_text(SYSTEM)
    (tmp_path / "p.yaml").write_text("extends: demo.yaml\nboard: p\nboot: {cmdline+: [quiet]}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args))


@pytest.mark.parametrize("name", ["demo.yaml", "s.yaml", "p.yaml"])
def test_what_is_explained_loads_as_the_same_value(name: str, tmp_path: Path) -> None:
    result = run("explain", name)
    assert result.exit_code == 0
    (tmp_path / "sub").mkdir()
    Path("sub/again.yaml").write_text(result.stdout)
    assert load_any("sub/again.yaml").value == load_any(name).value


@pytest.mark.parametrize("name", ["demo.yaml", "s.yaml", "p.yaml"])
def test_every_value_has_an_origin(name: str) -> None:
    head, *lines = run("explain", name).stdout.splitlines()
    assert head == f"# {name}, digest {load_any(name).digest}"
    for line in lines:
        origin = line.rsplit("  # ", 1)[-1]
        assert origin == "default" or origin.split(":")[0] in (name, "demo.yaml") or line == "# extends demo.yaml", line


def test_origins_of_a_file_that_extends_another() -> None:
    lines = [" ".join(line.split()) for line in run("explain", "p.yaml").stdout.splitlines()]
    assert "# extends demo.yaml" in lines
    assert "board: p # p.yaml:2:1" in lines
    assert "cmdline: # p.yaml:3:8" in lines
    assert "- quiet # p.yaml:3:19" in lines
    assert "size: 512M # demo.yaml:5:14" in lines
    assert "kernel: linux-image-arm64 # default" in lines
    assert not [line for line in lines if line.startswith("extends")]


def test_the_record_holds_value_and_origins() -> None:
    record = json.loads(run("explain", "s.yaml", "--json").stdout)
    loaded = load_any("s.yaml")
    assert (record["kind"], record["path"], record["files"]) == ("manifest", "s.yaml", ["s.yaml"])
    assert record["digest"] == loaded.digest
    assert record["value"] == msgspec.to_builtins(loaded.value)
    assert record["origins"]["packages.0"] == "s.yaml:2:12"
    assert record["origins"]["overlay.0.from"] == "s.yaml:3:12"
    assert record["origins"]["erofs.pcluster"] == "default"
    assert record["origins"]["users.root.gecos"] == "s.yaml:4:16"


def test_a_wrong_file_is_an_error_in_both_forms() -> None:
    Path("demo.yaml").write_text(BOARD.replace("partitions", "partions"))
    result = run("explain", "demo.yaml", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["error"]["where"] == "demo.yaml:3:3"
    assert result.stderr.splitlines() == [
        'erofs-edge: error: demo.yaml:3:3: unknown key "partions"',
        'hint: did you mean "partitions"?',
    ]


@pytest.mark.parametrize("kind", ["board", "manifest", "lock"])
def test_schemas_are_printed(kind: str) -> None:
    assert json.loads(run("schema", kind).stdout) == schema(kind)


def test_addresses_are_hexadecimal_and_can_be_read_again(tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli, ["explain", "qemu-aarch64"])
    line = next(line for line in shown.output.splitlines() if "load_address:" in line)
    assert line.split("#")[0].strip() == "load_address: 0x50000000"
    board = tmp_path / "mine.yaml"
    board.write_text("board: mine\nextends: qemu-aarch64\nboot: {load_address: 0x60000000}\n")
    again = CliRunner().invoke(cli, ["explain", str(board), "--json"])
    assert json.loads(again.output)["value"]["boot"]["load_address"] == 0x60000000
