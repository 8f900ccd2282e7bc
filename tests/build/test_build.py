# SPDX-License-Identifier: Apache-2.0
"""`build`: what it refuses, what survives a kill, and what it reports if the mirror has moved on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import WAIT, eventually

from erofs_edge.build import relock
from erofs_edge.build.inputs import digest, gather
from erofs_edge.build.pipeline import BuildOptions, build_board, workshop
from erofs_edge.build.record import read_release, remember, unchanged, write_json
from erofs_edge.errors import CapacityError, ErofsEdgeError, ManifestError, PackagesGoneError
from erofs_edge.manifest.load import load_lock
from erofs_edge.sources.debian.lock import Relocked


def run(edge: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([edge, *arguments], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def checkout(repository: Path, stock: Callable[[str], Path], tmp_path: Path) -> Path:
    """A user's own boards and manifests, with the locks that the stock build used."""
    top = tmp_path / "checkout"
    for name in ("boards", "manifests"):
        shutil.copytree(repository / name, top / name)
    for lock in (stock("qemu-aarch64") / "locks").glob("*.lock"):
        shutil.copy(lock, next(top.rglob(lock.name)))
    return top


def test_an_unchanged_build_does_nothing(stock: Callable[[str], Path], edge: str, repository: Path) -> None:
    out = stock("qemu-aarch64")
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    done = run(edge, "build", "boards/qemu-aarch64.yaml", "-o", str(out), "--relock-if-gone", "--json", cwd=repository)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fresh"] is False
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_folder_that_cannot_be_is_refused_before_anything_is_fetched(
    edge: str, repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    far = {"EROFS_EDGE_MIRROR": "http://127.0.0.1:1/", "EROFS_EDGE_CACHE": str(tmp_path / "cache")}
    words = ("build", "boards/qemu-aarch64.yaml", "-o", str(tmp_path / "file"), "--force")
    done = run(edge, *words, cwd=repository, env={**os.environ, **far})
    assert (done.returncode, "this is a file, not a folder" in done.stderr) == (2, True), done.stderr


def test_release_record_describes_the_files(stock: Callable[[str], Path]) -> None:
    out = stock("qemu-aarch64")
    record = read_release(out)
    assert {"disk.img", "system.img", "boot.fit", "u-boot.bin", "sign.pub.pem"} <= set(record["files"])
    for name, entry in record["files"].items():
        assert (out / name).stat().st_size == entry["size"]
        with (out / name).open("rb") as handle:
            assert hashlib.file_digest(handle, "sha256").hexdigest() == entry["sha256"]
    assert record["sign"]["development"] is True
    system = record["partitions"]["system_b"]
    with (out / "disk.img").open("rb") as disk, (out / "system.img").open("rb") as image:
        disk.seek(system["start"])
        assert disk.read(1 << 20) == image.read(1 << 20)


def test_a_killed_build_leaves_the_last_one_whole(
    stock: Callable[[str], Path], edge: str, checkout: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(stock("qemu-aarch64"), out, copy_function=os.link)
    for seconds in (0.6, 1.5, 2.5):
        command = [edge, "build", "boards/qemu-aarch64.yaml", "-o", str(out), "--force"]
        child = subprocess.Popen(
            command, cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(seconds)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for name, entry in read_release(out)["files"].items():
            assert (out / name).stat().st_size == entry["size"], name
    done = run(edge, "build", "boards/qemu-aarch64.yaml", "-o", str(out), "--force", cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert read_release(out)["files"] == read_release(stock("qemu-aarch64"))["files"]
    assert not list(out.glob(".build-*"))


def test_ctrl_c_ends_with_one_line(edge: str, checkout: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = subprocess.Popen(
        [edge, "build", "boards/qemu-aarch64.yaml", "-o", str(out)],
        cwd=checkout,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509  background jobs ignore it
    )
    assert eventually(lambda: bool(list(out.glob(".build-*"))) or child.poll() is not None)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=WAIT)
    assert child.returncode == 130, said
    assert "Traceback" not in said
    assert [path.name for path in out.iterdir() if path.name != ".lock"] == []


def test_a_system_too_large_for_its_partition(edge: str, checkout: Path, tmp_path: Path) -> None:
    small = checkout / "boards/small.yaml"
    small.write_text("extends: qemu-aarch64.yaml\nboard: small\ndisk: {partitions: {system: {size: 16M}}}\n")
    shutil.copy(checkout / "boards/qemu-aarch64.lock", checkout / "boards/small.lock")
    done = run(edge, "build", "boards/small.yaml", "-o", str(tmp_path / "out"), cwd=checkout)
    assert done.returncode != 0
    assert "system_a" in done.stderr and "MiB" in done.stderr
    assert "/usr/" in done.stderr, "the largest files are named"
    assert not (tmp_path / "out/disk.img").exists()


def test_no_space_left(edge: str, checkout: Path, tmp_path: Path) -> None:
    """A limit on file size acts like a full disk (EFBIG)."""
    done = run(
        edge, "build", "boards/qemu-aarch64.yaml", "-o", str(tmp_path / "out"), "--no-cache", cwd=checkout,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, 20 << 20)),
    )  # fmt: skip
    assert done.returncode == 1
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name != ".lock"] == []


@pytest.mark.root
def test_a_full_disk(edge: str, checkout: Path, tmp_path: Path, needs_root: None) -> None:
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(out)], check=True)
    try:
        done = run(edge, "build", "boards/qemu-aarch64.yaml", "-o", str(out), cwd=checkout)
        assert done.returncode == 1
        assert "no space left" in done.stderr
        assert f"error: {out}" in done.stderr and ".build-" not in done.stderr, done.stderr
        assert [path.name for path in out.iterdir() if path.name != ".lock"] == []
    finally:
        subprocess.run(["umount", str(out)], check=True)


