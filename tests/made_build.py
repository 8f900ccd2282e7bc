# SPDX-License-Identifier: Apache-2.0
"""A build's output folder in miniature: everything that `verify` walks through, in a few milliseconds."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erofs_edge.boot.cpio import write_cpio
from erofs_edge.boot.fit import Image, build_fit
from erofs_edge.boot.initramfs import compress
from erofs_edge.build.record import outputs, write_json
from erofs_edge.build.signing import Collector, sign_release, sign_system, signer_record
from erofs_edge.disk import gpt, slots
from erofs_edge.erofs import build as build_erofs
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.trust.key import KeySigner
from erofs_edge.verity.superblock import VerityInfo
from erofs_edge.verity.tree import append

EPOCH = 1_700_000_000
MIB = 1 << 20
PLACES = {
    "boot_a": (1, 1), "boot_b": (2, 1), "system_a": (3, 4), "system_b": (7, 4), "misc": (11, 1), "data": (12, 3),
}  # fmt: skip
"""name → start and size in MiB"""


@dataclass
class Made:
    """`out` is the folder; partitions lie in its disk.img as PLACES says."""

    out: Path
    signer: KeySigner
    verity: VerityInfo

    def flip(self, name: str, offset: int, mask: int = 0x20) -> None:
        """Flip a bit of a file."""
        with (self.out / name).open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ mask]))

    def seal(self) -> None:
        """Sign what the folder now holds, as its owner would."""
        names = [n for n in os.listdir(self.out) if n not in ("release.json", "release.json.p7s")]
        record = json.loads((self.out / "release.json").read_text())
        record["files"] = outputs(self.out, names)
        write_json(self.out / "release.json", record)
        certificate = sign_system(self.signer, self.verity.root_hash, EPOCH, self.out, Collector())
        assert certificate is not None
        sign_release(self.signer, certificate, self.out / "release.json")


def make_build(out: Path, signer: KeySigner, more: bytes = b"1") -> Made:
    """Two slots, a system of three files, one of which holds `more`, a signed FIT."""
    out.mkdir()
    source = FileTree()
    for name, data in {
        "etc/os-release": b"ID=edge\n",
        "usr/bin/tool": os.urandom(0) + bytes(range(256)) * 900,
        "v": more,
    }.items():
        source.add(name, Inode(stat.S_IFREG | 0o644, content=BytesContent(data)))
    system = out / "system.img"
    build_erofs(source, system, compression="none", epoch=EPOCH)
    verity = append(system)
    values = {
        "ROOT_HASH": verity.root_hash.hex(), "SALT": verity.salt.hex(), "BLOCK_SIZE": 4096,
        "DATA_BLOCKS": verity.data_blocks, "HASH_START": verity.hash_start_block, "SYSTEM": "system", "SLOTS": "a b",
        "DATA": "data",
    }  # fmt: skip
    (out / "boot.fit").write_bytes(make_fit(values, signer))
    (out / "slots.bin").write_bytes(slots.encode_state(slots.initial(["a", "b"])))
    contents = {"boot": "boot.fit", "system": "system.img", "misc": "slots.bin"}
    table = gpt.Table(
        gpt.guid_from(b"t", ""), 16 * MIB // 512,
        tuple(
            gpt.Partition(n, gpt.TYPE_LINUX, gpt.guid_from(b"t", n), s * 2048, (s + size) * 2048 - 1)
            for n, (s, size) in PLACES.items()
        ),
    )  # fmt: skip
    with (out / "disk.img").open("w+b") as disk:
        disk.truncate(16 * MIB)
        head, tail = gpt.encode(table)
        os.pwrite(disk.fileno(), head, 0)
        os.pwrite(disk.fileno(), tail, 16 * MIB - len(tail))
        for name, (start, _) in PLACES.items():
            if file := contents.get(name.partition("_")[0]):
                os.pwrite(disk.fileno(), (out / file).read_bytes(), start * MIB)
    record: dict[str, Any] = {
        "format": 1,
        "epoch": EPOCH,
        "sign": {"name": signer.name, "development": False},
        "system": {
            "root_hash": verity.root_hash.hex(), "salt": verity.salt.hex(), "block_size": 4096,
            "data_blocks": verity.data_blocks, "hash_offset": verity.hash_offset,
        },
        "partitions": {
            n: {"start": s * MIB, "size": size * MIB, "guid": str(gpt.guid_from(b"t", n))}
            for n, (s, size) in PLACES.items()
        },
    }  # fmt: skip
    made = Made(out, signer, verity)
    certificate = sign_system(signer, verity.root_hash, EPOCH, out, Collector())
    assert certificate is not None
    record["sign"] |= signer_record(signer, certificate)
    write_json(out / "release.json", record)
    made.seal()
    return made


def make_fit(
    values: dict[str, object], signer: KeySigner | None, config: bytes | None = None, firmware: str = ""
) -> bytes:
    """A FIT whose initramfs holds nothing but its values. `firmware`: digest of the firmware's files."""
    tree = FileTree()
    text = config if config is not None else "".join(f"{k}='{v}'\n" for k, v in values.items()).encode()
    tree.add("config", Inode(stat.S_IFREG | 0o644, content=BytesContent(text)))
    images = {
        "kernel": Image("kernel_noload", b"kernel" * 1000, "kernel"),
        "ramdisk": Image("ramdisk", compress(write_cpio(tree, epoch=0)), "initramfs"),
    }
    return build_fit(images, description="made", epoch=0, signer=signer, firmware=firmware)
