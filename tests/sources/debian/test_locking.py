# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from sources.debian.locking import BOARD, MANIFEST, FakeArchive

from erofs_edge.build.inputs import gather
from erofs_edge.build.relock import lock_again
from erofs_edge.errors import ManifestError, MirrorError, SourceError
from erofs_edge.manifest.load import Loaded, load_any, load_board, load_system, lock_path, save_lock
from erofs_edge.manifest.model import Board, Lock, System
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.lock import changes, check_lock, lock_all, lock_board, lock_system, old_lock, requested


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeArchive:
    made = FakeArchive(tmp_path / "archive")
    made.install(monkeypatch)
    return made


@pytest.fixture
def system(tmp_path: Path) -> Loaded[System]:
    (tmp_path / "edge.yaml").write_text(MANIFEST)
    return load_system(tmp_path / "edge.yaml")


@pytest.fixture
def board(tmp_path: Path, system: Loaded[System]) -> Loaded[Board]:
    (tmp_path / "demo.yaml").write_text(BOARD)
    return load_board(tmp_path / "demo.yaml")


def names(lock: Lock) -> dict[str, list[str]]:
    return {group: [package.name for package in packages] for group, packages in lock.packages.items()}


def test_the_lock_of_a_manifest(archive: FakeArchive, system: Loaded[System], cache: Cache) -> None:
    lock = lock_system(system, mirror=archive.mirror, cache=cache)
    assert (lock.name, lock.suite, lock.arch, lock.date) == ("edge", "trixie", "arm64", 1_700_000_000)
    assert lock.requested == {"system": ["base-files", "base-passwd", "openssh-server"]}
    assert names(lock) == {"system": ["base-files", "base-passwd", "libc6", "openssh-server"]}
    assert lock.packages["system"][0] == archive.packages["base-files"]
    assert list(lock.users) == ["sshd"]
    assert archive.opened == [("trixie", "arm64")]
    check_lock(lock, system)


def test_the_lock_of_a_board(archive: FakeArchive, board: Loaded[Board]) -> None:
    lock = lock_board(board, mirror=archive.mirror)
    assert lock.requested == {
        "kernel": ["linux-image-arm64"],
        "initramfs": ["busybox-static", "dmsetup", "e2fsprogs"],
        "firmware": ["firmware-x", "u-boot-qemu"],
    }
    assert names(lock) == {
        "kernel": ["linux-image-6.12.1-arm64"],
        "initramfs": ["busybox-static", "dmsetup", "e2fsprogs", "libc6"],
        "firmware": ["firmware-x", "u-boot-qemu"],
    }
    assert (lock.users, lock.groups) == ({}, {})
    check_lock(lock, board)


def test_a_kernel_named_itself(archive: FakeArchive, tmp_path: Path, board: Loaded[Board]) -> None:
    (tmp_path / "own.yaml").write_text(BOARD + "  kernel: linux-image-6.12.1-arm64\n")
    lock = lock_board(load_board(tmp_path / "own.yaml"), mirror=archive.mirror)
    assert names(lock)["kernel"] == ["linux-image-6.12.1-arm64"]


