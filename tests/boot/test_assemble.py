# SPDX-License-Identifier: Apache-2.0
"""build_boot with fake packages: the two stock boards, and errors in a board."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from elf_samples import VERSION, file, kernel_tree, module_elf
from test_firmware import packages as firmware_packages
from test_initramfs import packages as initramfs_packages
from test_initramfs import unpack

from erofs_edge.boot import assemble
from erofs_edge.boot.assemble import (
    BootOutputs,
    build_boot,
    build_start,
    init_config,
    kernel_of,
    system_modules,
    wanted_firmware,
)
from erofs_edge.boot.fdt import DeviceTree, Node, parse, string, write
from erofs_edge.boot.fit import verify_fit
from erofs_edge.boot.loader import split
from erofs_edge.boot.script import boot_script
from erofs_edge.errors import ManifestError, SourceError
from erofs_edge.manifest.load import load_board
from erofs_edge.manifest.model import Board, UBoot
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian import deb
from erofs_edge.tree import FileTree
from erofs_edge.trust.signer import KeySigner
from erofs_edge.verity.tree import VerityInfo

EPOCH = 1_700_000_000
VERITY = VerityInfo(bytes(range(32)), b"\xaa" * 32, bytes(16), 4096, 5000, 5000 * 4096, 5001, 5100 * 4096)
DTB = write(DeviceTree(Node({"model": string("Raspberry Pi 4")})))
KEY = KeySigner("dev", rsa.generate_private_key(65537, 2048))


@dataclass(frozen=True, eq=False)
class MadeUp:
    """A package, reduced to what is looked at: its tree."""

    data: FileTree


@pytest.fixture
def trees(monkeypatch: pytest.MonkeyPatch) -> dict[str, FileTree]:
    """Return package name → tree; read_deb then takes a 'file' with the package's name."""
    kernel = kernel_tree()
    top = f"usr/lib/modules/{VERSION}/kernel"
    for name in ("sdhci-iproc", "fixed", "gpio-regulator", "sha256-arm64"):
        kernel.add(f"{top}/drivers/{name}.ko", file(module_elf("depends=")))
    kernel.add(f"usr/lib/linux-image-{VERSION}/broadcom/bcm2711-rpi-4-b.dtb", file(DTB))
    uboot = FileTree()
    uboot.add("usr/lib/u-boot/qemu_arm64/u-boot.bin", file(b"U-Boot for QEMU"))
    found = {"kernel": kernel, "programs": initramfs_packages(), "u-boot-qemu": uboot, **firmware_packages()}
    for module in (assemble, deb):
        monkeypatch.setattr(module, "read_deb", lambda path, cache: MadeUp(found[path.name]))
    return found


def board_of(repository: Path, name: str, **boot: Any) -> Board:
    board = load_board(repository / f"boards/{name}.yaml").value
    return msgspec.structs.replace(board, boot=msgspec.structs.replace(board.boot, **boot))


def build(board: Board, trees: dict[str, FileTree], tmp_path: Path, program: bytes | None = None) -> BootOutputs:
    firmware = {name: tree for name, tree in trees.items() if name not in ("kernel", "programs")}
    start = build_start(
        board,
        init_config(board, VERITY, None),
        kernel_deb=Path("kernel"),
        initramfs_debs={"programs": Path("programs")},
        epoch=EPOCH,
        cache=Cache(tmp_path),
    )
    return build_boot(board, start, firmware, epoch=EPOCH, signer=KEY, program=program)


def image_of(fit: bytes, name: str) -> bytes:
    node = parse(fit).root.at(f"/images/{name}")
    assert node is not None
    return node.props["data"]


def test_qemu_board(repository: Path, trees: dict[str, FileTree], tmp_path: Path) -> None:
    out = build(board_of(repository, "qemu-aarch64"), trees, tmp_path)
    assert (out.u_boot, out.firmware_files, out.kernel_version) == (b"U-Boot for QEMU", None, VERSION)
    verify_fit(out.fit, KEY.public_key)
    initramfs = unpack(image_of(out.fit, "ramdisk"))
    for setting in (
        f"ROOT_HASH='{VERITY.root_hash.hex()}'", f"SALT='{'aa' * 32}'", "DATA_BLOCKS='5000'", "HASH_START='5001'",
        "SYSTEM='system'", "SLOTS='a b'", "DATA='data'",
    ):  # fmt: skip
        assert setting.encode() in initramfs
    assert b"modules/disk/00-virtio_blk.ko" in initramfs
    assert b"modules/data/01-ext4.ko" in initramfs
    assert parse(out.fit).root.at("/images/fdt") is None
    assert out == build(board_of(repository, "qemu-aarch64"), trees, tmp_path)


def test_raspberry_pi(repository: Path, trees: dict[str, FileTree], tmp_path: Path) -> None:
    out = build(board_of(repository, "rpi4"), trees, tmp_path)
    verify_fit(out.fit, KEY.public_key)
    assert image_of(out.fit, "fdt") == DTB, "the kernel's tree has no key in it"
    assert out.firmware_files is not None
    control = parse(out.firmware_files["bcm2711-rpi-4-b.dtb"]).root
    key = control.at("/signature/key-dev")
    assert key is not None
    assert key.props["required"] == b"conf\0"
    assert b"booti" in out.firmware_files["boot.scr"]
    assert b"-fixed.ko" in unpack(image_of(out.fit, "ramdisk"))


