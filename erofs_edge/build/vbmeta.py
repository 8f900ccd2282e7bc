# SPDX-License-Identifier: Apache-2.0
"""vbmeta partitions of a board (`content: vbmeta`), for boot loaders that start by Android Verified Boot.

`vbmeta` describes boot image and system. Where there is a `vbmeta_NAME` for a partition NAME, that is described there,
and `vbmeta` names the key of `vbmeta_NAME` in a chain descriptor, with a rollback index location of its own (AOSP
external/avb, README.md, "The VBMeta struct"). libavb reads partitions whose names start with `vbmeta` from their first
byte (``libavb/avb_slot_verify.c``, load_and_verify_vbmeta), so these have no footer.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from erofs_edge.build.avb import BLOCK, hash_descriptor
from erofs_edge.manifest.model import Board
from erofs_edge.trust.avb import MAIN, Chain, Descriptor, Hashtree, VBMeta, encode_key, write_vbmeta
from erofs_edge.trust.key import Signer, rsa_key
from erofs_edge.verity.superblock import VerityInfo

CHAINED = f"{MAIN}_"


def vbmeta_names(board: Board) -> list[str]:
    """Names of the board's vbmeta partitions, without slots, in the order of the disk."""
    return [name for name, partition in board.disk.partitions.items() if partition.content == "vbmeta"]


def write_vbmeta_images(board: Board, system: str, verity: VerityInfo, signer: Signer, work: Path) -> list[Path]:
    """NAME.img of each vbmeta partition, filled up to whole blocks. Nothing for a board that has none.

    system  name of the partition that holds the system, `verity` its tree
    work    has boot.fit, where the board has a FIT

    Raises ErofsEdgeError for a key that AVB does not take: RSA-2048 and RSA-4096 are.
    """
    names = vbmeta_names(board)
    if not names:
        return []
    described: dict[str, Descriptor] = {system: _hashtree(system, verity)}
    for name, partition in board.disk.partitions.items():
        if partition.content == "fit":
            described[name] = hash_descriptor(work / "boot.fit", name)
    key = encode_key(rsa_key(signer, "AVB"), signer.name)
    chained = [name for name in names if name != MAIN]
    here = [one for name, one in described.items() if CHAINED + name not in chained]
    chains = [Chain(name, location, key) for location, name in enumerate(chained, 1)]
    written = [_write(MAIN, [*here, *chains], board, signer, work)]
    return written + [_write(name, [described[name.removeprefix(CHAINED)]], board, signer, work) for name in chained]


def _hashtree(name: str, verity: VerityInfo) -> Hashtree:
    """Without parity: AVB's covers whatever lies before it, ours leaves out the superblock between data and tree."""
    sb, size = verity.superblock, verity.block_size
    count = sum(level.count for level in sb.levels_from(verity.hash_start_block))
    return Hashtree(
        name, sb.data_size, verity.hash_start_block * size, count * size, verity.root_hash, verity.salt,
        sb.algorithm, size, size,
    )  # fmt: skip


def _write(name: str, descriptors: Iterable[Descriptor], board: Board, signer: Signer, work: Path) -> Path:
    raw = write_vbmeta(VBMeta(list(descriptors), board.sign.rollback_index), signer)
    path = work / f"{name}.img"
    path.write_bytes(raw + bytes(-len(raw) % BLOCK))
    return path