def test_a_metapackage_of_several_kernels(
    archive: FakeArchive, board: Loaded[Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [archive.packages["linux-image-6.12.1-arm64"]]
    both.append(msgspec.structs.replace(both[0], name="linux-image-rt"))
    monkeypatch.setattr(archive, "closure", lambda _: both)
    with pytest.raises(ManifestError, match=r"linux-image-arm64 depends on several kernels: .*arm64, linux-image-rt"):
        lock_board(board, mirror=archive.mirror)


def test_pinned_ids_stay(archive: FakeArchive, system: Loaded[System], cache: Cache) -> None:
    first = lock_system(system, mirror=archive.mirror, cache=cache)
    old = msgspec.structs.replace(first, users={"sshd": 777, "gone": 778}, groups={"gone": 779})
    again = lock_system(system, mirror=archive.mirror, cache=cache, old=old)
    assert again.users == {"sshd": 777, "gone": 778}
    assert again.groups["gone"] == 779
    assert changes(old, again).ids == [f"group {name} {gid}" for name, gid in again.groups.items() if name != "gone"]


def test_users_of_an_overlay_are_pinned(archive: FakeArchive, tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "files/usr/lib/sysusers.d").mkdir(parents=True)
    (tmp_path / "files/usr/lib/sysusers.d/app.conf").write_text("u app -\n")
    (tmp_path / "more/sysusers.d").mkdir(parents=True)
    (tmp_path / "more/sysusers.d/more.conf").write_text("g more -\n")
    text = MANIFEST + "overlay: [{from: files}]\nsources: [{directory: more, to: /usr/lib}]\n"
    text += "entries: [{path: /usr/lib/sysusers.d/e.conf, text: 'u entry -'}]\n"
    (tmp_path / "edge.yaml").write_text(text)
    lock = lock_system(load_system(tmp_path / "edge.yaml"), mirror=archive.mirror, cache=cache)
    assert set(lock.users) == {"sshd", "app", "entry"}
    assert "more" in lock.groups


def test_locking_again_changes_nothing(archive: FakeArchive, system: Loaded[System], cache: Cache) -> None:
    first = lock_system(system, mirror=archive.mirror, cache=cache)
    archive.date += 86400
    again = lock_system(system, mirror=archive.mirror, cache=cache, old=first)
    assert again == first, "the date alone is no news"
    archive.add("libc6", "1.1")
    newer = lock_system(system, mirror=archive.mirror, cache=cache, old=first)
    assert newer.date == first.date + 86400
    assert changes(first, newer).updated == [("system", "libc6", "1.0", "1.1")]
    assert not changes(first, first)


def test_changes(archive: FakeArchive, system: Loaded[System], cache: Cache) -> None:
    lock = lock_system(system, mirror=archive.mirror, cache=cache)
    kmod = archive.packages["kmod"]
    other = msgspec.structs.replace(lock, packages={"system": [*lock.packages["system"][1:], kmod]})
    changed = changes(lock, other)
    assert changed.added == [("system", "kmod", "1.0")]
    assert changed.removed == [("system", "base-files", "1.0")]
    assert (changed.updated, changed.ids) == ([], [])
    new = changes(None, lock)
    assert [name for _, name, _ in new.added] == ["base-files", "base-passwd", "libc6", "openssh-server"]
    assert f"user sshd {lock.users['sshd']}" in new.ids


def test_a_board_locks_its_manifests_too(
    archive: FakeArchive, board: Loaded[Board], tmp_path: Path, cache: Cache
) -> None:
    done = lock_all(board, mirror=archive.mirror, cache=cache)
    assert [(one.path.name, one.old, one.new.name) for one in done] == [
        ("demo.lock", None, "demo"), ("edge.lock", None, "edge"),
    ]  # fmt: skip
    assert archive.opened == [("trixie", "arm64")], "one index for both"
    assert not list(tmp_path.glob("*.lock")), "nothing is written here"
    for one in done:
        save_lock(one.new, one.path)
    again = lock_all(load_any(board.path), mirror=archive.mirror, cache=cache)
    assert [one.new is one.old for one in again] == [True, True]


def test_stock_locks_are_left_alone(
    archive: FakeArchive, board: Loaded[Board], tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product on stock manifests never writes outside of itself; who names a stock file in a checkout means it."""
    stock = tmp_path / "checkout"
    (stock / "manifests").mkdir(parents=True)
    (stock / "boards").mkdir()
    (tmp_path / "edge.yaml").rename(stock / "manifests/edge.yaml")
    (tmp_path / "demo.yaml").write_text(BOARD.replace("edge.yaml", "checkout/manifests/edge.yaml"))
    (stock / "boards/mine.yaml").write_text(BOARD.replace("edge.yaml", "../manifests/edge.yaml"))
    monkeypatch.setattr("erofs_edge.manifest.stock.PACKAGE", stock / "erofs_edge")

    def paths(path: Path, folder: Path | None = None) -> list[str]:
        done = lock_all(load_any(path), mirror=archive.mirror, cache=cache, folder=folder)
        return [one.path.relative_to(tmp_path).as_posix() for one in done]

    assert paths(board.path) == ["demo.lock"]
    assert paths(board.path, folder=tmp_path / "out") == ["demo.lock", "checkout/manifests/edge.lock"]
    assert paths(stock / "boards/mine.yaml") == ["checkout/boards/mine.lock", "checkout/manifests/edge.lock"]
    assert paths(stock / "manifests/edge.yaml") == ["checkout/manifests/edge.lock"]


def test_the_old_lock_of_an_output_folder_wins(
    archive: FakeArchive, system: Loaded[System], tmp_path: Path, cache: Cache
) -> None:
    (one,) = lock_all(system, mirror=archive.mirror, cache=cache)
    save_lock(msgspec.structs.replace(one.new, users={"sshd": 700}), lock_path(system.path))
    assert old_lock(system, tmp_path / "out").users == {"sshd": 700}
    (tmp_path / "out").mkdir()
    save_lock(msgspec.structs.replace(one.new, users={"sshd": 701}), tmp_path / "out/edge.lock")
    (again,) = lock_all(system, mirror=archive.mirror, cache=cache, folder=tmp_path / "out")
    assert again.new.users["sshd"] == 701


def test_a_board_and_its_manifest_may_have_one_name(
    archive: FakeArchive, board: Loaded[Board], tmp_path: Path, cache: Cache
) -> None:
    """boards/demo.yaml with manifests/demo.yaml: in one folder their locks do not take each other's place."""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "edge.yaml").rename(tmp_path / "manifests/demo.yaml")
    board.path.write_text(BOARD.replace("edge.yaml", "manifests/demo.yaml"))
    folder = tmp_path / "out"
    folder.mkdir()
    lock_again(board.path, folder, archive.mirror, cache, None)
    inputs = gather(board.path, folder)
    assert {*inputs.lock.packages} == {"kernel", "initramfs", "firmware"}
    assert {*inputs.system.lock.packages} == {"system"}
    again = lock_all(load_any(board.path), mirror=archive.mirror, cache=cache, folder=folder)
    assert [one.new is one.old for one in again] == [True, True]


def test_a_manifest_in_place_of_the_boards_own(
    archive: FakeArchive, board: Loaded[Board], tmp_path: Path, cache: Cache
) -> None:
    """The board's own is not locked: its lock would take the place of another one of its name."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/edge.yaml").write_text(MANIFEST.replace("openssh-server", "libc6"))
    folder = tmp_path / "out"
    notes = lock_again(board.path, folder, archive.mirror, cache, tmp_path / "other/edge.yaml")
    assert [note.partition(":")[0].rpartition("/")[2] for note in notes] == ["demo.board.lock", "edge.lock"]
    assert "libc6" in gather(board.path, folder, tmp_path / "other/edge.yaml").system.lock.requested["system"]


def test_manifests_whose_locks_would_have_one_name(
    archive: FakeArchive, system: Loaded[System], tmp_path: Path, cache: Cache
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool.yaml").write_text(f"system: {folder}\nkind: sysext\n")
    system.path.write_text(f"{MANIFEST}layers: [a/tool.yaml, b/tool.yaml]\n")
    assert len(lock_all(load_system(system.path), mirror=archive.mirror, cache=cache)) == 3
    with pytest.raises(
        ManifestError, match=r"its lock would be .*/out/tool\.lock, which is that of .*/a/tool\.yaml"
    ) as caught:
        lock_all(load_system(system.path), mirror=archive.mirror, cache=cache, folder=tmp_path / "out")
    assert caught.value.where == str(tmp_path / "b/tool.yaml")
    system.path.rename(tmp_path / "demo.yml")
    (tmp_path / "demo.yaml").write_text(BOARD.replace("edge.yaml", "demo.yml"))
    with pytest.raises(ManifestError, match=r"its lock would be .*/demo\.lock, which is that of .*/demo\.yaml"):
        lock_all(load_board(tmp_path / "demo.yaml"), mirror=archive.mirror, cache=cache)


def test_a_damaged_old_lock_is_not_passed_over(archive: FakeArchive, system: Loaded[System], cache: Cache) -> None:
    lock_path(system.path).write_text('{"format": 1, "na')
    with pytest.raises(ManifestError, match=r"edge\.lock") as caught:
        lock_all(system, mirror=archive.mirror, cache=cache)
    assert "ids" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("old", "new", "where", "message"),
    [
        ("  - openssh-server", "  - openssh-servr", "edge.yaml:5:5", "no such package: openssh-servr"),
        ("  - base-files\n", "  - nothing\n  - base-files\n", "edge.yaml:3:5", "no such package: nothing"),
    ],
)
def test_an_unknown_package_is_shown_where_it_stands(
    archive: FakeArchive, system: Loaded[System], cache: Cache, old: str, new: str, where: str, message: str
) -> None:
    system.path.write_text(MANIFEST.replace(old, new))
    with pytest.raises(ManifestError, match=message) as caught:
        lock_system(load_system(system.path), mirror=archive.mirror, cache=cache)
    assert str(caught.value.where).endswith(where)
    assert caught.value.hint == "check the name of the package and the suite"


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("u-boot-qemu", "u-boot-none", "9:12"),
        ("{package: firmware-x, path: /y}", "{package: firmware-none, path: /y}", "12:8"),
        ("boot:\n  u_boot", "boot:\n  kernel: linux-image-none\n  u_boot", "9:3"),
    ],
)
def test_an_unknown_package_of_a_board(
    archive: FakeArchive, board: Loaded[Board], old: str, new: str, where: str
) -> None:
    board.path.write_text(BOARD.replace(old, new))
    with pytest.raises(ManifestError, match=r"no such package: .*-none") as caught:
        lock_board(load_board(board.path), mirror=archive.mirror)
    assert str(caught.value.where).endswith(f"demo.yaml:{where}")


def test_what_is_not_the_manifests_fault_keeps_its_kind(
    archive: FakeArchive, system: Loaded[System], cache: Cache
) -> None:
    del archive.packages["libc6"]
    with pytest.raises(SourceError, match="no such package: libc6") as caught:
        lock_system(system, mirror=archive.mirror, cache=cache)
    assert not isinstance(caught.value, ManifestError)
    system.path.write_text(MANIFEST + "suite: down\n")
    with pytest.raises(MirrorError, match="cannot be fetched"):
        lock_system(load_system(system.path), mirror=archive.mirror, cache=cache)


@pytest.mark.parametrize(
    ("manifest", "message", "where"),
    [
        (MANIFEST + "  - kmod\n", r"other packages: \+kmod", "2:1"),
        (MANIFEST.replace("  - base-files\n", ""), r"other packages: -base-files", "2:1"),
        (MANIFEST.replace("base-files", "kmod"), r"other packages: \+kmod -base-files", "2:1"),
        (MANIFEST + "suite: forky\n", "the lock is for suite trixie, not forky", "6:1"),
    ],
)
def test_a_lock_made_for_something_else(
    archive: FakeArchive, system: Loaded[System], cache: Cache, manifest: str, message: str, where: str
) -> None:
    lock = lock_system(system, mirror=archive.mirror, cache=cache)
    system.path.write_text(manifest)
    with pytest.raises(ManifestError, match=message) as caught:
        check_lock(lock, load_system(system.path))
    assert str(caught.value.where).endswith(f"edge.yaml:{where}")
    assert caught.value.hint == f"erofs-edge lock {system.path}"


def test_a_lock_in_another_order_is_the_same(archive: FakeArchive, system: Loaded[System], cache: Cache) -> None:
    lock = lock_system(system, mirror=archive.mirror, cache=cache)
    system.path.write_text(MANIFEST + "  - base-files\n")
    check_lock(
        msgspec.structs.replace(lock, requested={"system": lock.requested["system"][::-1]}), load_system(system.path)
    )


@pytest.mark.parametrize("group", ["kernel", "initramfs", "firmware"])
@pytest.mark.parametrize("change", ["none", "twice", "first gone"])
def test_a_lock_that_was_edited(archive: FakeArchive, board: Loaded[Board], group: str, change: str) -> None:
    lock = lock_board(board, mirror=archive.mirror)
    packages = lock.packages[group]
    packages = {"none": [], "twice": packages * 2, "first gone": packages[1:]}[change]
    edited = msgspec.structs.replace(lock, packages={**lock.packages, group: packages})
    with pytest.raises(ManifestError, match=f"does not hold the packages of group '{group}'"):
        check_lock(edited, board)


def test_requested_is_sorted_and_without_doubles() -> None:
    assert requested(System(system="x", packages=["b", "a", "b"])) == {"system": ["a", "b"]}


def test_boards_whose_initramfs_hands_the_kernel_a_signature_ask_for_the_program(repository: Path) -> None:
    asked = {
        name: "keyutils" in requested(load_board(repository / f"boards/{name}.yaml").value)["initramfs"]
        for name in ("qemu-aarch64", "qemu-aarch64-avb", "generic-uefi-arm64")
    }
    assert asked == {"qemu-aarch64": False, "qemu-aarch64-avb": True, "generic-uefi-arm64": True}
