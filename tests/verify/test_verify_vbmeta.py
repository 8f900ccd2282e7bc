# SPDX-License-Identifier: Apache-2.0
"""vbmeta partitions of a board: what is in them, that a disk with them verifies, and that nothing of them is left out.

AOSP's avbtool 1.3.0 (`verify_image --follow_chain_partitions`, `--expected_chain_partition`) accepted such a build of
the stock board: signature, digest of the boot image, hash tree of the system, key and location of the chain.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from fixed_key import fixed_key
from made_build import MIB, Made, make_build

from erofs_edge.build.vbmeta import vbmeta_names, write_vbmeta_images
from erofs_edge.disk import gpt
from erofs_edge.errors import ErofsEdgeError, ManifestError
from erofs_edge.manifest.load import load_board
from erofs_edge.manifest.model import Board
from erofs_edge.trust.avb import Chain, Hash, Hashtree, VBMeta, encode_key, verify_vbmeta, write_vbmeta
from erofs_edge.trust.key import KeySigner
from erofs_edge.verify.checks import Verdict
from erofs_edge.verify.path import verify_path

KEY = fixed_key(1, "product")
OTHER = fixed_key(2, "product")
AVB_KEY = encode_key(KEY.public_key, "k")  # type: ignore[arg-type]
PLACES = {"boot_a": (1, 1), "system_a": (2, 4), "vbmeta_a": (6, 1), "vbmeta_system_a": (7, 1)}
SIZE = 9 * MIB


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_build(tmp_path_factory.mktemp("made") / "out", KEY)


def board(repository: Path, folder: Path, *names: str) -> Board:
    """The stock board with partitions for vbmeta of these names."""
    file = folder / "avb.yaml"
    lines = "".join(f"    {name}: {{size: 1M, slots: [a, b], content: vbmeta}}\n" for name in names)
    file.write_text(
        f"board: avb\nextends: {repository / 'boards/qemu-aarch64.yaml'}\nsign: {{rollback_index: 4}}\n"
        f"disk:\n  partitions:\n    data: null\n{lines}"
    )
    return load_board(file).value


def failed(verdict: Verdict) -> dict[str, str]:
    return {check.what: check.error or "" for check in verdict.failed}


class Disk:
    """One slot: boot image, system and both vbmeta partitions as a build of the board makes them."""

    def __init__(self, made: Made, board: Board, folder: Path) -> None:
        self.path = folder / "disk.img"
        table = gpt.Table(
            gpt.guid_from(b"v", ""), SIZE // 512,
            tuple(
                gpt.Partition(n, gpt.TYPE_LINUX, gpt.guid_from(b"v", n), s * 2048, (s + size) * 2048 - 1)
                for n, (s, size) in PLACES.items()
            ),
        )  # fmt: skip
        (folder / "boot.fit").write_bytes(b"a boot image that only vbmeta vouches for" * 300)
        write_vbmeta_images(board, "system", made.verity, KEY, folder)
        head, tail = gpt.encode(table)
        self.path.write_bytes(head.ljust(SIZE - len(tail), b"\0") + tail)
        for name, file in {
            "boot_a": folder / "boot.fit", "system_a": made.out / "system.img",
            "vbmeta_a": folder / "vbmeta.img", "vbmeta_system_a": folder / "vbmeta_system.img",
        }.items():  # fmt: skip
            self.write(name, file.read_bytes())

    def write(self, name: str, data: bytes, offset: int = 0) -> None:
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), data, PLACES[name][0] * MIB + offset)


@pytest.fixture
def disk(made: Made, repository: Path, tmp_path: Path) -> Disk:
    return Disk(made, board(repository, tmp_path, "vbmeta", "vbmeta_system"), tmp_path)


def test_what_is_described_where(made: Made, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "boot.fit").write_bytes(b"boot")
    tree = Hashtree(
        "system", made.verity.data_blocks * 4096, made.verity.hash_start_block * 4096, 4096, made.verity.root_hash,
        made.verity.salt,
    )  # fmt: skip
    (one,) = write_vbmeta_images(board(repository, tmp_path, "vbmeta"), "system", made.verity, KEY, tmp_path)
    assert one.name == "vbmeta.img" and one.stat().st_size == 4096
    meta = verify_vbmeta(one.read_bytes(), KEY, minimum=4)
    boot = next(d for d in meta.descriptors if isinstance(d, Hash))
    assert meta.rollback_index == 4 and meta.descriptors == [tree, boot]
    assert boot.partition == "boot" and boot.digest == hashlib.sha256(boot.salt + b"boot").digest()
    chained = board(repository, tmp_path, "vbmeta", "vbmeta_system")
    assert vbmeta_names(chained) == ["vbmeta", "vbmeta_system"]
    outer, inner = write_vbmeta_images(chained, "system", made.verity, KEY, tmp_path)
    assert verify_vbmeta(outer.read_bytes(), KEY).descriptors == [boot, Chain("vbmeta_system", 1, AVB_KEY)]
    assert verify_vbmeta(inner.read_bytes(), KEY, minimum=4).descriptors == [tree]
    assert write_vbmeta_images(board(repository, tmp_path), "system", made.verity, KEY, tmp_path) == []
    with pytest.raises(ErofsEdgeError, match="AVB"):
        large = KeySigner("k", rsa.generate_private_key(65537, 3072))
        write_vbmeta_images(chained, "system", made.verity, large, tmp_path)


def test_a_disk_passes(disk: Disk) -> None:
    verdict = verify_path(disk.path, KEY)
    assert verdict.ok, failed(verdict)
    assert [check.what for check in verdict.checks][2:] == [
        "vbmeta_a: vbmeta", "boot_a: digest", "vbmeta_system_a: chain", "vbmeta_system_a: vbmeta", "system_a: tree",
        "system_a: file system",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "offset", "row"),
    [
        ("vbmeta_a", 40, "vbmeta_a: vbmeta"),
        ("vbmeta_a", 600, "vbmeta_a: vbmeta"),
        ("vbmeta_system_a", 600, "vbmeta_system_a: vbmeta"),
        ("boot_a", 5000, "boot_a: digest"),
        ("system_a", 5000, "system_a: tree"),
    ],
)
def test_every_part_counts(name: str, offset: int, row: str, disk: Disk) -> None:
    disk.write(name, b"\xa5", offset)
    assert row in failed(verify_path(disk.path, KEY))


def test_a_chain_that_is_cut_or_led_elsewhere_fails(disk: Disk, made: Made) -> None:
    inner = VBMeta([Hashtree("system", 4096, 4096, 0, bytes(32), b"")])
    disk.write("vbmeta_system_a", write_vbmeta(inner, OTHER).ljust(4096, b"\0"))
    assert "another key" in failed(verify_path(disk.path, KEY))["vbmeta_system_a: vbmeta"]
    nested = replace(inner, descriptors=[Chain("boot", 1, AVB_KEY)])
    disk.write("vbmeta_system_a", write_vbmeta(nested, KEY).ljust(4096, b"\0"))
    assert "libavb refuses" in failed(verify_path(disk.path, KEY))["vbmeta_system_a: vbmeta"]
    disk.write("vbmeta_system_a", bytes(4096))
    assert "no vbmeta image" in failed(verify_path(disk.path, KEY))["vbmeta_system_a: vbmeta"]


def test_what_no_chain_names_is_not_signed(disk: Disk, made: Made, repository: Path, tmp_path: Path) -> None:
    """A vbmeta of the right key is worth nothing where no boot loader would come to it."""
    (alone,) = write_vbmeta_images(board(repository, tmp_path, "vbmeta"), "system", made.verity, KEY, tmp_path)
    disk.write("vbmeta_a", alone.read_bytes())
    assert failed(verify_path(disk.path, KEY)) == {"vbmeta_system_a": "no signature covers this partition"}


@pytest.mark.parametrize(
    ("names", "message"),
    [(["vbmeta", "vbmeta_data"], "vbmeta_boot, vbmeta_system"), (["vbmeta_system"], "names the key")],
)
def test_names_that_no_boot_loader_finds(names: list[str], message: str, repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=message):
        board(repository, tmp_path, *names)
