# SPDX-License-Identifier: Apache-2.0
"""The encrypted data partition: what the initramfs needs to open it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from erofs_edge.manifest.encryption import Encrypt

PROGRAM = "usr/sbin/cryptsetup"
MODULES = ("dm_crypt", "xts", "algif_skcipher", "aes_neon_bs", "aes_ce_blk")
"""the last two are vector and AES-instruction implementations; processors without AES instructions use the former"""
SCRIPTS = ("crypt", "tpm")


@dataclass(frozen=True, slots=True)
class Crypt:
    """How the data partition is opened.

    key        'tpm2' or 'file'
    partition  label of the partition with the key file; path: of the file on it
    pcrs       PCRs of the TPM to whose values the key is bound
    """

    key: str
    partition: str = ""
    path: str = ""
    pcrs: tuple[int, ...] = ()

    @property
    def bitmap(self) -> str:
        """The PCRs as three bytes in hex, as in TPMS_PCR_SELECTION (TPM 2.0 Part 2, 10.6.2); '' for none."""
        bits = sum(1 << number for number in set(self.pcrs))
        return bits.to_bytes(3, "little").hex() if bits else ""

    def values(self) -> dict[str, str]:
        """Variables of the init script, by name."""
        return {
            "CRYPT_KEY": self.key, "KEY_PARTITION": self.partition, "KEY_PATH": self.path, "PCRS": self.bitmap
        }  # fmt: skip


def crypt_of(encrypt: Encrypt | None) -> Crypt | None:
    """A board's encryption settings, for the initramfs."""
    if encrypt is None:
        return None
    return Crypt(encrypt.key, encrypt.partition or "", encrypt.path, tuple(encrypt.pcrs))


def scripts() -> dict[str, bytes]:
    """Name in the initramfs → text of the shell functions that the init script reads."""
    return {name: Path(__file__).with_name(f"{name}.sh").read_bytes() for name in SCRIPTS}
