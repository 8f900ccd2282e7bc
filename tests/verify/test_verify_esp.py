# SPDX-License-Identifier: Apache-2.0
"""`verify` of a disk whose slots start from an EFI system partition: from each signature to the last block."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixed_key import fixed_key
from made_build import Made, make_build
from uefi_sample import BOARD, initramfs, outputs, write_esp

from erofs_edge.disk import rollback, slots
from erofs_edge.disk.layout import plan_disk, write_disk
from erofs_edge.trust.key import KeySigner
from erofs_edge.verify.checks import Verdict
from erofs_edge.verify.path import verify_path

KEY = fixed_key(1, "product")
OTHER = fixed_key(2, "product")
A, B = "esp: EFI/Linux/erofs-edge-2-a+3.efi", "esp: EFI/Linux/erofs-edge-1-b+3.efi"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_build(tmp_path_factory.mktemp("made") / "out", KEY)


def disk_of(made: Made, folder: Path, *, minimum: int = 0, signer: KeySigner = KEY, **values: str) -> Path:
    """A disk of the UEFI board with the made system in both slots."""
    v = made.verity
    boots = {
        "ROOT_HASH": v.root_hash.hex(), "SALT": v.salt.hex(), "DATA_BLOCKS": str(v.data_blocks),
        "HASH_START": str(v.hash_start_block),
    } | values  # fmt: skip
    write_esp(folder / "esp.img", outputs(signer, initramfs(**boots)).firmware_files)
    state = slots.encode_state(slots.initial(["a", "b"]))
    (folder / "slots.bin").write_bytes(rollback.with_minimum(state, minimum))
    system = made.out / "system.img"
    contents = {"esp": folder / "esp.img", "system_a": system, "system_b": system, "misc": folder / "slots.bin"}
    write_disk(plan_disk(BOARD, contents, b"seed"), folder / "disk.img")
    return folder / "disk.img"


def failed(verdict: Verdict) -> dict[str, str]:
    return {check.what: check.error or "" for check in verdict.failed}


def test_a_whole_disk_passes(made: Made, tmp_path: Path) -> None:
    verdict = verify_path(disk_of(made, tmp_path, minimum=7), KEY)
    assert verdict.ok, failed(verdict)
    rows = {check.what: check.digest for check in verdict.checks}
    assert rows["system_a: tree"] == rows["system_b: tree"] == made.verity.root_hash.hex()
    assert {A, B, f"{A}: version", "esp: EFI/BOOT/BOOTAA64.EFI", "system_b: file system"} <= rows.keys()


def test_another_key(made: Made, tmp_path: Path) -> None:
    found = failed(verify_path(disk_of(made, tmp_path), OTHER))
    # nothing vouches for the systems then
    assert {A, B, "esp: EFI/BOOT/BOOTAA64.EFI", "system_a", "system_b"} <= found.keys()


def test_an_older_version_than_the_disk_has_seen(made: Made, tmp_path: Path) -> None:
    found = failed(verify_path(disk_of(made, tmp_path, minimum=8), KEY))
    assert found.keys() == {f"{A}: version", f"{B}: version"}
    assert all("older than the minimum of 8" in text for text in found.values())


@pytest.mark.parametrize(
    ("values", "what", "message"),
    [({"ROOT_HASH": "00" * 32}, "system_a: tree", "does not match"),
     ({"SYSTEM": "nothing"}, "nothing_a", "not there"),
     ({"DATA_BLOCKS": "0x"}, f"{A}: root hash", "are inconsistent")],
)  # fmt: skip
def test_what_an_image_opens_must_be_there(
    made: Made, tmp_path: Path, values: dict[str, str], what: str, message: str
) -> None:
    found = failed(verify_path(disk_of(made, tmp_path, **values), KEY))
    assert any(message in text for text in found.values()), found
    assert what in found


def test_a_program_alone(tmp_path: Path) -> None:
    for name, data in outputs(KEY).outputs().items():
        path = tmp_path / name
        path.write_bytes(data)
        if name.endswith(".efi"):
            assert verify_path(path, KEY).ok
            assert "does not match key" in failed(verify_path(path, OTHER))[name]
            path.write_bytes(data[:-600])
            assert not verify_path(path, KEY).ok
