# SPDX-License-Identifier: Apache-2.0
"""vbmeta partitions of a board (`content: vbmeta`), for boot loaders with Android Verified Boot.

`vbmeta` describes boot image and system. If there is a `vbmeta_NAME` for a partition NAME, that partition is described
there, and `vbmeta` names the key of `vbmeta_NAME` in a chain descriptor, with its own rollback index location (AOSP
external/avb, README.md, "The VBMeta struct"). libavb reads partitions whose names start with `vbmeta` from their first
byte (``libavb/avb_slot_verify.c``, load_and_verify_vbmeta), so these have no footer.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

from erofs_edge.boot.vbmeta import Expected, Vbmeta
from erofs_edge.build.avb import BLOCK, hash_descriptor
from erofs_edge.manifest.model import Board
from erofs_edge.trust.avb import (
    MAIN,
    Chain,
    Descriptor,
    Hash,
    Hashtree,
    VBMeta,
    encode_key,
    lay_out,
    pack_descriptor,
    write_vbmeta,
)
from erofs_edge.trust.certificate import Certificate
from erofs_edge.trust.key import Signer, rsa_key
from erofs_edge.verity.superblock import VerityInfo

CHAINED = f"{MAIN}_"


def vbmeta_names(board: Board) -> list[str]:
    """Names of the board's vbmeta partitions, without slots, in disk order."""
    return [name for name, partition in board.disk.partitions.items() if partition.content == "vbmeta"]


def write_vbmeta_images(board: Board, system: str, verity: VerityInfo, signer: Signer, work: Path) -> list[Path]:
    """Write NAME.img of each vbmeta partition, padded to whole blocks. Nothing for a board without any.

    system  name of the partition that holds the system; `verity`: its tree
    work    contains boot.fit, if the board has a FIT

    Raises ErofsEdgeError for a key that AVB does not accept; it accepts RSA-2048 and RSA-4096.
    """
    found = _metas(board, system, verity, signer, lambda name: hash_descriptor(work / "boot.fit", name))
    return [_write(name, meta, signer, work) for name, meta in found.items()]


def expected_vbmeta(
    board: Board, system: str, verity: VerityInfo, signer: Signer, certificate: Certificate
) -> Vbmeta | None:
    """What the initramfs checks of these partitions; None for a board without any. No boot image is needed: its digest
    is the only unknown, and the signature covers that. Raises ErofsEdgeError as `write_vbmeta_images`."""
    found = _metas(board, system, verity, signer, lambda name: Hash(name, 0, bytes(32), bytes(32)))
    checked = []
    for name, meta in found.items():
        made = lay_out(meta, signer)
        known = list(takewhile(lambda one: not isinstance(one, Hash), meta.descriptors))
        checked.append(
            Expected(
                name, bool(board.disk.partitions[name].slots), made.header, made.authentication_size,
                len(made.auxiliary), made.signature_size, b"".join(map(pack_descriptor, known)),
            )
        )  # fmt: skip
    return Vbmeta(certificate.der, tuple(checked)) if checked else None


def _metas(
    board: Board, system: str, verity: VerityInfo, signer: Signer, boot: Callable[[str], Hash]
) -> dict[str, VBMeta]:
    """Partition → its vbmeta content; `boot` returns the descriptor of a partition that holds the boot image."""
    names = vbmeta_names(board)
    if not names:
        return {}
    described: dict[str, Descriptor] = {system: _hashtree(system, verity)}
    for name, partition in board.disk.partitions.items():
        if partition.content == "fit":
            described[name] = boot(name)
    key = encode_key(rsa_key(signer, "AVB"), signer.name)
    chained = [name for name in names if name != MAIN]
    here = [one for name, one in described.items() if CHAINED + name not in chained]
    chains = [Chain(name, location, key) for location, name in enumerate(chained, 1)]
    inside: dict[str, list[Descriptor]] = {MAIN: [*here, *chains]}
    inside |= {name: [described[name.removeprefix(CHAINED)]] for name in chained}
    return {name: VBMeta(descriptors, board.sign.rollback_index) for name, descriptors in inside.items()}


def _hashtree(name: str, verity: VerityInfo) -> Hashtree:
    """Without parity: AVB's covers everything before it, ours leaves out the superblock between data and tree."""
    sb, size = verity.superblock, verity.block_size
    count = sum(level.count for level in sb.levels_from(verity.hash_start_block))
    return Hashtree(
        name, sb.data_size, verity.hash_start_block * size, count * size, verity.root_hash, verity.salt,
        sb.algorithm, size, size,
    )  # fmt: skip


def _write(name: str, meta: VBMeta, signer: Signer, work: Path) -> Path:
    raw = write_vbmeta(meta, signer)
    path = work / f"{name}.img"
    path.write_bytes(raw + bytes(-len(raw) % BLOCK))
    return path
