# SPDX-License-Identifier: Apache-2.0
"""A board's QEMU arguments, its control tree, and which QEMU runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from erofs_edge.boot.fdt import DeviceTree, Node, parse, string, write
from erofs_edge.errors import FormatError, ManifestError, ToolError
from erofs_edge.manifest.model import Board, Qemu
from erofs_edge.qemu.machine import (
    Wiring,
    boot_arguments,
    control_tree,
    dump_tree,
    find_qemu,
    machine_arguments,
    qemu_of,
)
from erofs_edge.trust.signer import PublicKey

if TYPE_CHECKING:
    from fake_machine import FakeQemu

MACHINE = [
    "-no-user-config", "-nodefaults", "-display", "none", "-machine", "virt", "-cpu", "cortex-a72", "-m", "1024M",
    "-smp", "2", "-bios", "/o/u-boot.bin",
]  # fmt: skip


def arguments(wiring: Wiring) -> list[str]:
    return boot_arguments(Qemu(), Path("/o/u-boot.bin"), Path("/o/control.dtb"), wiring)


def test_arguments_of_a_smoke_boot() -> None:
    assert arguments(Wiring(Path("/o/disk.img"))) == [
        *MACHINE, "-dtb", "/o/control.dtb", "-drive", "if=none,id=disk0,format=raw,file=/o/disk.img,snapshot=on",
        "-device", "virtio-blk-pci,drive=disk0", "-serial", "stdio", "-monitor", "none", "-no-reboot",
    ]  # fmt: skip


def test_a_colon_in_a_name_is_no_protocol() -> None:
    for name, wanted in (("at-01:20.img", "./at-01:20.img"), ("a/01:20", "a/01:20"), ("/o/a:b,c", "/o/a:b,,c")):
        drive = next(word for word in arguments(Wiring(Path(name))) if word.startswith("if=none"))
        assert f"file={wanted},snapshot" in drive


def test_arguments_at_the_terminal() -> None:
    disk, forwards = Path("/o/my,disk.img"), ((2222, 22), (8080, 80))
    assert arguments(Wiring(disk, snapshot=False, serial="mon:stdio", reboot=True, forwards=forwards)) == [
        *MACHINE, "-dtb", "/o/control.dtb", "-drive", "if=none,id=disk0,format=raw,file=/o/my,,disk.img",
        "-device", "virtio-blk-pci,drive=disk0",
        "-netdev", "user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=tcp:127.0.0.1:8080-:80",
        "-device", "virtio-net-pci,netdev=net0,romfile=", "-serial", "mon:stdio", "-monitor", "none",
    ]  # fmt: skip


def test_the_dump_is_of_the_machine_that_boots() -> None:
    dumping = machine_arguments(Qemu(memory="512M", smp=1), Path("/u"), dump=Path("/t/a,b.dtb"))
    booting = machine_arguments(Qemu(memory="512M", smp=1), Path("/u"))
    assert dumping[dumping.index("-machine") + 1] == "virt,dumpdtb=/t/a,,b.dtb"
    assert [a for a in dumping if "dumpdtb" not in a] == [a for a in booting if a != "virt"]
    assert "512M" in booting


def test_a_board_without_a_machine_that_we_can_drive(board: Board) -> None:
    assert qemu_of(board) == Qemu()
    with pytest.raises(ManifestError, match="has no qemu section"):
        qemu_of(_with(board, None))
    with pytest.raises(ManifestError, match="raspi4b"):
        qemu_of(_with(board, Qemu(machine="raspi4b")))
    assert qemu_of(_with(board, Qemu(machine="virt-7.2"))).machine == "virt-7.2"


def _with(board: Board, qemu: Qemu | None) -> Board:
    return Board(board=board.board, disk=board.disk, boot=board.boot, qemu=qemu)


def test_control_tree(rsa_key: RSAPrivateKey) -> None:
    machine = write(
        DeviceTree(
            Node({"compatible": string("linux,dummy-virt")}, {"chosen": Node({"rng-seed": b"1", "kaslr-seed": b"2"})})
        )
    )
    tree = parse(control_tree(machine, PublicKey("dev", rsa_key.public_key()), "echo 1\necho 2\n"))
    assert tree.root.props["compatible"] == b"linux,dummy-virt\0"
    assert tree.root.children["chosen"].props == {"rng-seed": b"1"}
    assert tree.root.children["config"].props == {
        "bootcmd": b"echo 1\necho 2\n\0", "bootdelay": b"\xff\xff\xff\xfe", "load-environment": bytes(4),
    }  # fmt: skip
    key = tree.root.at("/signature/key-dev")
    assert key is not None
    assert key.props["required"] == b"conf\0"
    assert int.from_bytes(key.props["rsa,modulus"], "big") == rsa_key.public_key().public_numbers().n


def test_control_tree_of_something_else(rsa_key: RSAPrivateKey) -> None:
    with pytest.raises(FormatError):
        control_tree(b"no tree" * 10, PublicKey("dev", rsa_key.public_key()), "")


def test_qemu_named_by_the_environment_wins(fake_qemu: FakeQemu) -> None:
    emulator = find_qemu()
    assert emulator.program == fake_qemu.program
    assert emulator.version == (10, 0, 2)
    assert emulator.version_text == "10.0.2"


def test_qemu_of_the_private_prefix_or_path(
    fake_qemu: FakeQemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EROFS_EDGE_QEMU")
    monkeypatch.setenv("EROFS_EDGE_PREFIX", str(tmp_path / "prefix"))
    monkeypatch.setenv("PATH", str(fake_qemu.folder))
    assert find_qemu().program == fake_qemu.program
    (tmp_path / "prefix/bin").mkdir(parents=True)
    private = tmp_path / "prefix/bin/qemu-system-aarch64"
    private.symlink_to(fake_qemu.program)
    assert find_qemu().program == private


@pytest.mark.parametrize("version", ["QEMU emulator version 7.1.9", "QEMU emulator version 5.2.0 (Debian 1:5.2)"])
def test_a_qemu_that_is_too_old(fake_qemu: FakeQemu, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qemu.plan(version=version)
    with pytest.raises(ToolError, match=r"is too old, 7\.2 is needed") as failure:
        find_qemu()
    assert failure.value.where == str(fake_qemu.program)
    assert failure.value.hint == "unset EROFS_EDGE_QEMU, then: erofs-edge tools fetch"
    monkeypatch.delenv("EROFS_EDGE_QEMU")
    monkeypatch.setenv("EROFS_EDGE_PREFIX", "/nowhere")
    monkeypatch.setenv("PATH", str(fake_qemu.folder))
    with pytest.raises(ToolError) as failure:
        find_qemu()
    assert failure.value.hint == "erofs-edge tools fetch"


def test_a_qemu_that_is_just_new_enough(fake_qemu: FakeQemu) -> None:
    fake_qemu.plan(version="QEMU emulator version 7.2.22 (Debian 1:7.2)")
    assert find_qemu().version == (7, 2, 22)


def test_no_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EROFS_EDGE_QEMU", raising=False)
    monkeypatch.setenv("EROFS_EDGE_PREFIX", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="not found") as failure:
        find_qemu()
    assert failure.value.hint == "erofs-edge tools fetch"
    monkeypatch.setenv("EROFS_EDGE_QEMU", str(tmp_path / "gone"))
    with pytest.raises(ToolError, match="cannot be started"):
        find_qemu()


def test_a_program_that_is_no_qemu(fake_qemu: FakeQemu) -> None:
    fake_qemu.plan(version="cat (GNU coreutils) 9.1")
    with pytest.raises(ToolError, match="is not QEMU"):
        find_qemu()
    fake_qemu.plan(version="cannot load libraries", version_code=127)
    with pytest.raises(ToolError, match="cannot load libraries"):
        find_qemu()


def test_a_machine_that_qemu_refuses(fake_qemu: FakeQemu) -> None:
    emulator = find_qemu()
    assert parse(dump_tree(emulator, Qemu(), Path("/u"))).root.props["compatible"] == b"linux,dummy-virt\0"
    fake_qemu.plan(dump=False)
    with pytest.raises(ToolError, match="no device tree"):
        dump_tree(emulator, Qemu(), Path("/u"))
    fake_qemu.plan(dump_code=1)
    with pytest.raises(ToolError, match="QEMU failed"):
        dump_tree(emulator, Qemu(), Path("/u"))
