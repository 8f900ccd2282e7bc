# SPDX-License-Identifier: Apache-2.0
"""The script of a U-Boot that acts as UEFI firmware, run by a model of its shell."""

from __future__ import annotations

import pytest
from hush import Machine, Stop

from erofs_edge.boot.uefi import ImageName
from erofs_edge.boot.uefi_script import uefi_script
from erofs_edge.errors import ManifestError
from erofs_edge.manifest.model import Board, Boot, Disk, Partition
from erofs_edge.qemu.u_boot_uefi import programs

ESP = {"boot": Partition(size="64K"), "esp": Partition(size="1M", content="esp")}
A, B = ImageName("a", 2, 3), ImageName("b", 1, 3)


class Firmware(Machine):
    """A machine with files on its EFI system partition; `bootefi` accepts those that begin with GOOD."""

    files: dict[str, bytes]

    def do_part(self, action: str, storage: str, device: str, name: str, variable: str) -> bool:
        assert (action, storage, device) == ("number", self.storage, "0")
        if name == "esp":
            self.env[variable] = "2"
        return name == "esp"

    def do_load(self, storage: str, place: str, address: str, path: str, limit: str) -> bool:
        assert (storage, place) == (self.storage, "0:2") and int(limit, 16) == 1 << 20
        if path not in self.files:
            return False
        self.memory[int(address, 16)] = self.files[path]
        return True

    def do_bootefi(self, address: str, tree: str) -> bool:
        assert tree == self.env["fdtcontroladdr"]
        if self.memory[int(address, 16)].startswith(b"GOOD"):
            self.booted = (self.memory[int(address, 16)].decode(),)
            raise Stop
        return False


def board(**boot: object) -> Board:
    return Board(board="lab", disk=Disk(partitions=ESP), boot=Boot(chain="uefi-uki", **boot))  # type: ignore[arg-type]


def run(files: dict[str, bytes], images: list[ImageName], storage: str = "virtio") -> Firmware:
    machine = Firmware(bytearray(512), {}, lambda loaded: False, storage=storage)
    machine.files = files
    machine.run(uefi_script(board(storage=storage), programs(images)))
    return machine


@pytest.mark.parametrize("storage", ["virtio", "mmc"])
def test_the_image_that_comes_first_starts(storage: str) -> None:
    files = {f"EFI/Linux/{A}": b"GOOD a", f"EFI/Linux/{B}": b"GOOD b"}
    assert run(files, [B, A], storage).booted == ("GOOD a",)
    spent = ImageName("a", 2, 0, 3)
    assert run(files | {f"EFI/Linux/{spent}": b"GOOD a"}, [spent, B]).booted == ("GOOD b",)


@pytest.mark.parametrize("first", [{}, {f"EFI/Linux/{A}": b"forged"}], ids=["missing", "refused"])
def test_the_next_one_gets_its_turn(first: dict[str, bytes]) -> None:
    ran = run({**first, f"EFI/Linux/{B}": b"GOOD b"}, [A, B])
    assert ran.booted == ("GOOD b",)
    assert ran.said == [
        "erofs-edge: stage u-boot slot a", "erofs-edge: slot does not start: a", "erofs-edge: stage u-boot slot b",
    ]  # fmt: skip


def test_nothing_that_starts() -> None:
    ran = run({}, [A, B])
    assert ran.booted is None and ran.said[-1] == "erofs-edge: no slot boots"


def test_what_cannot_be_scripted() -> None:
    for path in ("EFI/a b.efi", "EFI/$x.efi", "a;reset", "'"):
        with pytest.raises(ManifestError, match="cannot be part of a boot script"):
            uefi_script(board(), {"a": path})
    without = Board(board="lab", disk=Disk(partitions={"boot": Partition(size="1M")}), boot=Boot())
    with pytest.raises(ManifestError, match="no EFI system partition"):
        uefi_script(without, {})
