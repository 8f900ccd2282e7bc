# SPDX-License-Identifier: Apache-2.0
"""What UEFI firmware starts: everything is signed, the slot is in name and arguments, the keys are in the variables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import given
from hypothesis import strategies as st
from uefi_sample import BOARD, EPOCH, initramfs, outputs

from erofs_edge.boot.contents import init_values_of
from erofs_edge.boot.uefi import (
    IMAGES,
    LOADER_PATH,
    ImageName,
    UefiParts,
    activated,
    build_uefi,
    choose,
    parse_name,
)
from erofs_edge.boot.uefi_vars import read_store
from erofs_edge.errors import FormatError, ManifestError, UsageError
from erofs_edge.trust import pe
from erofs_edge.trust.authenticode import verify_image
from erofs_edge.trust.certificate import self_signed
from erofs_edge.trust.key import KeySigner, public_key_pem, read_public_key
from erofs_edge.trust.offline import SignaturesMissingError, attach, waiting
from erofs_edge.trust.signer import open_signer

KEY = KeySigner("product", generate_private_key(65537, 2048))
NAMES = st.builds(
    ImageName, st.sampled_from("abc"), st.integers(0, 999), st.none() | st.integers(0, 9), st.integers(0, 9)
).map(lambda name: replace(name, done=0) if name.left is None else name)


def section(image: bytes, name: str) -> bytes:
    found = pe.parse(image).section(name)
    assert found is not None
    return pe.section_content(image, found)


def test_everything_is_signed_and_says_its_slot() -> None:
    made = outputs(KEY)
    paths = [LOADER_PATH, f"{IMAGES}/erofs-edge-2-a+3.efi", f"{IMAGES}/erofs-edge-1-b+3.efi"]
    assert list(made.firmware_files) == paths
    for data in made.firmware_files.values():
        verify_image(data, KEY)
    for path, slot in zip(paths[1:], "ab", strict=True):
        image = made.firmware_files[path]
        assert section(image, ".cmdline") == f"console=ttyAMA0 panic=-1 erofs_edge.slot={slot}".encode()
        assert b"lab-uefi, edge, slot " + slot.encode() in section(image, ".osrel")
        # the inner kernel too: U-Boot's EFI checks it
        verify_image(section(image, ".linux"), KEY)
        assert section(image, ".initrd").startswith(initramfs())
        assert init_values_of(section(image, ".initrd"))["ROLLBACK_INDEX"] == "7"
    keys = {variable.name: variable.data for variable in read_store(made.variables)}
    certificate = self_signed(KEY, EPOCH).der
    assert all(certificate in keys[name] for name in ("PK", "KEK", "db"))
    assert made.code == b"code"
    assert sorted(made.outputs()) == ["boot_a.efi", "boot_b.efi", "systemd-boot.efi", "uefi-code.fd", "uefi-vars.fd"]


def test_the_same_inputs_give_the_same_bytes() -> None:
    assert outputs(KEY) == outputs(KEY)


def test_the_archive_has_an_end() -> None:
    """The kernel reads on after LZ4's legacy frame, where the stub appends its data: a length of 0 stops it."""
    for archive in (initramfs(), initramfs(SYSTEM="rootfs"), initramfs(SYSTEM="systems")):
        data = section(outputs(KEY, archive).firmware_files[f"{IMAGES}/erofs-edge-1-b+3.efi"], ".initrd")
        filler = data[len(archive) :]
        assert len(filler) >= 4
        assert not any(filler)
        assert len(data) % 4 == 0


def test_a_board_without_its_section() -> None:
    bare = msgspec.structs.replace(BOARD, boot=msgspec.structs.replace(BOARD.boot, uefi=None))
    with pytest.raises(ManifestError, match=r"no boot\.uefi section"):
        build_uefi(
            bare, {}, UefiParts(b"", "", b"", "", []), signer=KEY, certificate=self_signed(KEY, EPOCH), epoch=EPOCH
        )


def test_a_key_elsewhere_gets_its_digests_a_layer_at_a_time(tmp_path: Path) -> None:
    public, folder = tmp_path / "product.pem", tmp_path / "requests"
    public.write_bytes(public_key_pem(KEY))
    offline = open_signer(f"offline:{folder}?public-key={public}")
    certificate = self_signed(KEY, EPOCH)
    # kernel and boot loader, then the images that contain the signed kernel
    for _ in range(2):
        with pytest.raises(SignaturesMissingError):
            outputs(offline, certificate=certificate)
        digests = [bytes.fromhex(text) for text in waiting(folder)]
        assert len(digests) == 2
        attach(folder, read_public_key(public, "product"), [KEY.sign_digest(digest) for digest in digests])
    assert outputs(offline, certificate=certificate) == outputs(KEY)


@given(NAMES)
def test_names_are_read_back(name: ImageName) -> None:
    assert parse_name(str(name)) == name
    assert parse_name(str(name).upper()) == name


@pytest.mark.parametrize("name", ["", "linux.efi", "erofs-edge-1-a", "erofs-edge-x-a.efi", "erofs-edge-1-a+.efi"])
def test_other_names(name: str) -> None:
    assert parse_name(name) is None


def test_which_slot_starts() -> None:
    a, b = ImageName("a", 2, 3), ImageName("b", 1, 3)
    assert choose([a, b]) == choose([b, a]) == a
    assert choose([replace(a, left=0, done=3), b]) == b
    assert choose([replace(a, left=None), b]).slot == "a"
    # none has attempts left: the board tries nevertheless
    assert choose([replace(a, left=0), replace(b, left=0)]).slot == "a"
    with pytest.raises(FormatError, match="no kernel image"):
        choose([])


@given(st.lists(NAMES, min_size=1, max_size=3, unique_by=lambda name: name.slot), st.data())
def test_an_activated_slot_starts_next(names: list[ImageName], data: st.DataObject) -> None:
    slot = data.draw(st.sampled_from(names)).slot
    change = activated(names, slot)
    after = [change.get(name, name) for name in names]
    assert choose(after).slot == slot
    assert choose(after).left == 3
    with pytest.raises(UsageError, match="slot 'z'"):
        activated(names, "z")
