# SPDX-License-Identifier: Apache-2.0
"""Stores of UEFI variables: ours can be read back, EDK2's own can be read, broken ones are refused."""

from __future__ import annotations

import hashlib
import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uefi_sample import blank_store

from erofs_edge.boot.uefi_vars import (
    CERT_X509,
    GLOBAL,
    IMAGE_SECURITY,
    STORE,
    Variable,
    fill_store,
    read_store,
    secure_boot,
    signature_list,
)
from erofs_edge.errors import CapacityError, FormatError

EPOCH = 1_700_000_000
OWNER = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")


def test_what_is_written_is_read_back() -> None:
    wanted = secure_boot(OWNER, b"platform certificate", [b"one", b"another certificate"])
    store = fill_store(blank_store(4096), wanted, epoch=EPOCH)
    assert len(store) == len(blank_store(4096))
    assert read_store(store) == wanted
    assert {v.name: v.vendor for v in wanted}["db"] == IMAGE_SECURITY
    assert {v.name: v.vendor for v in wanted}["PK"] == GLOBAL
    assert {v.name: v.attributes for v in wanted} == {"PK": 0x27, "KEK": 0x27, "db": 0x27, "SecureBootEnable": 3}
    assert (
        hashlib.sha256(store).hexdigest()
        == hashlib.sha256(fill_store(blank_store(4096), wanted, epoch=EPOCH)).hexdigest()
    )


def test_a_record_byte_for_byte() -> None:
    store = fill_store(blank_store(4096), [Variable("PK", GLOBAL, 0x27, b"\x01\x02\x03")], epoch=EPOCH)
    moment = bytes.fromhex("e7070b0e160d1400") + bytes(8)  # 2023-11-14 22:13:20
    assert store[100:171] == (
        b"\xaa\x55\x3f\x00" + struct.pack("<IQ", 0x27, 0) + moment + struct.pack("<III", 0, 6, 3)
        + GLOBAL.bytes_le + b"P\0K\0\0\0" + b"\x01\x02\x03" + b"\xff\xff"
    )  # fmt: skip


def test_a_signature_list_byte_for_byte() -> None:
    assert signature_list(OWNER, b"DER") == (
        CERT_X509.bytes_le + struct.pack("<III", 28 + 19, 0, 19) + OWNER.bytes_le + b"DER"
    )


def test_what_is_no_blank_store() -> None:
    full = fill_store(blank_store(4096), secure_boot(OWNER, b"c", [b"c"]), epoch=EPOCH)
    with pytest.raises(FormatError, match="has variables already"):
        fill_store(full, [], epoch=EPOCH)
    with pytest.raises(CapacityError, match="4068 fit"):
        fill_store(blank_store(4096), [Variable("x", GLOBAL, 3, bytes(5000))], epoch=EPOCH)
    for raw in (b"", bytes(200), blank_store(4096)[:90], blank_store(4096).replace(STORE.bytes_le, bytes(16))):
        with pytest.raises(FormatError):
            read_store(raw)


@given(st.data())
def test_hostile_stores(data: st.DataObject) -> None:
    raw = bytearray(fill_store(blank_store(4096), secure_boot(OWNER, b"c" * 700, [b"d" * 800]), epoch=EPOCH))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, 600))] = data.draw(st.integers(0, 255))
    try:
        found = read_store(bytes(raw))
    except FormatError:
        return
    assert sum(len(variable.data) for variable in found) < len(raw)
