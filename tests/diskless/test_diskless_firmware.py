# SPDX-License-Identifier: Apache-2.0
"""The file from which a diskless board with UEFI firmware starts: a signed kernel image."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from pe_sample import pe_file

from erofs_edge.boot.contents import init_values_of, unpack_initramfs
from erofs_edge.boot.cpio import read_cpio, write_cpio
from erofs_edge.boot.initramfs import InitConfig, compress
from erofs_edge.boot.uki import build_uki
from erofs_edge.diskless.place import Place, parse_place
from erofs_edge.diskless.start import Diskless, DisklessStart, board_lock, build_diskless
from erofs_edge.errors import ErofsEdgeError, FormatError, UsageError
from erofs_edge.manifest.load import load_board
from erofs_edge.sources.cache import Cache
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.trust.authenticode import verify_image
from erofs_edge.trust.certificate import self_signed
from erofs_edge.trust.measure import uki_sections
from erofs_edge.trust.signer import open_signer

BOARD = "boards/generic-uefi-arm64.yaml"
HASH = "5a" * 32
SYSTEM = parse_place("nbd://192.0.2.1/system")
HTTP = Place("http", "192.0.2.1", 80, "/x.efi", "http://192.0.2.1/x.efi")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The part of a build that a diskless start needs."""
    config = InitConfig(HASH, "aa", 4096, 100, 101, "system", ("a", "b"), "data", state="misc", signature=b"p7s")
    tree = FileTree()
    tree.add("config", Inode(stat.S_IFREG | 0o644, content=BytesContent(config.text().encode())))
    sections = {".initrd": compress(write_cpio(tree, epoch=0)) + bytes(4)}
    (tmp_path / "boot_a.efi").write_bytes(build_uki(pe_file({".text": b"stub"}), sections))
    (tmp_path / "sign.crt").write_bytes(self_signed(open_signer("dev:dev"), 1_700_000_000).pem)
    (tmp_path / "system.root-hash.p7s").write_bytes(b"p7s")
    return tmp_path


def _build(repository: Path, out: Path, **wishes: Any) -> DisklessStart:
    board = load_board(repository / BOARD)
    return build_diskless(
        board.value, board_lock(board.path, out), out, Diskless(SYSTEM, **wishes), open_signer("dev:dev"), Cache()
    )


def test_a_kernel_image_that_firmware_gets_for_itself(repository: Path, out: Path) -> None:
    made = _build(repository, out)
    assert (made.name, made.script, made.root_hash, made.keeps_data) == ("diskless.efi", "", HASH, False)
    key = open_signer("dev:dev")
    verify_image(made.image, key)
    sections = uki_sections(made.image)
    verify_image(sections[".linux"], key)
    board = load_board(repository / BOARD).value
    assert sections[".cmdline"].decode() == " ".join(board.boot.cmdline)
    values = init_values_of(sections[".initrd"])
    assert (values["ROOT_HASH"], values["SLOTS"]) == (HASH, "")
    assert values["VERITY_MODULE"] == "require_signatures=1 prefetch_cluster=65536"
    assert values["SYSTEM_FROM"].startswith("nbd hostname=192.0.2.1 port=10809 export=system ")
    members = {member.name.decode(): member.data for member in read_cpio(unpack_initramfs(sections[".initrd"]))}
    assert members["root-hash.p7s"] == b"p7s"
    assert {"bin/keyctl", "bin/nbdkit", "bin/nbd-client", "diskless"} <= set(members)
    assert _build(repository, out).image == made.image, "the same inputs give the same bytes"


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [({"keep": True}, "--keep works on boards with U-Boot only"), ({"boot_image": HTTP}, "--boot-image is for U-Boot")],
)
def test_what_only_boards_with_u_boot_can(repository: Path, out: Path, wishes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        _build(repository, out, **wishes)


def test_a_kernel_image_that_is_none(repository: Path, out: Path) -> None:
    (out / "boot_a.efi").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="not a PE file") as caught:
        _build(repository, out)
    assert caught.value.where == f"{out / 'boot_a.efi'}: offset 0x0"


@pytest.mark.parametrize("name", ["boot_a.efi", "sign.crt", "system.root-hash.p7s"])
def test_a_build_that_lacks_something(repository: Path, out: Path, name: str) -> None:
    (out / name).unlink()
    with pytest.raises(ErofsEdgeError, match="the build has no such file") as caught:
        _build(repository, out)
    assert caught.value.where is not None and caught.value.where.endswith(name)
