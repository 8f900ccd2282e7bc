# SPDX-License-Identifier: Apache-2.0
"""The `fs` commands: their output and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli
from erofs_edge.erofs.ondisk import SUPER_OFFSET

Oracle = Callable[[str], str]
MTIME_NS = 1_000_000_000_123_456_789


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["fs", *map(str, arguments)])


def good(*arguments: str | Path) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def record(*arguments: str | Path) -> Any:
    return json.loads(good(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fs") / "source"
    (root / "d/e").mkdir(parents=True)
    (root / "d/e").chmod(0o755)
    (root / "d/f").write_bytes(b"some text, again and again\n" * 3000)
    (root / "d/g").hardlink_to(root / "d/f")
    (root / "link").symlink_to("d/f")
    (root / "esc\x1b[31m\nname").write_bytes(b"x")
    with (root / "sparse").open("wb") as handle:
        handle.seek(50_000)
        handle.write(b"end")
    os.setxattr(root / "d/f", "user.k", b"v1")
    (root / "d/f").chmod(0o640)
    os.utime(root / "d/f", ns=(0, MTIME_NS))
    return root


@pytest.fixture(scope="module")
def image(source: Path, tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Path:
    path = tmp_path_factory.mktemp("images") / "system.img"
    argv = [oracle("mkfs.erofs-1.9"), "-zlz4", "-C16384", path, source]
    subprocess.run(argv, check=True, capture_output=True)
    return path


def test_ls(image: Path) -> None:
    assert good("ls", image).stdout.splitlines() == ["d", "esc\\x1b[31m\\nname", "link", "sparse"]
    assert good("ls", image, "d").stdout.split() == ["e", "f", "g"]
    assert good("ls", image, "/d/f").stdout.split() == ["/d/f"]
    assert good("ls", image, "link").stdout.split() == ["link"]
    assert good("ls", "-R", image, "d").stdout.split() == ["/d", "/d/e", "/d/f", "/d/g"]
    assert good("ls", "-R", image).stdout.splitlines()[:3] == ["/", "/d", "/d/e"]


def test_ls_long(image: Path, source: Path) -> None:
    lines = {line.split()[-1]: line.split() for line in good("ls", "-l", image, "d").stdout.splitlines()}
    owner = "{0.st_uid}:{0.st_gid}".format((source / "d/f").stat())
    assert lines["f"][:5] == ["-rw-r-----", "2", owner, "81000", "2001-09-09T01:46:40.123456789Z"]
    assert lines["e"][0] == "drwxr-xr-x"
    assert good("ls", "-l", image, "link").stdout.rstrip().endswith("link -> d/f")


def test_ls_json(image: Path) -> None:
    entries = {entry["path"]: entry for entry in record("ls", "-R", image)}
    assert entries["/d/f"]["nid"] == entries["/d/g"]["nid"]
    assert entries["/d/f"]["mtime_ns"] == MTIME_NS
    assert (entries["/d/f"]["type"], entries["/d/f"]["mode"]) == ("regular file", "0640")
    assert entries["/link"]["target"] == "d/f"


@pytest.mark.parametrize("name", ["d/f", "link", "sparse"])
def test_cat(name: str, image: Path, source: Path) -> None:
    assert good("cat", image, name).stdout_bytes == (source / name).read_bytes()


def test_stat(image: Path) -> None:
    text = good("stat", image, "/d/f").stdout
    assert "user.k=v1" in text
    assert "2001-09-09T01:46:40.123456789Z" in text
    fields = record("stat", image, "/d/f")
    assert (fields["type"], fields["size"], fields["links"]) == ("regular file", 81000, 2)
    assert fields["xattrs"] == {"user.k": b"v1".hex()}
    assert record("stat", image, "link")["target"] == "d/f"


def test_extract(image: Path, source: Path, tmp_path: Path) -> None:
    assert "3 files, 3 directories, 1 symlinks, 1 hard links" in good("extract", image, tmp_path / "out").stdout
    assert (tmp_path / "out/d/f").read_bytes() == (source / "d/f").read_bytes()
    assert record("extract", image, tmp_path / "part", "--path", "d")["files"] == 1
    again = run("extract", image, tmp_path / "out")
    assert (again.exit_code, "not empty" in again.stderr, "hint:" in again.stderr) == (1, True, True)
    limited = run("extract", image, tmp_path / "limited", "--max-bytes", "1000")
    assert (limited.exit_code, (tmp_path / "limited").exists()) == (1, False)


def test_check(image: Path, tmp_path: Path) -> None:
    assert "clean: 7 inodes, 3 files, 3 directories" in good("check", image).stdout
    assert good("check", image, "--max-bytes", str(1 << 20))
    limited = run("check", image, "--max-bytes", "1000")
    assert (limited.exit_code, "far more data" in limited.stdout, "--max-bytes" in limited.stdout) == (1, True, True)
    broken = tmp_path / "broken"
    data = bytearray(image.read_bytes())
    data[SUPER_OFFSET + 48] ^= 1
    broken.write_bytes(data)
    result = run("check", broken, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["ok"], found["findings"][0]["where"]) == (False, "offset 0x404")
    assert "1 error:" in run("check", broken).stdout
    assert run("ls", broken).exit_code == 1
    assert record("dump", broken)["checksum"] == "wrong"


def test_dump(image: Path) -> None:
    fields = record("dump", image)
    assert (fields["block_size"], fields["algorithms"]) == (4096, ["lz4"])
    assert "Root nid:" in good("dump", image).stdout
    fields = record("dump", image, "--path", "d/f", "-e")
    assert sum(extent["length"] for extent in fields["extents"]) == 81000
    assert record("dump", image, "--nid", fields["nid"])["size"] == 81000
    assert record("dump", image, "-S")["statistics"]["types"]["regular file"] == 3
    assert "encoded" in good("dump", image, "--path", "d/f", "-e", "-S").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ls", "IMG", "nothing"], 1, "no such file in the image"),
        (["cat", "IMG", "d"], 1, "not a regular file"),
        (["stat", "IMG", "d/f/x"], 1, "not a directory inside the image"),
        (["extract", "IMG", "DEST", "--path", "d/f"], 1, "not a directory inside the image"),
        (["dump", "IMG", "--nid", "99999999"], 1, "lies outside the image"),
        (["dump", "IMG", "--nid", "1", "--path", "d"], 2, "name one inode each"),
        (["dump", "IMG", "-e"], 2, "needs an inode"),
        (["ls", "OTHER"], 1, "not an EROFS image"),
        (["check", "MISSING"], 2, "does not exist"),
    ],
)
def test_mistakes_get_one_clear_error(
    arguments: list[str], code: int, message: str, image: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").write_bytes(bytes(4096))
    places = {"IMG": image, "OTHER": tmp_path / "other", "DEST": tmp_path / "dest", "MISSING": tmp_path / "none"}
    result = run(*(places.get(argument, argument) for argument in arguments))
    assert (result.exit_code, message in result.output) == (code, True), result.output
    assert "Traceback" not in result.output


def test_names_that_are_not_text_survive_a_pipe(source: Path, tmp_path: Path, oracle: Oracle) -> None:
    (tmp_path / "source").mkdir()
    with open(os.fsencode(tmp_path) + b"/source/\xff\xfe", "wb") as handle:
        handle.write(b"content")
    image = tmp_path / "image"
    subprocess.run([oracle("mkfs.erofs-1.9"), image, tmp_path / "source"], check=True, capture_output=True)
    argv = [sys.executable, "-m", "erofs_edge.cli.main", "fs"]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    listed = subprocess.run([*argv, "ls", image], check=True, capture_output=True, env=environment)
    assert listed.stdout == b"\xff\xfe\n"
    read = subprocess.run([*argv, "cat", image, listed.stdout[:-1]], check=True, capture_output=True, env=environment)
    assert read.stdout == b"content"


def test_reading_does_not_load_what_building_needs() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from erofs_edge.cli.main import cli\n"
        "result = CliRunner().invoke(cli, ['fs', '--help']); assert 'build' in result.output, result.output\n"
        "print([name for name in sys.modules if name.startswith('erofs_edge.') and 'erofs_edge.cli' not in name])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert loaded.stdout == "['erofs_edge.errors', 'erofs_edge.names']\n"
