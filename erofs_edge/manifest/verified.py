# SPDX-License-Identifier: Apache-2.0
"""Typed values that say how a system is verified block by block: part of the vocabulary of model.py."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from erofs_edge.manifest.words import Size


class Verity(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The dm-verity tree."""

    hash: Literal["sha256"] = "sha256"
    """the algorithm"""
    block_size: Size = 4096
    """size of a data block and of a hash block, in bytes"""
    on_corruption: Literal["eio", "restart", "panic"] = "eio"
    """what the kernel does if a block does not match: return a read error, restart, or panic"""
    fec_roots: Annotated[int, Meta(ge=0, le=24)] = 0
    """parity bytes for each 255 bytes of image and tree, from which the kernel repairs blocks as it reads them: 2
    to 24, or 0 for none"""
    repair_from: Annotated[
        str,
        Meta(
            pattern=r"^(http://[0-9]{1,3}(\.[0-9]{1,3}){3}(:[0-9]{1,5})?/([A-Za-z0-9._~/%+-]|\{root_hash\})*)?$",
            extra={"says": "http://ADDRESS[:PORT]/PATH, with an IPv4 address"},
        ),
    ] = ""
    """http://ADDRESS[:PORT]/PATH of the system image (system.img), from which the initramfs repairs a failed slot
    if no other slot can; `{root_hash}` is replaced by the root hash. Empty: none"""
