# SPDX-License-Identifier: Apache-2.0
"""Typed values that say how a writable partition is encrypted: part of the vocabulary of model.py."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from erofs_edge.manifest.words import DevicePath, Name

PcrNumber = Annotated[int, Meta(ge=0, le=23)]


class Encrypt(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """LUKS2 below the file system, made by the device at first boot with its own volume key."""

    key: Literal["tpm2", "file"]
    """what opens it: 'tpm2', a random key kept by the device's TPM 2.0, or 'file', a file of at least 32 random
    bytes"""
    partition: Name | None = None
    """for 'file': the label of the partition, on any disk, whose file system has the key file; ext4, or what
    `boot.modules` can mount"""
    path: DevicePath = "/data.key"
    """for 'file': the path of the key file in that partition"""
    pcrs: list[PcrNumber] = []
    """for 'tpm2': PCRs (SHA-256) that must have the same values as when the partition was made"""
