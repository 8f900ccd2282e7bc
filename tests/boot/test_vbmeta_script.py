# SPDX-License-Identifier: Apache-2.0
"""The initramfs's checks of vbmeta partitions, run by the host's shell; OpenSSL stands in for the kernel's keyring.

tests/qemu/test_avb_board.py uses the kernel itself.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from made_build import MIB

from erofs_edge.boot.vbmeta import Vbmeta
from erofs_edge.build.vbmeta import expected_vbmeta, write_vbmeta_images
from erofs_edge.errors import VerificationError
from erofs_edge.manifest.load import load_board
from erofs_edge.manifest.model import Board
from erofs_edge.qemu import forge_vbmeta
from erofs_edge.qemu.forge import Change, Target
from erofs_edge.trust.avb import verify_vbmeta, write_vbmeta
from erofs_edge.trust.certificate import self_signed
from erofs_edge.trust.key import KeySigner
from erofs_edge.verity.tree import VerityInfo

EPOCH = 1_700_000_000
VERITY = VerityInfo(bytes(range(32)), b"\xaa" * 32, bytes(16), 4096, 5000, 5000 * 4096, 5001, 5100 * 4096)
OTHER_SYSTEM = replace(VERITY, root_hash=bytes(32))
KEY = KeySigner("product", rsa.generate_private_key(65537, 2048))
NAMES = ("vbmeta", "vbmeta_system")
HEAD = """
set -u
disk=/sys/block/vda slot=b
fail() { echo "FAILED $1: $2"; exit 1; }
find_partition() { [ "$2" = "$disk" ] && partition=x/$1 && [ -e "$ROOT/dev/$1" ]; }
"""
KEYCTL = """#!/bin/sh
case $1 in
padd) [ "$2" = asymmetric ] && cat >"$ROOT/loaded" && echo 77 ;;
pkey_verify)
    [ "$2 $3 $6 $7" = "77 0 enc=pkcs1 hash=sha256" ] && exec "$OPENSSL" pkeyutl -verify -certin -inkey "$ROOT/loaded" \\
        -pkeyopt digest:sha256 -in "$4" -sigfile "$5" ;;