def test_a_loader_of_ours_has_key_and_script_inside(
    repository: Path, trees: dict[str, FileTree], tmp_path: Path
) -> None:
    board = load_board(repository / "boards/qemu-aarch64-locked.yaml").value
    out = build(board, trees, tmp_path, b"compiled")
    program, tree = split(out.u_boot)
    assert program == b"compiled" and out.firmware_files is None
    key, config = tree.root.at("/signature/key-dev"), tree.root.at("/config")
    assert key is not None and key.props["required"] == b"conf\0"
    assert config is not None and config.props["bootcmd"] == boot_script(board).encode() + b"\0"
    rpi = board_of(repository, "rpi4", chain="u-boot-fit", u_boot=UBoot(build="rpi_arm64"))
    files = build(rpi, trees, tmp_path, b"compiled for a Pi").firmware_files
    assert files is not None
    assert "boot.scr" not in files and files["bcm2711-rpi-4-b.dtb"] == DTB, "no key outside of the loader"
    assert split(files["u-boot.bin"])[1].root.at("/signature/key-dev") is not None


def test_compressed_kernel(repository: Path, trees: dict[str, FileTree], tmp_path: Path) -> None:
    import lz4.frame

    out = build(board_of(repository, "qemu-aarch64", kernel_compression="lz4"), trees, tmp_path)
    node = parse(out.fit).root.at("/images/kernel")
    assert node is not None
    assert node.props["compression"] == b"lz4\0"
    assert lz4.frame.decompress(node.props["data"]) == b"MZ kernel " * 5000


def test_modules_of_the_system(repository: Path, trees: dict[str, FileTree], tmp_path: Path) -> None:
    board = board_of(repository, "qemu-aarch64", system_modules=["one", "fs/*"])
    tree = system_modules(board.boot.system_modules, Path("kernel"), Cache(tmp_path), epoch=EPOCH)
    top = f"/usr/lib/modules/{VERSION}/"
    names = {path.decode().removeprefix(top) for path, inode in tree.walk() if inode.is_file}
    assert {"kernel/net/a/one.ko", "kernel/net/a/two.ko", "kernel/fs/erofs/erofs.ko", "modules.dep.bin"} <= names
    assert not [name for name in names if "dm-" in name]
    assert {inode.mtime_ns for path, inode in tree.walk() if path.endswith(b".bin")} == {EPOCH * 10**9}
    assert len(list(system_modules([], Path("kernel"), Cache(tmp_path), epoch=EPOCH).walk())) == 1


def test_a_kernel_is_read_once_and_the_system_has_files_of_its_own(
    trees: dict[str, FileTree], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, cache = MadeUp(trees["kernel"]), Cache(tmp_path)
    monkeypatch.setattr(assemble, "read_deb", lambda path, cache: package)
    kernel = kernel_of(Path("kernel"), cache)
    assert kernel_of(Path("kernel"), cache) is kernel
    tree = system_modules(["one"], Path("kernel"), cache, epoch=EPOCH)
    placed = tree.get(f"usr/lib/modules/{VERSION}/{kernel.paths['one']}")
    assert placed is not None and placed.read() == kernel.file(kernel.paths["one"]).read()
    placed.xattrs[b"security.selinux"] = b"label"
    assert not kernel.file(kernel.paths["one"]).xattrs
    assert kernel_of(Path("kernel"), Cache(tmp_path)) is not kernel


def test_firmware_that_modules_name_with_those_that_they_need(trees: dict[str, FileTree], tmp_path: Path) -> None:
    top = f"usr/lib/modules/{VERSION}/kernel/net/a"
    trees["kernel"].add(f"{top}/one.ko", file(module_elf("firmware=acme/one.bin", "depends=two")))
    trees["kernel"].add(
        f"{top}/two.ko", file(module_elf("firmware=acme/two*.bin", "firmware=acme/one.bin", "depends="))
    )
    assert wanted_firmware(["one"], Path("kernel"), Cache(tmp_path)) == ["acme/one.bin", "acme/two*.bin"]
    assert wanted_firmware(["erofs"], Path("kernel"), Cache(tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"modules": ["nonsense"]}, SourceError, "no module 'nonsense'"),
        ({"kernel_compression": "lz4"}, ManifestError, "must not be compressed"),
        ({"fdt": "broadcom/bcm2711-rpi-5.dtb"}, ManifestError, "no device tree broadcom/bcm2711-rpi-5.dtb"),
    ],
)
def test_board_and_kernel_that_do_not_fit(
    changes: dict[str, Any],
    error: type[Exception],
    words: str,
    repository: Path,
    trees: dict[str, FileTree],
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=words) as caught:
        build(board_of(repository, "rpi4", **changes), trees, tmp_path)
    assert caught.value.hint  # type: ignore[attr-defined]


def test_board_without_a_system_or_with_two_data_partitions(
    repository: Path, trees: dict[str, FileTree], tmp_path: Path
) -> None:
    board = board_of(repository, "qemu-aarch64")
    replace, partitions = msgspec.structs.replace, board.disk.partitions
    without = {name: partition for name, partition in partitions.items() if name != "system"}
    twice = {**partitions, "more": partitions["data"]}
    for changed, words in ((without, "no system partition"), (twice, "more than one writable partition: data, more")):
        with pytest.raises(ManifestError, match=words):
            build(replace(board, disk=replace(board.disk, partitions=changed)), trees, tmp_path)
