# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import random
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest
from sources.certificates import make_certificate
from sources.debian.mirrors import FakeMirror, locked
from waiting import eventually

from erofs_edge.errors import MirrorError, PackagesGoneError, SourceError, VerificationError
from erofs_edge.sources import http as download
from erofs_edge.sources import transfer as fetching
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import Mirror

BIG = random.Random(7).randbytes(700_000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMirror]:
    monkeypatch.setattr(fetching, "PAUSE", 0.01)
    monkeypatch.setattr(download, "TIMEOUT", 60.0)
    mirror = FakeMirror()
    yield mirror
    mirror.close()


def no_mirror() -> Mirror:
    pytest.fail("the network is used although everything is cached")


def part(cache: Cache, sha256: str) -> Path:
    return cache.root / "partial" / sha256


def test_packages_arrive_and_are_fetched_once(server: FakeMirror, cache: Cache) -> None:
    packages = [server.add(f"package{i}+x", BIG[: 1000 * i]) for i in range(1, 30)]
    packages.append(server.add("secure", b"s" * 500, archive="debian-security"))
    found = fetch(packages, server.mirror(), cache)
    assert sorted(found) == sorted(package.name for package in packages)
    for package in packages:
        assert (
            found[package.name].read_bytes()
            == server.files[f"/{package.archive.removeprefix('debian-')}/{package.path}"]
        )
    assert len(server.requests) == 30
    assert server.connections <= fetching.CONNECTIONS, "connections are kept open"
    assert fetch(packages, no_mirror, Cache(cache.root)) == found
    assert list((cache.root / "partial").iterdir()) == []


