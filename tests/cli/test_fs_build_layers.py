# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge fs build` with extra devices: --base, --blobdev, --tar-index."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli

NEW_SIZE = sum(len(b"line %d of the new text\n" % i) for i in range(9000))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EROFS_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("base", "vendor"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same").write_bytes(b"".join(b"line %d of the text\n" % i for i in range(9000)))
    (tmp_path / "vendor/new").write_bytes(b"".join(b"line %d of the new text\n" % i for i in range(9000)))
    assert (tmp_path / "vendor/new").stat().st_size == NEW_SIZE
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["fs", *words])


def test_base_and_blob(folder: Path) -> None:
    assert run("build", "base", "-o", "base.img", "-z", "lz4").exit_code == 0
    done = run("build", "vendor", "-o", "vendor.img", "-z", "zstd", "--base", "base.img", "--blobdev", "b", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["devices"] == ["b", "base.img"]
    assert record["lent"] == 1
    assert record["lent_bytes"] == (folder / "base/same").stat().st_size
    assert record["device_blocks"] * 4096 == Path("b").stat().st_size
    given = ["--device", "b", "--device", "base.img"]
    assert run("check", "vendor.img", *given).exit_code == 0
    assert run("extract", "vendor.img", "out", *given).exit_code == 0
    assert subprocess.run(["diff", "-r", "vendor", "out"], check=False).returncode == 0
    wrong = run("ls", "vendor.img", "--device", "base.img", "--device", "b")
    assert "device 2 is the wrong one" in wrong.output
    text = run("build", "vendor", "-o", "vendor.img", "--base", "base.img").stdout
    assert "shared   1 files" in text and "mount    -o device=base.img" in text


def test_tar_index(folder: Path) -> None:
    subprocess.run(["tar", "-cf", "v.tar", "-C", "vendor", "."], check=True)
    done = run("build", "--tar-index", "v.tar", "-o", "v.img", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert (record["block_size"], record["data_blocks"], record["devices"]) == (512, 0, ["v.tar"])
    assert run("cat", "v.img", "/new", "--device", "v.tar").stdout_bytes == (folder / "vendor/new").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("build -o i", "what to build from?"),
        ("build vendor --tar-index base.img -o i", "what to build from?"),
        ("build vendor -o i --base missing", "does not exist"),
        ("build vendor -o i --base-device base.img", "devices of bases need a base"),
        ("build vendor -o i --base base.img -b 512", "the base has blocks of 4096 bytes"),
        ("build vendor -o i --base base.img --kernel 5.15", "--blobdev needs 5.16"),
        ("build --tar-index base.img -o i", "not a tar archive"),
        ("build --tar-index base.img -o i -b 4096", "multiples of 512"),
        ("build vendor -o base.img --base base.img", "the same file"),
        ("build vendor -o vendor/../base.img --base base.img", "the same file"),
        ("build vendor -o i --base base.img --blobdev base.img", "would replace an extra device"),
        ("build vendor -o i --base base.img --blobdev vendor/../base.img", "would replace an extra device"),
        ("build vendor -o i --blobdev vendor/new", "that is not the extra device of i"),
    ],
)
def test_errors(folder: Path, words: str, message: str) -> None:
    assert run("build", "base", "-o", "base.img").exit_code == 0
    before = Path("base.img").read_bytes()
    done = run(*words.split())
    assert done.exit_code != 0
    assert message in done.output or message in str(done.exception)
    assert not Path("i").exists()
    assert Path("base.img").read_bytes() == before
    assert Path("vendor/new").stat().st_size == NEW_SIZE


def test_an_archive_is_not_replaced_by_the_blob(folder: Path) -> None:
    subprocess.run(["tar", "-cf", "a.tar", "-C", "vendor", "."], check=True)
    before = Path("a.tar").read_bytes()
    Path("link").symlink_to("a.tar")
    for blob in ("a.tar", "link"):
        done = run("build", "--tar-index", "a.tar", "--blobdev", blob, "-o", "i")
        assert done.exit_code == 2 and "would replace an extra device" in done.output
        assert Path("a.tar").read_bytes() == before and not Path("i").exists()


def test_a_base_that_is_of_no_use_is_a_warning(folder: Path) -> None:
    Path("base/same").write_bytes(b"something else" * 4000)
    assert run("build", "base", "-o", "base.img").exit_code == 0
    done = run("build", "vendor", "-o", "i", "--base", "base.img", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["devices"] == []
    assert json.loads(done.stdout)["warnings"] == [
        "--base: base.img has no file of vendor in a form that this image can use: it is not a device"
    ]
    Path("base/same").write_bytes(Path("vendor/same").read_bytes())
    assert run("build", "base", "-o", "base.img").exit_code == 0
    assert json.loads(run("build", "vendor", "-o", "i", "--base", "base.img", "--json").stdout)["warnings"] == []
