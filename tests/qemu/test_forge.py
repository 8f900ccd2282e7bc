# SPDX-License-Identifier: Apache-2.0
"""Forgeries are as good as they can be: everything fits again but what a key has signed."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.boot.fdt import parse, string
from erofs_edge.boot.fit import CONFIGURATION_PATH, ROLLBACK_INDEX, SIGNATURE_PATH, Image, build_fit, verify_fit
from erofs_edge.boot.initramfs import compress
from erofs_edge.disk import rollback
from erofs_edge.erofs.check import check
from erofs_edge.errors import FormatError, VerificationError
from erofs_edge.manifest.model import Board
from erofs_edge.qemu import forge
from erofs_edge.qemu.forge import Change, Target
from erofs_edge.trust.signer import KeySigner
from erofs_edge.verity.fec import Places
from erofs_edge.verity.repair import repair
from erofs_edge.verity.tree import verify

ROOT = bytes.fromhex("d47b0f0a57c52bda6b5d2c548d0390cdf0f33446fa374beac7326eadb6a4f58c")


def target(path: Path, board: Board) -> Target:
    raw = path.read_bytes().ljust(1 << 20, b"\0")
    return Target(board, lambda offset, length: raw[offset : offset + length])


def apply(path: Path, changes: list[Change]) -> bytes:
    raw = bytearray(path.read_bytes().ljust(1 << 20, b"\0"))
    for change in changes:
        raw[change.offset : change.offset + len(change.data)] = change.data
    return bytes(raw)


def forged(built: Path, board: Board, change: Callable[[Target], list[Change]]) -> bytes:
    return apply(built / "boot.fit", change(target(built / "boot.fit", board)))


def test_another_root_hash_fits_the_fit_but_not_the_signature(
    built: Path, board: Board, rsa_key: RSAPrivateKey
) -> None:
    fit = forged(built, board, forge.root_hash)
    node = parse(fit).root.at("/images/ramdisk")
    assert node is not None
    archive = forge.unpack_lz4(node.props["data"])
    assert archive.count(b"ROOT_HASH='") == 20
    assert ROOT.hex().encode() not in archive
    with pytest.raises(VerificationError, match="signature"):
        verify_fit(fit, rsa_key.public_key())


def test_another_key_signs_properly_under_the_same_name(built: Path, board: Board, rsa_key: RSAPrivateKey) -> None:
    key = generate_private_key(65537, 2048)
    fit = forged(built, board, lambda it: forge.resigned(it, key))
    verify_fit(fit, key.public_key())
    with pytest.raises(VerificationError, match="signature"):
        verify_fit(forged(built, board, forge.other_key), rsa_key.public_key())
    old = parse((built / "boot.fit").read_bytes()).root.at(SIGNATURE_PATH)
    new = parse(fit).root.at(SIGNATURE_PATH)
    assert old is not None and new is not None
    assert {name for name in old.props if old.props[name] != new.props[name]} == {"value"}


def test_without_a_signature_nothing_else_is_changed(built: Path, board: Board, rsa_key: RSAPrivateKey) -> None:
    fit = forged(built, board, forge.unsigned)
    with pytest.raises(VerificationError, match="not signed"):
        verify_fit(fit, rsa_key.public_key())
    old, new = parse((built / "boot.fit").read_bytes()).root, parse(fit).root
    assert new.at("/images") == old.at("/images")


def test_a_device_tree_slipped_in_is_hashed_and_listed(built: Path, board: Board, rsa_key: RSAPrivateKey) -> None:
    fit = forged(built, board, forge.device_tree)
    conf = parse(fit).root.at(CONFIGURATION_PATH)
    assert conf is not None
    assert conf.props["fdt"] == string("fdt")
    with pytest.raises(VerificationError, match="signature"):
        verify_fit(fit, rsa_key.public_key())


def test_a_device_tree_that_is_there_is_changed(
    built: Path, board: Board, rsa_key: RSAPrivateKey, tmp_path: Path
) -> None:
    images = {
        "kernel": Image("kernel_noload", b"k" * 500, "kernel"),
        "ramdisk": Image("ramdisk", b"r" * 90, "ramdisk"),
        "fdt": Image("flat_dt", b"d" * 99, "tree"),
    }
    path = tmp_path / "boot.fit"
    path.write_bytes(build_fit(images, description="lab", epoch=0, signer=KeySigner("dev", rsa_key)))
    fit = apply(path, forge.device_tree(target(path, board)))
    node = parse(fit).root.at("/images/fdt")
    assert node is not None
    assert (len(node.props["data"]), node.props["data"].count(b"d")) == (99, 98)
    with pytest.raises(VerificationError, match="signature"):
        verify_fit(fit, rsa_key.public_key())


def test_a_truncated_fit_is_malformed(built: Path, board: Board, rsa_key: RSAPrivateKey) -> None:
    with pytest.raises(FormatError):
        verify_fit(forged(built, board, forge.truncated), rsa_key.public_key())


def test_the_version_is_signed(built: Path, rsa_key: RSAPrivateKey) -> None:
    fit = (built / "boot.fit").read_bytes()
    at = fit.index(b"0\0\0\0", fit.index(struct.pack(">2I", 3, 2)))
    assert parse(fit).root.props[ROLLBACK_INDEX] == b"0\0"
    with pytest.raises(VerificationError, match="signature"):
        verify_fit(fit[:at] + b"9" + fit[at + 1 :], rsa_key.public_key())


def test_the_minimum_is_one_more_than_the_version(built: Path, board: Board) -> None:
    raw = apply(built / "state", forge.raise_minimum(target(built / "state", board)))
    assert rollback.decode(raw) == board.sign.rollback_index + 1


@pytest.mark.parametrize(
    "change", [forge.in_first_block, forge.in_superblock, forge.in_hash_tree, forge.in_init, forge.other_system]
)
def test_the_system_is_damaged_beyond_repair(
    built: Path, board: Board, tmp_path: Path, change: Callable[[Target], list[Change]]
) -> None:
    root = (built / "system.root").read_bytes()
    changed = tmp_path / "system.img"
    raw = apply(built / "system.img", change(target(built / "system.img", board)))
    changed.write_bytes(raw[: (built / "system.img").stat().st_size])
    sb, at = forge.verity_area(target(built / "system.img", board))
    assert not verify(changed, root, hash_offset=at).ok
    assert not repair(Places(changed, changed, hash_offset=at, fec_offset=sb.end(at)), root).ok


def test_another_system_is_whole_in_itself(built: Path, board: Board, tmp_path: Path) -> None:
    changed = tmp_path / "system.img"
    changed.write_bytes(apply(built / "system.img", forge.other_system(target(built / "system.img", board))))
    assert check(changed).ok
    # the top block is consistent with all below it, so its own hash is the root that the other build would have
    sb, at = forge.verity_area(target(built / "system.img", board))
    state = sb.salted()
    state.update(changed.read_bytes()[sb.start_block(at) * 4096 :][:4096])
    assert verify(changed, state.digest(), hash_offset=at).ok
    assert state.digest() != (built / "system.root").read_bytes()


def test_what_is_repairable_is_repaired(built: Path, board: Board, tmp_path: Path) -> None:
    root = (built / "system.root").read_bytes()
    changed = tmp_path / "system.img"
    sb, at = forge.verity_area(target(built / "system.img", board))
    raw = apply(built / "system.img", forge.repairable(target(built / "system.img", board)))
    changed.write_bytes(raw[: (built / "system.img").stat().st_size])
    assert not verify(changed, root, hash_offset=at).ok
    assert repair(Places(changed, changed, hash_offset=at, fec_offset=sb.end(at)), root).ok
    assert changed.read_bytes() == (built / "system.img").read_bytes()


def test_one_more_argument_in_every_slot() -> None:
    script = 'x; setenv bootargs "quiet"; y; setenv bootargs "quiet"'
    assert forge.add_argument(script).count(f'"{forge.EXTRA} quiet"') == 2


@given(st.binary(max_size=5000))
def test_lz4_round_trip(data: bytes) -> None:
    assert forge.unpack_lz4(compress(data)) == data


@given(st.binary(max_size=200))
def test_hostile_lz4(data: bytes) -> None:
    for raw in (data, struct.pack("<I", forge.LZ4_LEGACY_MAGIC) + data):
        with contextlib.suppress(FormatError):
            forge.unpack_lz4(raw)
