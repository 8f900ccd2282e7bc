# SPDX-License-Identifier: Apache-2.0
"""Images on other machines: `verity verify` and `verify` of exports say what they say of files, and read each byte
once; a server that tells another story the second time is not believed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fixed_key import fixed_key
from made_build import MIB, PLACES, Made, make_build
from waiting import reserved_port, wait_for

from erofs_edge.cli.main import cli
from erofs_edge.errors import CapacityError, FormatError
from erofs_edge.serve.export import FileExport
from erofs_edge.serve.server import Server
from erofs_edge.transport.nbd.aligned import AlignedReads
from erofs_edge.trust.signer import public_key_pem
from erofs_edge.verity import blocks, check, source
from erofs_edge.verity.check import find_superblock, verify
from erofs_edge.verity.source import Kept, Section
from erofs_edge.verity.superblock import VerityInfo
from erofs_edge.verity.tree import append

KEY = fixed_key(1, "product")
COUNT = 700  # data blocks of 512 bytes: three levels of a tree, 16 digests in a block
Oracle = Callable[[str], str]


@pytest.fixture
def image(tmp_path: Path) -> tuple[Path, VerityInfo]:
    path = tmp_path / "image"
    path.write_bytes(random.Random(7).randbytes(COUNT * 512))
    return path, append(path, block_size=512)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_build(tmp_path_factory.mktemp("made") / "out", KEY)


@contextlib.contextmanager
def serving(path: Path) -> Iterator[tuple[str, FileExport]]:
    export = FileExport(path)
    server = Server({"disk": export})
    try:
        yield f"nbd://127.0.0.1:{server.listen('127.0.0.1', 0)}/disk", export
    finally:
        server.stop()
        export.close()


@contextlib.contextmanager
def peer(command: list[str], path: Path) -> Iterator[str]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(process, path)
        yield f"nbd+unix:///?socket={path}"
    finally:
        process.terminate()
        process.wait(60)


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, words)))


def verdict(*words: str | Path) -> tuple[int, dict[str, Any]]:
    done = run(*words, "--json")
    record: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout)[0]
    return done.exit_code, record


def flip(path: Path, *offsets: int) -> None:
    with path.open("r+b") as file:
        for offset in offsets:
            byte = os.pread(file.fileno(), 1, offset)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 4]), offset)


class Recorded:
    """Reads of bytes, which are counted; a byte that is asked for again is that of `later`."""

    def __init__(self, data: bytes, later: bytes | None = None) -> None:
        self.data, self.later, self.size = data, later or data, len(data)
        self.asked = [0] * len(data)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0 and offset + length <= self.size and length
        places = range(offset, offset + length)
        for at in places:
            self.asked[at] += 1
        return bytes(self.data[at] if self.asked[at] == 1 else self.later[at] for at in places)


def damages(info: VerityInfo) -> dict[str, tuple[int, ...]]:
    low, middle, top = (level.start * 512 for level in info.superblock.levels(info.hash_offset))
    return {
        "nothing": (),
        "data": (512 * 3 + 7, 512 * 4, 512 * (COUNT - 1)),
        "a low hash block": (low + 512 * 2 + 5,),
        "a hash block, and data below and elsewhere": (middle + 512 + 9, 512 * 300, 512 * 10),
        "the top": (top + 1, 512 * 9),
    }


@pytest.mark.parametrize("damage", ["nothing", "data", "a low hash block", "a hash block, and data below and elsewhere",
                                    "the top"])  # fmt: skip
def test_a_remote_image_is_told_as_a_file(damage: str, image: tuple[Path, VerityInfo]) -> None:
    path, info = image
    flip(path, *damages(info)[damage])
    words = ["--root-hash", info.root_hash.hex()]
    here = verdict("verity", "verify", path, *words)
    with serving(path) as (uri, export):
        assert verdict("verity", "verify", uri, *words) == here
        # the data once; of the tree no more than its top twice, and what was looked for in vain
        if damage == "nothing":
            assert export.activity.bytes_read < path.stat().st_size + 16 * 512
        if damage == "the top":
            assert export.activity.bytes_read < path.stat().st_size // 4
    assert here[0] == (4 if damage != "nothing" else 0)


@pytest.mark.parametrize("jobs", [1, 3])
def test_more_than_is_read_at_once(jobs: int, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(random.Random(3).randbytes(9 * MIB + 4096))
    info = append(path)
    flip(path, 4096 * 2, 4 * MIB - 1, 9 * MIB + 5)
    with serving(path) as (uri, _):
        code, record = verdict("verity", "verify", uri, "--root-hash", info.root_hash.hex(), "--jobs", str(jobs))
    assert (code, record["bad_data_blocks"]["ranges"]) == (4, [[2, 1], [1023, 1], [2304, 1]])


def test_files_that_are_hit_are_named(build: Made, tmp_path: Path) -> None:
    path = tmp_path / "system.img"
    path.write_bytes((build.out / "system.img").read_bytes())
    flip(path, path.read_bytes().index(bytes(range(256)) * 8) + 5000)
    with serving(path) as (uri, _):
        done = run("verity", "verify", uri, "--root-hash", build.verity.root_hash.hex())
    assert done.exit_code == 4 and "1 bad data block(s)" in done.stderr and "files hit: /usr/bin/tool" in done.stderr


def test_a_tree_of_its_own(image: tuple[Path, VerityInfo], tmp_path: Path) -> None:
    """The tree near and the data far, and the other way round; a superblock that is not there."""
    data = tmp_path / "data"
    data.write_bytes(random.Random(8).randbytes(100 * 4096))
    tree = tmp_path / "tree"
    root = verdict("verity", "format", data, "--hash-device", tree)[1]["root_hash"]
    with serving(data) as (uri, _):
        assert run("verity", "verify", uri, "--root-hash", root, "--hash-device", tree).exit_code == 0
        done = run("verity", "verify", uri, "--root-hash", root)
        assert done.exit_code == 2 and "no hash tree found" in done.stderr and uri in done.stderr
    with serving(tree) as (uri, _):
        assert run("verity", "verify", data, "--root-hash", root, "--hash-device", uri).exit_code == 0
        flip(data, 4096 * 50)
        code, record = verdict("verity", "verify", data, "--root-hash", root, "--hash-device", uri)
    assert (code, record["bad_data_blocks"]["ranges"]) == (4, [[50, 1]])


def _nbdkit(oracle: Oracle, image: Path, path: Path) -> list[str]:
    root = Path(oracle("nbdkit")).parent.parent / "roots/oracles-nbd"
    (plugin,) = root.glob("usr/lib/*/nbdkit/plugins/nbdkit-file-plugin.so")
    return [oracle("nbdkit"), "-f", "-U", str(path), str(plugin), f"file={image}"]


def _qemu_nbd(oracle: Oracle, image: Path, path: Path) -> list[str]:
    return [oracle("qemu-nbd"), "-r", "-f", "raw", "-k", str(path), "-t", str(image)]


@pytest.mark.parametrize("make", [_nbdkit, _qemu_nbd])
def test_real_servers(make: Callable[[Oracle, Path, Path], list[str]], build: Made, tmp_path: Path,
                      oracle: Oracle) -> None:  # fmt: skip
    """A disk behind nbdkit, as a board that is provisioned runs it, and qemu-nbd: a partition of it by its root hash,
    all of it by its key; then damaged."""
    disk, key, path = tmp_path / "disk.img", tmp_path / "key.pem", tmp_path / "disk"
    disk.write_bytes((build.out / "disk.img").read_bytes())
    key.write_bytes(public_key_pem(KEY))
    start = PLACES["system_b"][0] * MIB
    with peer(make(oracle, disk, path), path) as uri:
        of_slot = ["verity", "verify", uri, "--partition", "system_b", "--root-hash", build.verity.root_hash.hex()]
        good = run(*of_slot)
        assert (good.exit_code, good.stderr) == (0, ""), good.output
        whole = run("verify", f"provision+unix://{tmp_path}", "--key", key)
        assert whole.exit_code == 0, whole.output
        assert "system_b: tree" in whole.stdout and "system_a: file system" in whole.stdout
    flip(disk, start + 2 * 4096)
    path.unlink(missing_ok=True)
    with peer(make(oracle, disk, path), path) as uri:
        bad = run(*of_slot)
        assert bad.exit_code == 4 and "1 bad data block(s): 2" in bad.stderr and "system_b" in bad.stderr
        assert run("verify", uri, "--key", key).exit_code == 4


def test_a_disk_is_told_as_its_image(build: Made, tmp_path: Path) -> None:
    """All checks of `verify --key`, with the same digests and failures; each byte is asked for once."""
    disk, key = tmp_path / "disk", tmp_path / "key.pem"
    key.write_bytes(public_key_pem(KEY))
    for places in ((), (MIB + 5000,), (4 * MIB - 1, PLACES["system_a"][0] * MIB + 4096 * 5)):
        disk.write_bytes((build.out / "disk.img").read_bytes())
        flip(disk, *places)
        here = verdict("verify", disk, "--key", key)
        with serving(disk) as (uri, export):
            there = verdict("verify", uri, "--key", key)
            assert export.activity.bytes_read <= disk.stat().st_size
        assert there[0] == here[0] and there[1]["checks"] == here[1]["checks"], places
        assert (here[0] == 4) is bool(places)


def test_a_system_image_by_its_key(build: Made, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(public_key_pem(KEY))
    with serving(build.out / "system.img") as (uri, _):
        done = run("verify", uri, "--key", key)
        assert done.exit_code == 4 and "not signed" in done.stderr, "what lies beside a path is not beside an export"
        done = run("verify", uri, "--key", key, "--signature", build.out / "system.root-hash.p7s")
        assert done.exit_code == 0, done.output
        assert "disk: tree" in done.stdout


def test_partitions_of_a_file(build: Made) -> None:
    words = ["--root-hash", build.verity.root_hash.hex()]
    disk = build.out / "disk.img"
    assert run("verity", "verify", disk, "--partition", "system_a", *words).exit_code == 0
    with serving(disk) as (uri, _):
        far = run("verity", "dump", uri, "--partition", "system_a").stdout
    assert far == run("verity", "dump", build.out / "system.img").stdout
    done = run("verity", "verify", disk, "--partition", "system_c", *words)
    assert done.exit_code == 2 and "no partition 'system_c'" in done.stderr and "system_a" in done.stderr
    done = run("verity", "verify", build.out / "system.img", "--partition", "system_a", *words)
    assert done.exit_code == 2 and "no partition table" in done.stderr


def test_what_cannot_be(image: tuple[Path, VerityInfo], build: Made, tmp_path: Path) -> None:
    path, info = image
    words = ["--root-hash", info.root_hash.hex()]
    done = run("verity", "verify", f"nbd://127.0.0.1:{reserved_port()}/x", *words)
    assert done.exit_code == 6 and "cannot connect" in done.stderr
    done = run("verity", "verify", "fastboot://127.0.0.1", *words)
    assert done.exit_code == 2 and 'nothing can be read over "fastboot"' in done.stderr
    with serving(path) as (uri, _):
        done = run("verity", "verify", uri, *words, "--fec-device", path)
        assert done.exit_code == 2 and "parity" in done.stderr
        assert run("verity", "verify", uri.replace("/disk", "/none"), *words).exit_code == 6
        done = run("verity", "verify", uri, "--root-hash", "ab")
        assert done.exit_code == 2 and "has 32" in done.stderr
    done = run("verity", "verify", tmp_path / "none", *words)
    assert done.exit_code == 2 and "does not exist" in done.stderr


def test_a_server_with_two_faces(image: tuple[Path, VerityInfo]) -> None:
    """Wrong data, and hash blocks that are right when they are asked for first and fit the wrong data afterwards."""
    path, info = image
    good = path.read_bytes()
    low = info.superblock.levels(info.hash_offset)[0].start * 512
    bad = bytearray(good)
    bad[512 * 5 + 1] ^= 1
    forged = bytearray(bad)
    forged[low : low + 512] = blocks.hash_blocks(bytes(bad[: 512 * 16]), 512, info.superblock)
    there = Recorded(bytes(bad), bytes(forged))
    found = verify(there, info.root_hash, hash_offset=info.hash_offset)
    assert found.bad_data.ranges == [(5, 1)] and not found.bad_hash
    assert max(there.asked[: COUNT * 512]) == 1


def test_what_was_read_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PIECE", 1000)
    data = random.Random(9).randbytes(50_123)
    there = Recorded(data, bytes(len(data)))
    with Kept(there) as kept:
        for offset, length in ((995, 10), (0, 3), (40_009, 3000), (0, 99_999), (len(data), 4), (77, 0)):
            assert kept.read(offset, length) == data[offset : offset + length]
    assert set(there.asked) == {1}


def test_what_says_too_much(image: tuple[Path, VerityInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that ends inside its tree, a tree that is too long, a full disk."""
    path, info = image
    there = Recorded(path.read_bytes())
    with pytest.raises(FormatError, match="the hash tree ends at byte"):
        verify(Recorded(there.data[:-1]), info.root_hash, hash_offset=info.hash_offset)
    with pytest.raises(FormatError, match="ends inside the hash tree"), source.copied(there, 512, there.size + 1):
        pass
    monkeypatch.setattr(check, "TREE_MAX", 4096)
    with pytest.raises(FormatError, match="at most 4096"):
        verify(there, info.root_hash, hash_offset=info.hash_offset)
    monkeypatch.undo()

    def full(fd: int, data: bytes, offset: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(source, "write_exactly", full)
    with pytest.raises(CapacityError, match="no space left"):
        verify(there, info.root_hash, hash_offset=info.hash_offset)


def test_whole_blocks_only(image: tuple[Path, VerityInfo]) -> None:
    """A server that takes no other reads than of its blocks."""
    path, info = image
    data = path.read_bytes()

    class Strict:
        size = len(data)

        class export:
            block_min = 4096

        def read(self, offset: int, length: int) -> bytes:
            assert offset % 4096 == 0 and ((offset + length) % 4096 == 0 or offset + length == self.size)
            return data[offset : offset + length]

    there = AlignedReads(Strict())  # type: ignore[arg-type]
    assert there.read(5, 3) == data[5:8] and there.read(len(data) - 2, 2) == data[-2:]
    assert find_superblock(there) == info.hash_offset
    part = Section(there, 512, 1000)
    assert part.read(990, 100) == data[1502:1512] and part.read(2000, 4) == b""
    assert verify(there, info.root_hash, hash_offset=info.hash_offset).ok
