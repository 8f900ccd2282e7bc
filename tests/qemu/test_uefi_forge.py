# SPDX-License-Identifier: Apache-2.0
"""Forgeries for UEFI boards: good volumes, good PE files, and nothing wrong with them but the signature."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from uefi_sample import BOARD, ESP_SIZE, ROOT_HASH, outputs, write_esp

from erofs_edge.boot.contents import init_values_of
from erofs_edge.disk import slots
from erofs_edge.disk.layout import plan_disk, write_disk
from erofs_edge.errors import ErofsEdgeError, FormatError, UsageError
from erofs_edge.flash.image import Image
from erofs_edge.flash.update import read_layout
from erofs_edge.qemu.forge import Target
from erofs_edge.qemu.scratch import Scratch
from erofs_edge.qemu.tamper import TAMPERS, UEFI_TAMPERS, scenario
from erofs_edge.qemu.uefi import Esp
from erofs_edge.qemu.uefi_forge import in_section, root_hash, standing
from erofs_edge.trust import pe
from erofs_edge.trust.authenticode import verify_image
from erofs_edge.trust.key import KeySigner
from erofs_edge.verify.checks import Verdict
from erofs_edge.verify.esp import is_esp, verify_esp

KEY = KeySigner("product", generate_private_key(65537, 2048))
FILES = outputs(KEY).firmware_files
MESSAGES = {
    "kernel": "does not match the digest", "initramfs": "does not match the digest",
    "cmdline": "does not match the digest", "roothash": "does not match the digest", "signature": "does not match key",
    "wrong-key": "does not match key 'product'", "unsigned": "not signed", "truncated": "",
}  # fmt: skip


@pytest.fixture
def volume(tmp_path: Path) -> bytes:
    return write_esp(tmp_path / "esp.img", FILES)


def target(raw: bytes) -> Target:
    return Target(BOARD, lambda offset, length: raw[offset : offset + length])


def forged(raw: bytes, name: str) -> bytes:
    done = bytearray(raw)
    for change in UEFI_TAMPERS[name].changes(target(raw)):
        done[change.offset : change.offset + len(change.data)] = change.data
    return bytes(done)


def checked(raw: bytes) -> Verdict:
    verdict = Verdict()
    verify_esp(lambda offset, length: raw[offset : offset + length], len(raw), "esp", KEY, verdict)
    return verdict


def test_a_good_volume(volume: bytes) -> None:
    assert is_esp(lambda offset, length: volume[offset : offset + length], ESP_SIZE)
    assert checked(volume).ok
    assert len(checked(volume).checks) == 3


@pytest.mark.parametrize("name", MESSAGES)
def test_both_images_are_refused_for_the_reason_meant(volume: bytes, name: str) -> None:
    verdict = checked(forged(volume, name))
    assert [check.what.rpartition("/")[2] for check in verdict.failed] == [
        "erofs-edge-1-b+3.efi",
        "erofs-edge-2-a+3.efi",
    ]
    assert all(MESSAGES[name] in (check.error or "") for check in verdict.failed)


def test_the_boot_loader(volume: bytes) -> None:
    assert [check.what for check in checked(forged(volume, "loader")).failed] == ["esp: EFI/BOOT/BOOTAA64.EFI"]


def test_no_boot_loader(tmp_path: Path) -> None:
    others = {name: data for name, data in FILES.items() if name != "EFI/BOOT/BOOTAA64.EFI"}
    with pytest.raises(FormatError, match="has no such file"):
        forged(write_esp(tmp_path / "esp.img", others), "loader")


def test_forgeries_are_as_good_as_can_be(volume: bytes) -> None:
    raw = forged(volume, "roothash")
    esp = Esp(lambda offset, length: raw[offset : offset + length])
    for entry in esp.images().values():
        image = esp.content(entry)
        section = pe.parse(image).section(".initrd")
        assert section is not None
        assert init_values_of(pe.section_content(image, section))["ROOT_HASH"] not in ("", ROOT_HASH)
    raw = forged(volume, "cmdline")
    esp = Esp(lambda offset, length: raw[offset : offset + length])
    arguments = pe.parse(image := esp.content(next(iter(esp.images().values())))).section(".cmdline")
    assert arguments is not None
    assert pe.section_content(image, arguments).endswith(b" systemd.mask=edge-report.service")


def test_scenarios_of_a_board(volume: bytes) -> None:
    del volume
    assert set(TAMPERS) - set(UEFI_TAMPERS) == {"fit", "dtb", "downgrade-unseen"}
    assert scenario("loader", BOARD) is UEFI_TAMPERS["loader"]
    with pytest.raises(UsageError, match="nothing that 'dtb' could change"):
        scenario("dtb", BOARD)
    with pytest.raises(UsageError, match="unknown scenario 'nonsense'"):
        scenario("nonsense", BOARD)


def test_a_hash_of_which_a_part_is_a_copy() -> None:
    """LZ4 copies four digits that another number before it has; seen in a build by chance."""
    text = bytes(range(48, 112))
    assert standing(text, b"x" + text, text) == slice(0, 64)
    stream = text[:20] + b"\x04\x00\x20" + text[24:]
    assert standing(text, stream) == slice(24, 64)
    for spoilt in (b"", text + text, b"-".join(text[at : at + 8] for at in range(0, 64, 8))):
        with pytest.raises(FormatError, match="not found"):
            standing(text, spoilt)


def test_what_cannot_be_forged() -> None:
    image = FILES["EFI/BOOT/BOOTAA64.EFI"]
    with pytest.raises(FormatError, match=r"no section \.initrd"):
        root_hash(image)
    with pytest.raises(FormatError):
        in_section(".text")(b"MZ")


def test_another_slot_goes_first(tmp_path: Path, volume: bytes) -> None:
    del volume
    disk = tmp_path / "disk.img"
    write_disk(plan_disk(BOARD, {"esp": tmp_path / "esp.img"}, b"seed"), disk)
    with Scratch(disk, BOARD, writable=True) as scratch:
        assert scratch.next_slot() == "a"
        scratch.activate("b")
        assert scratch.next_slot() == "b"
        raw = scratch.read("esp", 0, ESP_SIZE)
        assert sorted(Esp(target(raw).read).entries) == [
            "EFI/BOOT/BOOTAA64.EFI", "EFI/Linux/erofs-edge-2-a+3.efi", "EFI/Linux/erofs-edge-3-b+3.efi",
        ]  # fmt: skip
        assert checked(raw).ok
        with pytest.raises(UsageError, match="no slot 'c'"):
            scratch.activate("c")


def test_flash_takes_such_a_disk_as_a_whole(tmp_path: Path, volume: bytes) -> None:
    del volume
    state = tmp_path / "slots.bin"
    state.write_bytes(slots.encode_state(slots.initial(["a", "b"])))
    for esp, expected in (("esp.img", None), ("other.img", ("a", "b"))):
        write_esp(tmp_path / "other.img", {"config.txt": b"x"})
        disk = tmp_path / "disk.img"
        write_disk(plan_disk(BOARD, {"esp": tmp_path / esp, "misc": state}, b"seed"), disk)
        with Image(disk) as image:
            layout = read_layout(image)
        assert (layout.slots if layout else None) == expected


def test_what_is_no_esp(tmp_path: Path) -> None:
    for raw in (bytes(4096), b"\xff" * 4096, write_esp(tmp_path / "x.img", {"config.txt": b"x"})):
        assert not is_esp(lambda offset, length, raw=raw: raw[offset : offset + length], len(raw))  # type: ignore[misc]


def test_anything_unsigned_on_it_fails(tmp_path: Path) -> None:
    raw = write_esp(tmp_path / "x.img", {**FILES, "loader/loader.conf": b"timeout 5\n"})
    (row,) = checked(raw).failed
    assert row.what == "esp: loader/loader.conf"
    assert "not a PE file" in (row.error or "")


def test_slots_and_arguments_must_fit(tmp_path: Path) -> None:
    from uefi_sample import initramfs

    raw = write_esp(tmp_path / "x.img", outputs(KEY, initramfs(CMDLINE="console=tty0")).firmware_files)
    assert all("other arguments" in (row.error or "") for row in checked(raw).failed)
    assert len(checked(raw).failed) == 2
    with pytest.raises(ErofsEdgeError):
        verify_image(b"", KEY)