@pytest.mark.parametrize("name", [None, "system.img"])
def test_a_full_disk_is_named_by_the_folder_that_the_user_knows(name: str | None, tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="no space left for the build") as caught, workshop(tmp_path) as work:
        raise OSError(errno.ENOSPC, "full", None if name is None else str(work / name))
    assert caught.value.where == str(tmp_path) and sorted(path.name for path in tmp_path.iterdir()) == [".lock"]
    for code, place in ((errno.EACCES, None), (errno.ENOSPC, "/elsewhere/file")):  # these are something else
        with pytest.raises(OSError, match="told"), workshop(tmp_path):
            raise OSError(code, "told", place)


def test_errors_name_files_as_they_will_be_in_that_folder(tmp_path: Path) -> None:
    for place, named in (("system.img", "system.img"), ("system.img: offset 0x0", "system.img: offset 0x0")):
        with pytest.raises(CapacityError) as caught, workshop(tmp_path) as work:
            raise CapacityError("no space left for the image", where=str(work / place))
        assert caught.value.where == str(tmp_path / named)
    for elsewhere in (None, "/elsewhere/file"):
        with pytest.raises(CapacityError) as caught, workshop(tmp_path):
            raise CapacityError("no space left", where=elsewhere)
        assert caught.value.where == elsewhere


def test_packages_that_the_mirror_dropped_are_all_named(edge: str, checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "empty/debian").mkdir(parents=True)
    (tmp_path / "empty/debian-security").mkdir()
    env = {
        **os.environ,
        "EROFS_EDGE_CACHE": str(tmp_path / "cache"),
        "EROFS_EDGE_MIRROR": f"file:{tmp_path}/empty/debian",
    }
    command = ["build", "boards/qemu-aarch64.yaml", "-o", str(tmp_path / "out")]
    done = run(edge, *command, cwd=checkout, env=env)
    assert done.returncode == 1
    assert "no longer has" in done.stderr and "systemd 257" in done.stderr and "u-boot-qemu" in done.stderr
    assert "erofs-edge lock" in done.stderr and "EROFS_EDGE_MIRROR" in done.stderr


