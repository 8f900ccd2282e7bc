# SPDX-License-Identifier: Apache-2.0
"""Options of `fs build` that change the tree, attributes and times."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli
from erofs_edge.erofs.read import Image
from erofs_edge.tree import FileTree


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    root = tmp_path / "src"
    (root / "bin").mkdir(parents=True)
    (root / "bin/run").write_text("x")
    os.link(root / "bin/run", root / "bin/same")
    (root / "left.out").write_text("x")
    for path in (root / "bin/run", root / "left.out", root / "bin", root):
        os.utime(path, (5, 5))
    return root


def build(source: Path, *args: str) -> Result:
    return CliRunner().invoke(cli, ["fs", "build", str(source), "-o", str(source.parent / "i"), *args])


def built(source: Path, *args: str) -> FileTree:
    done = build(source, *args)
    assert done.exit_code == 0, done.output
    with Image(source.parent / "i") as image:
        return image.tree()


def test_all_at_once(source: Path) -> None:
    (source.parent / "fc").write_text("/system(/.*)? u:r:all\n/system/bin/run -- u:r:run\n")
    (source.parent / "fs").write_text(
        " 0 0 755\nsystem/bin 1 2 750\nsystem/bin/run 3 4 4755 capabilities=0x80\nsystem/bin/same 5 6 600\n"
    )
    tree = built(
        source, "--file-contexts", str(source.parent / "fc"), "--fs-config-file", str(source.parent / "fs"),
        "--mount-point", "/system", "--exclude-path", "left.out", "--hard-dereference", "--uid-offset", "100",
        "--xattr-prefix", "security.sel", "-E", "^xattr-name-filter",
    )  # fmt: skip
    found = {path: (oct(i.mode), i.uid, i.gid, i.xattrs.get(b"security.selinux")) for path, i in tree.walk()}
    assert found == {
        b"/": ("0o40755", 100, 0, b"u:r:all"),
        b"/bin": ("0o40750", 101, 2, b"u:r:all"),
        b"/bin/run": ("0o104755", 103, 4, b"u:r:run"),
        b"/bin/same": ("0o100600", 105, 6, b"u:r:all"),
    }
    run = tree.get("bin/run")
    assert run is not None
    assert run.xattrs[b"security.capability"][:8] == bytes.fromhex("0100000280000000")


@pytest.mark.parametrize(
    ("arguments", "time"),
    [
        ([], 5),
        (["-T", "9"], 9),
        (["-T", "9", "--mkfs-time"], 5),
        (["-T", "9", "--ignore-mtime"], 9),
    ],
)
def test_times(source: Path, arguments: list[str], time: int) -> None:
    assert {inode.mtime_ns for _, inode in built(source, *arguments).walk()} == {time * 10**9}
    with Image(source.parent / "i") as image:
        assert image.superblock.epoch == (int(arguments[1]) if arguments else 5)


def test_the_environment_gives_the_time(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "7")
    assert {inode.mtime_ns for _, inode in built(source, "--ignore-mtime").walk()} == {7 * 10**9}
    assert {inode.mtime_ns for _, inode in built(source, "--mkfs-time").walk()} == {5 * 10**9}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ignore-mtime"], "need a time"),
        (["-T", "1", "--ignore-mtime", "--mkfs-time"], "use one of them"),
        (["--exclude-regex", "("], "--exclude-regex ("),
        (["--xattr-prefix", "nothing."], "cannot be stored"),
        (["--xattr-prefix", "user.x", "--kernel", "6.1"], "--xattr-prefix needs 6.4"),
        (["--kernel", "new"], "not a Linux version"),
        (["-C", "64K", "-z", "lz4", "--kernel", "5.10"], "-C above the block size needs 5.13"),
        (["--uid-offset", "-4000000"], "out of range"),
    ],
)
def test_what_cannot_be(source: Path, arguments: list[str], says: str) -> None:
    done = build(source, *arguments)
    assert done.exit_code
    assert says in done.output.replace("\n", " ")
    assert not (source.parent / "i").exists()


@pytest.mark.parametrize("option", ["--file-contexts", "--fs-config-file"])
def test_a_bad_line_is_named(source: Path, option: str) -> None:
    (source.parent / "bad").write_text("# ok\nnonsense\n" if option == "--file-contexts" else "a 1\n")
    done = build(source, option, str(source.parent / "bad"))
    assert done.exit_code == 1
    assert f"bad:{2 if option == '--file-contexts' else 1}: " in done.output
    assert not (source.parent / "i").exists()


@pytest.mark.parametrize("through", ["src", "link"])
def test_an_image_holds_no_older_one_of_itself(source: Path, through: str) -> None:
    (source.parent / "link").symlink_to(source)
    image = source / "bin/out"
    arguments = ["fs", "build", str(source.parent / through), "-o", str(image), "-T", "0", "--chunksize", "4096"]
    arguments += ["--blobdev", str(source / "data"), "--json"]
    first, second = (CliRunner().invoke(cli, arguments) for _ in range(2))
    assert first.exit_code == second.exit_code == 0, second.output
    assert not json.loads(first.stdout)["warnings"]
    assert [text.split(" is inside ")[0] for text in json.loads(second.stdout)["warnings"]] == [
        str(image), str(source / "data"),
    ]  # fmt: skip
    assert json.loads(first.stdout)["uuid"] == json.loads(second.stdout)["uuid"]
    with Image(image) as opened:
        assert [path for path, _ in opened.tree().walk()] == [
            b"/", b"/bin", b"/bin/run", b"/bin/same", b"/left.out",
        ]  # fmt: skip


def test_a_file_of_the_tree_is_not_replaced(source: Path) -> None:
    done = CliRunner().invoke(cli, ["fs", "build", str(source), "-o", str(source / "bin/run")])
    assert done.exit_code == 2
    assert "that is no EROFS image" in done.output
    assert (source / "bin/run").read_text() == "x"
