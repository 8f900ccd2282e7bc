# SPDX-License-Identifier: Apache-2.0
"""A baseline and a profile as inputs of a board's build."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from test_kernel_gate import with_manifest

from erofs_edge.build.baseline import layout_notes
from erofs_edge.build.inputs import digest, gather
from erofs_edge.build.pipeline import BuildOptions, build_board
from erofs_edge.build.salt import inherited_salt, salt_of
from erofs_edge.build.stages import erofs_options
from erofs_edge.erofs.profile import read_profile
from erofs_edge.erofs.write import write_image
from erofs_edge.errors import ManifestError, SourceError, UsageError
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.verity.fec import Places, write_parity
from erofs_edge.verity.tree import VerityInfo, append


def test_words_of_the_manifest(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "old.img").write_bytes(b"old")
    (tmp_path / "boot.profile").write_text("/usr/lib/systemd/systemd\n")
    options = erofs_options(with_manifest(repository, tmp_path, "  baseline: old.img\n  profile: boot.profile\n"))
    assert options.baseline == tmp_path / "old.img"
    assert options.profile == read_profile(tmp_path / "boot.profile")


def test_rules_that_are_about_no_file_are_told_with_their_place(repository: Path, tmp_path: Path) -> None:
    rules = "  rules:\n    - {match: '*.gz', compression: none}\n    - {match: '*.sow', compression: lz4}\n"
    inputs = with_manifest(repository, tmp_path, rules)
    tree = FileTree()
    tree.add("usr/a.gz", Inode(0o100644, content=BytesContent(b"x")))
    info = write_image(tree, tmp_path / "i", erofs_options(inputs).replaced(kernel=None))
    (note,) = layout_notes(inputs, info, tree)
    assert note.startswith(str(tmp_path)) and note.endswith(": *.sow matches no file of this system")


def test_options_win_and_contents_are_in_the_digest(repository: Path, tmp_path: Path) -> None:
    board = repository / "boards/qemu-aarch64.yaml"
    without = digest(gather(board), b"key")
    image, profile = tmp_path / "a.img", tmp_path / "a.profile"
    image.write_bytes(b"1")
    profile.write_text("/x\n")
    first = gather(board, baseline=image, profile=profile)
    assert first.system.loaded.value.erofs.baseline == str(image)
    found = {without, digest(first, b"key"), digest(gather(board, baseline=image), b"key")}
    moved = tmp_path / "b.img"
    shutil.copy(image, moved)
    assert digest(gather(board, baseline=moved), b"key") in found
    image.write_bytes(b"2")
    found.add(digest(gather(board, baseline=image, profile=profile), b"key"))
    profile.write_text("/y\n")
    found.add(digest(gather(board, baseline=image, profile=profile), b"key"))
    assert len(found) == 5


def test_baselines_that_cannot_be(repository: Path, tmp_path: Path) -> None:
    board = repository / "boards/qemu-aarch64.yaml"
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(SourceError, match=r"no system\.img in this folder"):
        erofs_options(gather(board, baseline=folder))
    (folder / "system.img").write_bytes(b"image")
    (folder / "release.json").write_text(json.dumps({"format": 1, "board": "rpi4"}))
    for given in (folder, folder / "system.img"):
        with pytest.raises(ManifestError, match="built for board 'rpi4', this build is for 'qemu-aarch64'") as caught:
            build_board(board, BuildOptions(tmp_path / "new", baseline=given))
        assert caught.value.hint
    with pytest.raises(SourceError, match="cannot read"):
        digest(gather(board, profile=tmp_path / "none"), b"key")


def test_an_unchanged_system_keeps_every_block(stock: Callable[[str], Path], repository: Path, tmp_path: Path) -> None:
    old = stock("qemu-aarch64")
    profile = tmp_path / "boot.profile"
    profile.write_text("/etc/hostname\n/not/here\n")
    board = repository / "boards/qemu-aarch64.yaml"
    options = BuildOptions(tmp_path / "out", relock=True, baseline=old, profile=profile)
    made = build_board(board, options)
    assert (tmp_path / "out/system.img").read_bytes() == (old / "system.img").read_bytes()
    layout = made.record["system"]
    assert (layout["baseline"]["changed"], layout["profile"]["unmatched"]) == (0, 1)
    record = json.loads((old / "release.json").read_text())
    assert layout["baseline"]["sha256"] == record["files"]["system.img"]["sha256"]
    assert any("0 of the" in note for note in made.notes)
    again = build_board(board, options)
    assert not again.fresh


def test_another_compression_is_refused(stock: Callable[[str], Path], repository: Path, tmp_path: Path) -> None:
    from erofs_edge.erofs.write import write_image
    from erofs_edge.tree import FileTree

    inputs = with_manifest(
        repository, tmp_path, "  compression: zstd\n  baseline: " + str(stock("qemu-aarch64")) + "\n"
    )
    with pytest.raises(UsageError, match="another compression") as caught:
        write_image(FileTree(), tmp_path / "new.img", erofs_options(inputs))
    assert caught.value.hint


def test_an_update_keeps_the_salt_of_its_line(repository: Path, tmp_path: Path) -> None:
    """So hash blocks over unchanged data stay the same: of 300 blocks one changes, and with it its own hash block."""
    import stat

    from erofs_edge.erofs import build
    from erofs_edge.tree import BytesContent, FileTree, Inode

    def image(name: str, second: bytes, salt: bytes | None = None, **options: Path) -> tuple[Path, VerityInfo]:
        tree, path = FileTree(), tmp_path / name
        for file, data in {"a": bytes(range(256)) * 16 * 299, "b": second * 4096}.items():
            tree.add(file, Inode(stat.S_IFREG | 0o644, content=BytesContent(data)))
        build(tree, path, compression="none", epoch=1, **options)
        return path, append(path, salt=salt)

    old, first = image("old.img", b"1")
    write_parity(Places(old, old, roots=2, fec_offset=first.size), first.superblock)
    inputs = gather(repository / "boards/qemu-aarch64.yaml", baseline=old)
    salt = inherited_salt(inputs)
    assert salt == first.salt == salt_of(inputs)
    new, second = image("new.img", b"2", salt, baseline=old)
    assert (second.salt, second.hash_offset) == (first.salt, first.hash_offset)
    assert second.root_hash != first.root_hash
    trees = [path.read_bytes()[first.hash_offset : first.size] for path in (old, new)]
    leaves = [{tree[at : at + 4096] for at in range(8192, len(tree), 4096)} for tree in trees]
    assert len(leaves[0] & leaves[1]) >= len(leaves[0]) - 2 > 0
    other, third = image("other.img", b"2", baseline=old)
    assert third.salt != first.salt and not leaves[0] & {
        other.read_bytes()[at : at + 4096] for at in range(first.hash_offset, first.size, 4096)
    }


def test_a_salt_that_is_known_before_the_image(repository: Path, tmp_path: Path) -> None:
    """It follows from manifest and locks; a baseline's own takes precedence, a profile has no influence."""
    board = repository / "boards/qemu-aarch64.yaml"
    inputs = gather(board)
    salt = salt_of(inputs)
    assert len(salt) == 32 and salt == salt_of(gather(board))
    (tmp_path / "profile").write_text("/x\n")
    assert salt == salt_of(gather(board, profile=tmp_path / "profile"))
    older = replace(inputs, lock=msgspec.structs.replace(inputs.lock, date=inputs.lock.date - 1))
    found = {salt, salt_of(older), salt_of(gather(repository / "boards/rpi4.yaml"))}
    found.add(salt_of(with_manifest(repository, tmp_path, "  compression: zstd\n")))
    assert len(found) == 4
    old = tmp_path / "old.img"
    old.write_bytes(bytes(4096))
    assert salt_of(gather(board, baseline=old)) == salt, "it has no tree"


@pytest.mark.parametrize("kind", ["without a tree", "no image", "cut off"])
def test_a_baseline_that_has_no_salt(kind: str, repository: Path, tmp_path: Path) -> None:
    from erofs_edge.erofs import build
    from erofs_edge.tree import FileTree

    path = tmp_path / "old.img"
    build(FileTree(), path, compression="none", epoch=1)
    if kind == "cut off":
        append(path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "no image":
        path.write_bytes(b"no image" * 1000)
    assert inherited_salt(gather(repository / "boards/qemu-aarch64.yaml", baseline=path)) is None