def test_locking_again_gives_the_build_of_the_new_lock_and_leaves_the_old_file(
    checkout: Path, stock: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mirror has dropped a package; the result of a new `lock` (here: the stock lock) is what gets built."""
    path, board = checkout / "manifests/edge-base.lock", checkout / "boards/qemu-aarch64.yaml"
    good = load_lock(path)
    path.write_text(path.read_text().replace(good.packages["system"][0].sha256, "0" * 64))
    old = path.read_bytes()
    monkeypatch.setenv("EROFS_EDGE_MIRROR", f"file:{tmp_path}/nowhere")
    (tmp_path / "nowhere").mkdir()

    def lock_all(*_: object, **__: object) -> list[Relocked]:
        return [Relocked(path, load_lock(path), good)]

    monkeypatch.setattr(relock, "lock_all", lock_all)
    with pytest.raises(PackagesGoneError):
        build_board(board, BuildOptions(tmp_path / "out"))
    result = build_board(board, BuildOptions(tmp_path / "out", relock=True))
    name = f"{good.packages['system'][0].name} {good.packages['system'][0].version}"
    assert name in result.notes[0] and "edge-base.lock is unchanged" in result.notes[1]
    assert result.record["files"] == read_release(stock("qemu-aarch64"))["files"]
    assert path.read_bytes() == old
    assert load_lock(tmp_path / "out/locks/edge-base.lock") == good
    assert build_board(board, BuildOptions(tmp_path / "out", relock=True)).fresh is False


def test_missing_and_stale_locks(edge: str, checkout: Path, tmp_path: Path) -> None:
    (checkout / "manifests/edge-base.lock").unlink()
    done = run(edge, "build", "boards/qemu-aarch64.yaml", "-o", str(tmp_path / "out"), cwd=checkout)
    assert done.returncode == 3 and "edge-base.lock" in done.stderr and "erofs-edge lock" in done.stderr


def test_a_lock_for_other_packages_is_refused(checkout: Path) -> None:
    manifest = checkout / "manifests/edge-base.yaml"
    manifest.write_text(manifest.read_text().replace("  - less\n", "  - less\n  - nano\n"))
    with pytest.raises(ManifestError, match=r"other packages: \+nano"):
        gather(checkout / "boards/qemu-aarch64.yaml")


def test_an_extension_in_the_place_of_a_system_is_refused(checkout: Path) -> None:
    manifest = checkout / "manifests/edge-base.yaml"
    manifest.write_text(manifest.read_text() + "kind: sysext\n")
    with pytest.raises(ManifestError, match="edge-base is of kind 'sysext'"):
        gather(checkout / "boards/qemu-aarch64.yaml")


def test_digest_follows_contents_and_nothing_else(checkout: Path) -> None:
    board = checkout / "boards/qemu-aarch64.yaml"
    first = digest(gather(board), b"key")
    overlay = next(path for path in sorted((checkout / "manifests/files/edge-minimal").rglob("*")) if path.is_file())
    overlay.chmod(0o600)
    os.utime(overlay, ns=(5, 5))
    assert digest(gather(board), b"key") == first
    assert digest(gather(board), b"other") != first
    overlay.write_bytes(overlay.read_bytes() + b"\n")
    second = digest(gather(board), b"key")
    assert second != first
    overlay.rename(overlay.with_name("renamed"))
    assert digest(gather(board), b"key") not in (first, second)


def test_two_systems_are_one_too_many(checkout: Path) -> None:
    board = checkout / "boards/two.yaml"
    board.write_text(
        "extends: qemu-aarch64.yaml\nboard: two\n"
        "disk: {partitions: {extra: {size: 8M, content: ../manifests/edge-base.yaml}, data: {}}}\n"
    )
    shutil.copy(checkout / "boards/qemu-aarch64.lock", checkout / "boards/two.lock")
    with pytest.raises(ManifestError, match="exactly one partition must hold a system, 2 do"):
        gather(board)


def test_state_notices_every_change(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    write_json(tmp_path / "release.json", {"format": 1})
    assert not unchanged(tmp_path, "x")
    remember(tmp_path, "x", ["a"])
    assert unchanged(tmp_path, "x") and not unchanged(tmp_path, "y")
    (tmp_path / "a").write_text("22")
    assert not unchanged(tmp_path, "x")
    remember(tmp_path, "x", ["a"])
    (tmp_path / "a").unlink()
    assert not unchanged(tmp_path, "x")
    (tmp_path / ".state.json").write_text("[]")
    assert not unchanged(tmp_path, "x")


@pytest.mark.parametrize("text", ["{half", "[]", '{"format": 2}'])
def test_damaged_release_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "release.json").write_text(text)
    with pytest.raises(ErofsEdgeError) as caught:
        read_release(tmp_path)
    assert caught.value.hint == "build again"


def test_own_locks_stand_in_only_for_the_files_they_were_made_from(tmp_path: Path) -> None:
    original = tmp_path / "x.lock"
    original.write_text("old")
    folder = tmp_path / "locks"
    folder.mkdir()
    assert relock.valid(folder) is None
    write_json(folder / relock.ORIGINS, {str(original): hashlib.sha256(b"old").hexdigest()})
    assert relock.valid(folder) == folder
    original.write_text("checked in anew")
    assert relock.valid(folder) is None
