# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge fs build`: mkfs.erofs's option letters, clear errors, the same bytes as mkfs.erofs where nothing
differs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli
from erofs_edge.erofs.read import Image

UUID = "00112233-4455-6677-8899-aabbccddeeff"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EROFS_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    root = tmp_path / "src"
    (root / "d").mkdir(parents=True)
    (root / "d/text").write_bytes(b"".join(b"line %d of the text\n" % i for i in range(5000)))
    (root / "link").symlink_to("d/text")
    for path in (root / "d/text", root / "d", root):
        os.utime(path, ns=(5, 1_600_000_000_123_456_789))
    return root


def build(source: Path, *args: str) -> Result:
    return CliRunner().invoke(cli, ["fs", "build", str(source), "-o", str(source.parent / "i"), *args])


def test_the_usual_line(source: Path) -> None:
    done = build(source, "-z", "lz4hc,9", "-C", "64K", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["size"] == (source.parent / "i").stat().st_size
    assert record["kinds"] == {"directories": 2, "files": 1, "symlinks": 1}
    assert (record["compressed"], record["cache_misses"]) == (1, 1)
    with Image(source.parent / "i") as image:
        node = image.tree().get("d/text")
        assert node is not None
        assert node.read() == (source / "d/text").read_bytes()
        assert node.mtime_ns == 1_600_000_000_123_456_789
        assert node.uid == os.getuid()
    assert json.loads(build(source, "-z", "lz4hc,9", "-C", "64K", "--json").stdout)["cache_hits"] == 1
    again = json.loads(build(source, "-z", "lz4hc,9", "-C", "64K", "--json", "--no-cache").stdout)
    assert (again["cache_hits"], again["cache_misses"]) == (0, 0)


def test_a_file_that_somebody_writes_to(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file changes after the tree was read: its size stays, its time does not."""
    (source / "database").write_bytes(bytes(200_000))

    def meanwhile(*_: object) -> list[str]:
        (source / "database").write_bytes(b"x" * 200_000)
        return []

    monkeypatch.setattr("erofs_edge.cli.fs_build.without_outputs", meanwhile)
    done = build(source, "-z", "lz4")
    assert done.exit_code == 1
    assert "database changed while the image was being written" in done.stderr
    assert not (source.parent / "i").exists()


@pytest.mark.oracle
@pytest.mark.parametrize("arguments", [[], ["-z", "lz4"], ["-z", "lz4hc,9", "-C", "16384"], ["-E", "noinline_data"]])
def test_the_same_bytes_as_mkfs(oracle: Callable[[str], str], source: Path, arguments: list[str]) -> None:
    """A tree so small that all inodes fit the first block: there is only one way to lay it out."""
    common = ["-T", "77", "-U", UUID, "--all-root", "-b4096"]
    assert build(source, *arguments, *common).exit_code == 0
    theirs = source.parent / "theirs"
    joined = [a + b for a, b in zip(arguments[::2], arguments[1::2], strict=True)]
    argv = [oracle("mkfs.erofs-1.9"), *joined, *common, "-x-1", "--workers=2", "--quiet", str(theirs), str(source)]
    subprocess.run(argv, check=True)
    assert (source.parent / "i").read_bytes() == theirs.read_bytes()


def test_text_tells_what_was_made(source: Path) -> None:
    done = build(source, "-z", "lz4", "-L", "edge", "-U", UUID)
    assert f"uuid    {UUID}" in done.stdout
    assert "inodes  4" in done.stdout
    stats = build(source, "-z", "lz4", "-L", "edge", "-U", "clear", "--stats").stdout
    assert "edge" in stats and "2 directories, 1 files, 1 symlinks" in stats
    assert "00000000-0000-0000-0000-000000000000" in stats


def test_times(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def times() -> set[int]:
        with Image(source.parent / "i") as image:
            return {node.mtime_ns for _, node in image.tree().walk() if not node.is_symlink}

    build(source, "-T", "5")
    assert times() == {5_000_000_000}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1500000000")
    build(source)
    assert times() == {1_500_000_000_000_000_000}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    build(source)
    assert times() == {1_600_000_000_123_456_789}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "now")
    assert build(source).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-E 48bit --kernel 6.12", "-E 48bit needs 6.15"),
        ("-E nonsense", "-E nonsense: unknown option"),
        ("-E nosbcrc,force-inode-compact,force-inode-extended", "contradicts"),
        ("-z none -E fragments", "fragments works on compressed files only"),
        ("-z lz4 -E fragments=5000", "not a multiple of the block size"),
        ("-z lz4 -E fragments=16K,all-fragments", "contradicts"),
        ("-z lz4 -E dedupe=1", "-E dedupe takes no value"),
        ("-z lz4 -E fragdedupe=full", "-E fragdedupe: unknown option"),
        ("-z lz4 -E fragments=8K,fragments=16K", "-E fragments is given two sizes"),
        ("-b 0", "block size 0 is not a power of two"),
        ("--workers=4", "only mkfs.erofs has --workers: use --jobs"),
        ("-d0", "only mkfs.erofs has -d: "),
        ("--tar=f", "only mkfs.erofs has --tar: use --tar-index"),
        ("-z lz4 -E ztailpacking --kernel 5.16", "-E ztailpacking needs 5.17"),
        ("-z lz4hc,x", "'x' is not a number"),
        ("-z lz4hc,13", "no level 13"),
        ("-z xz", "unknown compression 'xz'"),
        ("-z none,3", "-z none has no levels"),
        ("-z lz4 -C 64Q", "-C 64Q: not a size in bytes"),
        ("-z lz4 -C 6000", "not a multiple of the block size"),
        ("-b 4000", "not a power of two"),
        ("-U 0011", "-U 0011: not a UUID"),
        ("-L a-name-that-is-too-long", "longer than 15 bytes"),
        ("-T -5", "-5"),
    ],
)
def test_errors(source: Path, arguments: str, message: str) -> None:
    done = build(source, *arguments.split())
    assert done.exit_code == 2, done.output
    assert message in done.output or message in str(done.exception)
    assert not (source.parent / "i").exists()


def test_extended_options(source: Path) -> None:
    assert build(source, "-T", "1").exit_code == 0
    compact = (source.parent / "i").read_bytes()
    assert build(source, "-T", "1", "-E", "force-inode-extended,nosbcrc").exit_code == 0
    extended = (source.parent / "i").read_bytes()
    assert (compact[1032] & 1, extended[1032] & 1) == (1, 0)
    root = 1152  # the root inode stands behind the superblock; bit 0 of its first byte is the form
    assert (compact[root] & 1, extended[root] & 1) == (0, 1)


def test_packing(source: Path) -> None:
    (source / "other").write_bytes(b"more text " * 9000)
    (source / "equal").write_bytes(b"more text " * 9000)
    done = build(source, "-z", "lz4", "-E", "all-fragments=16K,dedupe,ztailpacking", "--json")
    told = json.loads(done.stdout)
    assert told["fragments"] == 3
    assert "fragments" in told["features"]
    with Image(source.parent / "i") as image:
        assert image.packed.size == told["packed"]
        assert image.superblock.raw.feature_incompat & 0x22 == 0x22  # packed, in pclusters of more than a block
    stats = build(source, "-z", "lz4", "-E", "dedupe,fragments", "--stats").stdout
    assert "3 files, " in stats


def test_a_cache_that_cannot_be_used_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source.parent / "file").write_bytes(b"")
    monkeypatch.setenv("EROFS_EDGE_CACHE", str(source.parent / "file"))
    done = build(source, "-z", "lz4")
    assert done.exit_code == 0
    assert "compression cache could not be used" in done.stderr


def test_a_baseline_keeps_blocks_and_says_so(source: Path) -> None:
    old = source.parent / "i"
    args = ("-z", "lz4hc,9", "-C", "64K", "-T", "0")
    assert build(source, *args).exit_code == 0
    before = old.read_bytes()
    done = build(source, *args, "--baseline", str(old))
    assert done.exit_code == 0, done.output
    assert "0 blocks" in done.stdout and "free" in done.stdout
    assert old.read_bytes() == before
    (source / "new").write_bytes(b"new")
    done = build(source, *args, "--baseline", str(old), "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["kept_blocks"] == said["data_blocks"]
    assert said["changed_blocks"] == 1
    assert (said["free_blocks"], said["placed_anew"]) == (0, None)
    done = build(source, *args, "--compact")
    assert done.exit_code == 2
    assert "compact needs a baseline" in done.stderr
    done = build(source, *args, "--baseline", str(source / "d/text"))
    assert done.exit_code == 1
    assert "cannot be used: not an EROFS image" in done.stderr


def test_a_profile_of_another_version_is_a_warning(source: Path) -> None:
    profile = source.parent / "profile"
    profile.write_text("/link 0 100\n/gone\n/gone/too\n")
    done = build(source, "-z", "lz4", "--profile", str(profile), "--json")
    assert done.exit_code == 0, done.output
    assert "2 of the profile's paths do not exist" in done.stderr
    said = json.loads(done.stdout)
    assert said["unmatched"] == 2 and said["hot_blocks"] > 0
    profile.write_text("what is this\n")
    done = build(source, "--profile", str(profile))
    assert done.exit_code == 1
    assert f"{profile}:1: not a line of a profile" in done.stderr


def test_what_matches_nothing_is_a_warning(source: Path) -> None:
    profile, hints = source.parent / "profile", source.parent / "hints"
    profile.write_text("".join(f"/gone/{i}\n" for i in range(4)) + "/d/text\n")
    hints.write_text("0 ^d/text$\n65536 text\n4096 \\.so$\n")
    args = ["--profile", str(profile), "--compress-hints", str(hints), "--exclude-path", "d/none"]
    args += ["--exclude-path", "link", "--exclude-regex", "^none", "--exclude-regex", "k$"]
    done = build(source, "-z", "lz4", *args, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)["warnings"]
    assert said == [
        f"--exclude-path d/none matches nothing in {source}",
        f"--exclude-regex ^none matches nothing in {source}",
        f"--compress-hints: text matches no file of {source}",
        f"--compress-hints: \\.so$ matches no file of {source}",
        f"--profile: 4 of the profile's paths do not exist in {source}: /gone/0, /gone/1, /gone/2, …",
    ]
    assert done.stderr.splitlines() == [f"warning: {text}" for text in said]
    assert json.loads(build(source, "--json").stdout)["warnings"] == []


def test_options_that_contradict_each_other_are_both_named(tmp_path: Path) -> None:
    pairs = (
        ("fragments", "all-fragments"),
        ("inline_data", "noinline_data"),
        ("xattr-name-filter", "^xattr-name-filter"),
    )
    for first, last in pairs:
        options = f"{first},nosbcrc,{last}"
        result = CliRunner().invoke(cli, ["fs", "build", str(tmp_path), "-o", str(tmp_path / "i"), "-E", options])
        assert result.exit_code == 2 and f"-E {last} contradicts -E {first}\n" in result.stderr, result.output


def test_options_that_change_nothing_are_a_warning(source: Path) -> None:
    done = build(source, "-C", "64K", "--mount-point", "/system", "--exclude-path", "/", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["warnings"] == [
        "-C has no effect without -z: nothing is compressed",
        "--mount-point has no effect without --file-contexts or --fs-config-file",
        f"--exclude-path / matches nothing in {source}",
    ]
    for owner in ("--force-uid", "--force-gid"):
        done = build(source, "--all-root", owner, "5")
        assert done.exit_code == 2 and "--all-root contradicts" in done.stderr
        assert build(source, "--all-root", owner, "0").exit_code == 0


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf"])
def test_time_budgets_that_are_none(budget: str, source: Path) -> None:
    done = build(source, "-z", "auto", "--time-budget", budget)
    assert done.exit_code == 2 and f"a number of seconds above 0, not {budget}" in done.stderr
