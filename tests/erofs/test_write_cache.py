# SPDX-License-Identifier: Apache-2.0
"""The compression cache: damaged entries are misses, shared ones stay complete, old ones are removed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from writer_check import write
from writer_trees import rich_tree

from erofs_edge.cli.fs_build import build
from erofs_edge.erofs import cache as module
from erofs_edge.erofs.cache import RECORD, CompressionCache, cache_key


def key(i: int) -> bytes:
    return hashlib.sha256(b"%d" % i).digest()


def payload(i: int, size: int = 1000) -> bytes:
    return random.Random(i).randbytes(size)


def fill(folder: Path, numbers: range, **options: int) -> None:
    with CompressionCache(folder, **options) as cache:
        for i in numbers:
            cache.put(key(i), [payload(i)[:10], memoryview(payload(i))[10:]])
    assert cache.problem is None


def found(folder: Path, numbers: range) -> list[int]:
    with CompressionCache(folder) as cache:
        got = {i: cache.get(key(i)) for i in numbers}
        assert cache.hits + cache.misses == len(numbers)
    for i, data in got.items():
        assert data in (None, payload(i))
    return [i for i, data in got.items() if data is not None]


def test_keeps_what_it_was_given(tmp_path: Path) -> None:
    assert found(tmp_path / "none", range(3)) == []
    assert not (tmp_path / "none").exists()
    fill(tmp_path, range(50))
    fill(tmp_path, range(50, 60))
    assert found(tmp_path, range(61)) == list(range(60))


def test_keys_depend_on_rules() -> None:
    assert len({cache_key(key(i), rules) for i in (1, 2) for rules in ("1 lz4", "2 lz4")}) == 4


def test_any_damage_is_a_miss(tmp_path: Path) -> None:
    fill(tmp_path, range(20))
    pristine = {p: p.read_bytes() for p in tmp_path.iterdir()}
    rng = random.Random(1)
    for path, data in pristine.items():
        for _ in range(25 if data else 0):
            broken = bytearray(data)
            broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(broken)
            assert len(found(tmp_path, range(20))) == 19
        for cut in (0, 1, len(data) // 2, len(data) - 1) if data else ():
            path.write_bytes(data[:cut])
            found(tmp_path, range(20))
        path.unlink()
        if data:
            assert found(tmp_path, range(20)) == []
        path.write_bytes(data)
    assert found(tmp_path, range(20)) == list(range(20))


def test_damage_is_counted_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EROFS_EDGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(b"".join(b"line %d\n" % i for i in range(50_000)))
    arguments = [str(tmp_path / "tree"), "-o", str(tmp_path / "image"), "-z", "lz4hc"]
    assert "damaged" not in CliRunner().invoke(build, arguments).output
    image = (tmp_path / "image").read_bytes()
    (pack,) = (tmp_path / "cache").rglob("*.pack")
    raw = bytearray(pack.read_bytes())
    raw[len(raw) // 2] ^= 1
    pack.write_bytes(raw)
    assert "1 damaged entries of the compression cache were discarded" in CliRunner().invoke(build, arguments).output
    assert (tmp_path / "image").read_bytes() == image
    assert "damaged" not in CliRunner().invoke(build, arguments).output, "it was stored anew"


def test_a_torn_index_is_mended(tmp_path: Path) -> None:
    fill(tmp_path, range(5))
    (index,) = tmp_path.glob("*.index")
    index.write_bytes(index.read_bytes() + b"torn")
    fill(tmp_path, range(5, 9))
    assert index.stat().st_size == 9 * RECORD.size
    assert found(tmp_path, range(9)) == list(range(9))


def test_bytes_without_a_record_do_no_harm(tmp_path: Path) -> None:
    """Such bytes remain after a kill between payload and record, in a new pack and in an old one."""
    (tmp_path / "00000007.pack").write_bytes(b"x" * 100)
    fill(tmp_path, range(5))
    assert found(tmp_path, range(5)) == list(range(5))


def test_threads_and_processes(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_write_cache as t\n"
        "for i in range(20): t.fill(Path(sys.argv[2]), range(int(sys.argv[3]) + i, int(sys.argv[3]) + 300, 20))"
    )
    argv = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)]
    children = [subprocess.Popen([*argv, str(start)]) for start in (0, 150)]
    assert [child.wait() for child in children] == [0, 0]
    with CompressionCache(tmp_path) as cache, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(cache.get, map(key, range(450)))) == [payload(i) for i in range(450)]
        assert cache.hits == 450


def test_a_kill_leaves_a_cache_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_write_cache as t\n"
        "for i in range(10**6): t.fill(Path(sys.argv[2]), range(i, i + 5)); print(flush=True)"
    )
    for _ in range(3):
        argv = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)]
        child = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(5):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert found(tmp_path, range(5)) == list(range(5))
    fill(tmp_path, range(5000, 5010))
    assert found(tmp_path, range(5000, 5010)) == list(range(5000, 5010))


def test_the_least_recently_used_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACK_MAX", 1000)
    for i in range(6):
        fill(tmp_path, range(i, i + 1), limit=100_000)
        os.utime(tmp_path / f"{i:08d}.index", (i, i))
    assert found(tmp_path, range(2)) == [0, 1]
    time.sleep(0.01)
    fill(tmp_path, range(6, 7), limit=4000)
    assert sum(p.stat().st_size for p in tmp_path.glob("*.pack")) <= 4000
    assert found(tmp_path, range(7)) == [0, 1, 5, 6]


def test_an_unusable_cache_fails_no_build(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = CompressionCache(tmp_path / "file")
    write(rich_tree(), tmp_path / "i", cache=cache)
    cache.close()
    assert isinstance(cache.problem, OSError)


def test_a_payload_of_other_content_is_not_used(tmp_path: Path) -> None:
    """Even a well-formed entry with the right key must match the content."""
    tree = rich_tree()
    write(tree, tmp_path / "plain")
    cache = CompressionCache(tmp_path / "c")
    cache.get = lambda key: b"\1\0\0\0" + b"\7\0\1\0" + b"\1\0\0\0" + bytes(4096)  # type: ignore[method-assign]
    write(tree, tmp_path / "i", cache=cache)
    assert (tmp_path / "i").read_bytes() == (tmp_path / "plain").read_bytes()