def test_progress_counts_what_was_missing(server: FakeMirror, cache: Cache) -> None:
    packages = [server.add(name, name.encode() * 50_000) for name in ("a", "b", "c")]
    fetch(packages[:1], server.mirror(), cache)
    seen: list[tuple[int, int]] = []
    fetch(packages, server.mirror(), cache, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (100_000, 100_000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    seen.clear()
    fetch(packages, no_mirror, cache, lambda done, total: seen.append((done, total)))
    assert seen == []


def test_a_broken_download_goes_on_where_it_broke(server: FakeMirror, cache: Cache) -> None:
    package = server.add("big", BIG)
    server.cut["/debian/" + package.path] = 300_000
    server.cuts["/debian/" + package.path] = 2
    assert fetch([package], server.mirror(), cache)["big"].read_bytes() == BIG
    assert [wanted for _, wanted in server.requests] == [None, "bytes=300000-", "bytes=600000-"]
    assert server.sent["/debian/" + package.path] == len(BIG), "no byte came twice"


def test_a_mirror_that_goes_down_leaves_a_part_that_is_used(server: FakeMirror, cache: Cache) -> None:
    package = server.add("big", BIG, version="2.0")
    path = "/debian/" + package.path
    server.cut[path], server.cuts[path] = 450_000, 1

    real = server.answer

    def down_after_the_first(handler: object) -> None:
        if server.requests:
            handler.close_connection = True
            handler.connection.close()
        else:
            real(handler)

    server.answer = down_after_the_first
    with pytest.raises(MirrorError, match=r"big 2\.0: cannot reach the mirror") as caught:
        fetch([package], server.mirror(), cache)
    assert "kept" in str(caught.value.hint)
    assert part(cache, package.sha256).read_bytes() == BIG[:450_000]
    assert not isinstance(caught.value, PackagesGoneError)

    server.answer = real
    server.requests.clear()
    assert fetch([package], server.mirror(), Cache(cache.root))["big"].read_bytes() == BIG
    assert server.requests == [(path, "bytes=450000-")]
    assert not part(cache, package.sha256).exists()


def test_a_mirror_that_is_not_there(cache: Cache, server: FakeMirror) -> None:
    package = server.add("big", BIG)
    mirror = server.mirror(host="127.0.0.1:9")
    with pytest.raises(MirrorError, match="cannot reach the mirror: Connection refused"):
        fetch([package], mirror, cache)


@pytest.mark.parametrize("status", [500, 403, 429])
def test_a_mirror_in_trouble_is_asked_three_times(server: FakeMirror, cache: Cache, status: int) -> None:
    package = server.add("big", BIG)
    server.status["/debian/" + package.path] = status
    server.refusal = b"a long story " * 100_000
    with pytest.raises(MirrorError, match=f"the mirror answered {status}"):
        fetch([package], server.mirror(), cache)
    assert len(server.requests) == 3


def test_a_server_that_hangs_up_between_two_packages(
    server: FakeMirror, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    server.hang_up = True
    packages = [server.add(f"package{i}", bytes([i]) * 100) for i in range(10)]
    assert len(fetch(packages, server.mirror(), cache, connections=1)) == 10
    assert len(server.requests) == 10


def test_all_gone_packages_are_named(server: FakeMirror, cache: Cache) -> None:
    there = [server.add(f"there{i}", bytes([i]) * 99) for i in range(6)]
    gone = [locked(f"gone{i}", bytes([i]) * 100_000, f"pool/gone{i}.deb", version=f"1.{i}") for i in range(5)]
    with pytest.raises(PackagesGoneError) as caught:
        fetch([*gone, *there], server.mirror(), cache)
    assert caught.value.packages == ("gone0 1.0", "gone1 1.1", "gone2 1.2", "gone3 1.3", "gone4 1.4")
    assert "no longer has 5 packages of the lock: gone0 1.0, gone1 1.1" in str(caught.value)
    assert "erofs-edge lock" in str(caught.value.hint)
    assert "EROFS_EDGE_MIRROR" in str(caught.value.hint)
    assert fetch(there, no_mirror, Cache(cache.root)), "the others have arrived"


@pytest.mark.parametrize("content", [b"y" * 700_000, BIG[:-1], BIG + b"more"], ids=["other bytes", "shorter", "longer"])
def test_wrong_content_is_refused(server: FakeMirror, cache: Cache, content: bytes) -> None:
    package = server.add("big", BIG)
    server.files["/debian/" + package.path] = content
    with pytest.raises(VerificationError, match=rf"{package.path}: .*lock") as caught:
        fetch([package], server.mirror(), cache)
    assert caught.value.exit_code == 4
    assert cache.blob(package.sha256) is None
    assert part(cache, package.sha256).stat().st_size == 0, "nothing wrong is kept"
    server.files["/debian/" + package.path] = BIG
    assert fetch([package], server.mirror(), cache)["big"].read_bytes() == BIG


@pytest.mark.parametrize(
    "old", [b"z" * 5000, BIG + b"more than there is", b"z" * len(BIG)], ids=["wrong", "too long", "wrong and complete"]
)
def test_a_damaged_part_costs_a_second_download_only(server: FakeMirror, cache: Cache, old: bytes) -> None:
    package = server.add("big", BIG)
    cache.partial_path(package.sha256).write_bytes(old)
    assert fetch([package], server.mirror(), cache)["big"].read_bytes() == BIG


def test_a_part_that_goes_while_we_wait_for_its_lock(
    server: FakeMirror, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = server.add("big", BIG)
    lock = fetching._try_lock

    def lock_late(file: BinaryIO) -> bool:
        monkeypatch.setattr(fetching, "_try_lock", lock)
        part(cache, package.sha256).unlink()
        return lock(file)

    monkeypatch.setattr(fetching, "_try_lock", lock_late)
    assert fetch([package], server.mirror(), cache)["big"].read_bytes() == BIG


def test_a_complete_part_needs_no_network(server: FakeMirror, cache: Cache) -> None:
    package = server.add("big", BIG)
    cache.partial_path(package.sha256).write_bytes(BIG)
    assert fetch([package], server.mirror(), cache)["big"].read_bytes() == BIG
    assert server.requests == []


def test_a_server_without_ranges(server: FakeMirror, cache: Cache) -> None:
    server.ranges = False
    package = server.add("big", BIG)
    cache.partial_path(package.sha256).write_bytes(BIG[:1000])
    assert fetch([package], server.mirror(), cache)["big"].read_bytes() == BIG
    assert server.requests == [("/debian/" + package.path, "bytes=1000-")]


def test_a_part_that_is_longer_than_what_the_server_has(server: FakeMirror, cache: Cache) -> None:
    package = server.add("big", BIG)
    server.files["/debian/" + package.path] = BIG[:500]
    cache.partial_path(package.sha256).write_bytes(BIG[:1000])
    with pytest.raises(VerificationError, match="has 500 bytes, the lock says 700000"):
        fetch([package], server.mirror(), cache)


def test_a_rotten_blob_is_fetched_again(server: FakeMirror, cache: Cache) -> None:
    package = server.add("big", BIG)
    blob = fetch([package], server.mirror(), cache)["big"]
    blob.write_bytes(BIG[:-1] + b"?")
    assert fetch([package], server.mirror(), cache)["big"].read_bytes() == BIG
    assert len(server.requests) == 2


def test_a_size_that_does_not_go_with_the_hash(server: FakeMirror, cache: Cache) -> None:
    package = server.add("big", BIG)
    fetch([package], server.mirror(), cache)
    with pytest.raises(VerificationError, match="the lock says 5 bytes"):
        fetch([msgspec.structs.replace(package, size=5)], no_mirror, cache)


def test_threads_that_want_the_same_download_it_once(server: FakeMirror, cache: Cache) -> None:
    package = server.add("big", BIG)
    server.pause["/debian/" + package.path] = 0.005
    with ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(fetch, [package], server.mirror(), Cache(cache.root)) for _ in range(5)]
    assert {job.result()["big"].read_bytes() for job in jobs} == {BIG}
    assert server.sent["/debian/" + package.path] == len(BIG)


def run_fetch(server: FakeMirror, cache: Cache, package: object) -> subprocess.Popen[bytes]:
    argv = [msgspec.json.encode(package).decode(), server.mirror().archives["debian"], str(cache.root)]
    return subprocess.Popen([sys.executable, "-c", FETCH_CODE, *argv], stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle(server: FakeMirror, cache: Cache, number: signal.Signals) -> None:
    package = server.add("big", BIG)
    path = "/debian/" + package.path
    server.hold[path] = 400_000
    process, kept_at = run_fetch(server, cache, package), part(cache, package.sha256)
    assert eventually(lambda: kept_at.exists() and kept_at.stat().st_size > 0)
    process.send_signal(number)
    assert process.wait(timeout=120) != 0
    server.go.set()
    kept = kept_at.read_bytes()
    assert BIG.startswith(kept)
    assert 0 < len(kept) < len(BIG)
    server.requests.clear()
    assert fetch([package], server.mirror(), cache)["big"].read_bytes() == BIG
    assert server.requests == [(path, f"bytes={len(kept)}-")]


def test_processes_that_want_the_same_download_it_once(server: FakeMirror, cache: Cache) -> None:
    package = server.add("big", BIG)
    server.pause["/debian/" + package.path] = 0.01
    processes = [run_fetch(server, cache, package) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert server.sent["/debian/" + package.path] == len(BIG)
    assert fetch([package], no_mirror, cache)["big"].read_bytes() == BIG


def test_a_failure_ends_the_others_at_once(server: FakeMirror, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waited for its server would do so until that gives up."""
    monkeypatch.setattr(download, "TIMEOUT", 1000.0)
    slow = [server.add(f"slow{i}", BIG + bytes([i])) for i in range(3)]
    bad = server.add("bad", b"good content")
    server.files["/debian/" + bad.path] = b"evil content"
    for package in slow:
        server.hold["/debian/" + package.path] = 0
    with pytest.raises(VerificationError, match="bad"):
        fetch([*slow, bad], server.mirror(), cache)
    assert not server.held_up
    server.go.set()


def test_a_file_mirror(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "archive/pool").mkdir(parents=True)
    (tmp_path / "archive/pool/a_1%3a1+x.deb").write_bytes(BIG)
    (tmp_path / "archive/pool/b 1.deb").write_bytes(b"b")
    mirror = Mirror({"debian": f"file://{tmp_path}/archive"}, Path("/none"))
    a, b = locked("a", BIG, "pool/a_1%253a1+x.deb"), locked("b", b"b", "pool/b%201.deb")
    cache.partial_path(a.sha256).write_bytes(BIG[:77])
    found = fetch([a, b], mirror, cache)
    assert found["a"].read_bytes() == BIG
    with pytest.raises(PackagesGoneError, match=r"1 package of the lock: c 1\.0$"):
        fetch([a, locked("c", b"c", "pool/c.deb")], mirror, cache)
    with pytest.raises(MirrorError, match="no mirror of the archive 'debian-security'"):
        fetch([locked("d", b"d", "pool/d.deb", archive="debian-security")], mirror, cache)
    with pytest.raises(MirrorError, match="'ftp' are not supported"):
        fetch([locked("d", b"d", "d.deb")], Mirror({"debian": "ftp://127.0.0.1/x"}, Path("/none")), cache)


def test_a_proxy_of_the_environment(server: FakeMirror, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    package = server.add("big", BIG)
    monkeypatch.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{server.port}")
    found = fetch([package], server.mirror(host="archive.invalid"), cache)
    assert found["big"].read_bytes() == BIG
    assert server.headers[0]["Host"] == "archive.invalid"
    assert server.headers[0]["Proxy-Authorization"] == "Basic dXNlcjpwQHNz"
    monkeypatch.setenv("no_proxy", "archive.invalid")
    with pytest.raises(MirrorError, match="cannot reach the mirror"):
        fetch([package], server.mirror(host="archive.invalid"), Cache(cache.root / "other"))


def test_a_password_in_the_uri_is_sent_and_never_shown(server: FakeMirror, cache: Cache) -> None:
    package = server.add("big", BIG)
    mirror = server.mirror(host=f"me:secret@127.0.0.1:{server.port}")
    fetch([package], mirror, cache)
    assert server.headers[0]["Authorization"] == "Basic bWU6c2VjcmV0"
    server.status["/debian/" + package.path] = 401
    with pytest.raises(MirrorError) as caught:
        fetch([package], mirror, Cache(cache.root / "other"))
    assert "401" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_redirects(server: FakeMirror, cache: Cache) -> None:
    package = server.add("big", BIG)
    server.files["/elsewhere"] = server.files.pop("/debian/" + package.path)
    server.redirect["/debian/" + package.path] = "/elsewhere"
    assert fetch([package], server.mirror(), cache)["big"].read_bytes() == BIG
    server.redirect["/elsewhere"] = "/elsewhere"
    with pytest.raises(MirrorError, match="more than 5 redirects"):
        fetch([package], server.mirror(), Cache(cache.root / "other"))
    server.redirect["/elsewhere"] = "http://127.0.0.1:99999999/"
    with pytest.raises(MirrorError, match="not a usable URI"):
        fetch([package], server.mirror(), Cache(cache.root / "other"))
    server.redirect["/elsewhere"] = "file:///etc/passwd"
    with pytest.raises(MirrorError, match="redirects to another scheme"):
        fetch([package], server.mirror(), Cache(cache.root / "other"))


def test_tls_with_a_certificate_that_is_checked(
    server: FakeMirror, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
    package = server.add("big", BIG)
    with pytest.raises(MirrorError, match="certificate verify failed"):
        fetch([package], server.mirror("https"), cache)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert fetch([package], server.mirror("https"), cache)["big"].read_bytes() == BIG


def test_a_cache_that_cannot_be_written(server: FakeMirror, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    package = server.add("big", BIG)
    with pytest.raises(SourceError, match="Not a directory"):
        fetch([package], server.mirror(), Cache(tmp_path / "file"))


def test_a_full_disk(server: FakeMirror, cache: Cache) -> None:
    """The size limit of a process stands in for a full file system: a write fails in the middle."""
    package = server.add("big", BIG)
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300000, 300000))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code + FETCH_CODE, msgspec.json.encode(package), server.mirror().archives["debian"],
         str(cache.root)],
        capture_output=True, text=True, env=os.environ, check=False,
    )  # fmt: skip
    assert process.stdout == "SourceError File too large\n", process.stderr
    assert fetch([package], server.mirror(), cache)["big"].read_bytes() == BIG


FETCH_CODE = """
import sys, msgspec
from pathlib import Path
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.manifest.model import LockedPackage
from erofs_edge.sources.debian.fetch import Cache, fetch
from erofs_edge.sources.debian.mirror import Mirror
package = msgspec.json.decode(sys.argv[1], type=LockedPackage)
try:
    fetch([package], Mirror({'debian': sys.argv[2]}, Path('/none')), Cache(Path(sys.argv[3])))
except ErofsEdgeError as error:
    print(type(error).__name__, error.message.removeprefix("cannot write: "))
    sys.exit(1)
"""


def test_no_thread_is_left(server: FakeMirror, cache: Cache) -> None:
    before = threading.active_count()
    package = server.add("big", BIG)
    fetch([package], server.mirror(), cache)
    ours = [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]
    assert ours == []
    assert threading.active_count() <= before + fetching.CONNECTIONS, "the server's own threads at most"