esac
"""


@dataclass
class Slot:
    """Both partitions of slot b, and what the script needs to run."""

    root: Path
    board: Board
    openssl: str

    def check(self, expected: Vbmeta) -> str:
        """Run the check. Return the console's output, '' if everything is correct."""
        files = expected.files()
        (self.root / "vbmeta-key").write_bytes(files["vbmeta-key"])
        script = HEAD + files["vbmeta"].decode()
        script = re.sub(r"(?<![\w$}*/])/(?=vbmeta-|dev/|bin/)", "$ROOT/", script)
        environment = {"ROOT": str(self.root), "OPENSSL": self.openssl, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            ["/bin/sh", "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.stderr == ""
        assert (done.returncode == 0) == (done.stdout == "")
        return done.stdout.strip()

    def image(self, name: str) -> Path:
        return self.root / f"dev/{name}_b"

    def change(self, name: str, changes: list[Change]) -> None:
        with self.image(name).open("r+b") as file:
            for change in changes:
                file.seek(change.offset)
                file.write(change.data)

    def target(self, name: str) -> Target:
        raw = self.image(name).read_bytes()
        return Target(self.board, lambda offset, length: raw[offset : offset + length])


def made(root: Path, board: Board, verity: VerityInfo, signer: KeySigner = KEY) -> Vbmeta:
    """Write the images of a build. Return what its initramfs expects."""
    (root / "boot.fit").write_bytes(b"a boot image")
    for path in write_vbmeta_images(board, "system", verity, signer, root):
        (root / f"dev/{path.stem}_b").write_bytes(path.read_bytes().ljust(MIB, b"\0"))
    found = expected_vbmeta(board, "system", verity, signer, self_signed(signer, EPOCH))
    assert found is not None
    return found


@pytest.fixture
def slot(repository: Path, tmp_path: Path, oracle: Callable[[str], str]) -> Slot:
    for folder in ("dev", "bin"):
        (tmp_path / folder).mkdir()
    keyctl = tmp_path / "bin/keyctl"
    keyctl.write_text(KEYCTL)
    keyctl.chmod(0o755)
    return Slot(tmp_path, load_board(repository / "boards/qemu-aarch64-avb.yaml").value, oracle("openssl"))


def test_a_build_passes_its_own_check(slot: Slot) -> None:
    assert slot.check(made(slot.root, slot.board, VERITY)) == ""
    large = KeySigner("large", rsa.generate_private_key(65537, 4096))
    assert slot.check(made(slot.root, slot.board, VERITY, large)) == ""


def test_one_partition_for_all_slots_and_all_in_one(slot: Slot) -> None:
    partitions = {name: one for name, one in slot.board.disk.partitions.items() if name != "vbmeta_system"}
    partitions["vbmeta"] = msgspec.structs.replace(partitions["vbmeta"], slots=[])
    disk = msgspec.structs.replace(slot.board.disk, partitions=partitions)
    slot.board = msgspec.structs.replace(slot.board, disk=disk)
    expected = made(slot.root, slot.board, VERITY)
    assert slot.check(expected) == "FAILED vbmeta: no partition is labelled 'vbmeta'"
    slot.image("vbmeta").rename(slot.root / "dev/vbmeta")
    assert slot.check(expected) == ""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("forgery", "reason"),
    [
        (forge_vbmeta.descriptor, "the signature of {} does not match: "),
        (forge_vbmeta.switched_off, "the header of {} is not that of this build"),
        (forge_vbmeta.in_signature, "the signature of {} does not match: "),
        (forge_vbmeta.other_key, "the signature of {} does not match: "),
    ],
)
def test_a_forgery_is_named(slot: Slot, name: str, forgery: Callable[[Target], list[Change]], reason: str) -> None:
    expected = made(slot.root, slot.board, VERITY)
    slot.change(name, forgery(slot.target(name)))
    assert slot.check(expected).startswith(f"FAILED vbmeta: {reason.format(f'{name}_b')}")


def test_every_byte_that_is_signed_counts(slot: Slot) -> None:
    expected = made(slot.root, slot.board, VERITY)
    for name, one in zip(NAMES, expected.partitions, strict=True):
        before = slot.image(name).read_bytes()
        for place, reason in (
            (0, "the header of {} is not"), (255, "the header of {} is not"), (256, "{} does not match its digest"),
            (287, "{} does not match its digest"), (288, "the signature of {} does not"),
            (288 + one.signature - 1, "the signature of {} does not"),
            (256 + one.authentication, "{} does not match its digest"),
            (256 + one.authentication + one.auxiliary - 1, "{} does not match its digest"),
        ):  # fmt: skip
            slot.change(name, [Change(place, bytes([before[place] ^ 1]), "a bit")])
            assert slot.check(expected).startswith(f"FAILED vbmeta: {reason.format(f'{name}_b')}"), (name, place)
            slot.change(name, [Change(place, before[place : place + 1], "as it was")])
    assert slot.check(expected) == ""


def test_what_the_same_key_has_signed_for_another_build(slot: Slot) -> None:
    made(slot.root, slot.board, OTHER_SYSTEM)
    expected = expected_vbmeta(slot.board, "system", VERITY, KEY, self_signed(KEY, EPOCH))
    assert expected is not None
    reason = "vbmeta_system_b describes another system than that of this build"
    assert slot.check(expected) == f"FAILED vbmeta: {reason}"
    made(slot.root, slot.board, VERITY)
    meta = verify_vbmeta(slot.image("vbmeta").read_bytes(), KEY)
    older = write_vbmeta(replace(meta, rollback_index=7), KEY)
    slot.change("vbmeta", [Change(0, older, "another version")])
    assert slot.check(expected) == "FAILED vbmeta: the header of vbmeta_b is not that of this build"


def test_a_blank_or_cut_partition(slot: Slot) -> None:
    expected = made(slot.root, slot.board, VERITY)
    for content, reason in ((bytes(MIB), "the header of"), (b"", "the header of")):
        slot.image("vbmeta").write_bytes(content)
        assert slot.check(expected) == f"FAILED vbmeta: {reason} vbmeta_b is not that of this build"


def test_the_forgeries_are_as_good_as_they_can_be(slot: Slot) -> None:
    """All but the signature of the right key is consistent, as another reader confirms."""
    made(slot.root, slot.board, VERITY)
    raw = slot.image("vbmeta").read_bytes()
    for forgery, why in (
        (forge_vbmeta.descriptor, "the signature of the vbmeta image does not match"),
        (forge_vbmeta.switched_off, "the signature of the vbmeta image does not match"),
        (forge_vbmeta.in_signature, "the signature of the vbmeta image does not match"),
        (forge_vbmeta.other_key, "signed by another key"),
    ):
        slot.image("vbmeta").write_bytes(raw)
        slot.change("vbmeta", forgery(slot.target("vbmeta")))
        with pytest.raises(VerificationError, match=why):
            verify_vbmeta(slot.image("vbmeta").read_bytes(), KEY)
