# SPDX-License-Identifier: Apache-2.0
"""UEFI variables in an emulated machine's flash: a blank EDK2 store filled with our keys.

Sources: EDK2 ``MdeModulePkg/Include/Guid/VariableFormat.h`` (the store and its records), UEFI 2.10 section 32.4.1
(EFI_SIGNATURE_LIST), 8.2.2 (time-based authenticated variables), 3.3 (their names and identifiers).
"""

from __future__ import annotations

import struct
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from erofs_edge.errors import CapacityError, FormatError
from erofs_edge.trust.measure import GLOBAL, IMAGE_SECURITY

SECURE_BOOT_ENABLE = uuid.UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
CERT_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
STORE = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792")
"""GUID of a store with authenticated variables"""

NON_VOLATILE, BOOT_SERVICE, RUNTIME, TIME_BASED = 0x01, 0x02, 0x04, 0x20
KEYS = NON_VOLATILE | BOOT_SERVICE | RUNTIME | TIME_BASED
_VOLUME = struct.Struct("<16x16sQ4sIHHHxB")
_STORE = struct.Struct("<16sIBB")
STORE_HEADER = 28
_RECORD = struct.Struct("<HBBIQ16sIII16s")
_START, _ADDED = 0x55AA, 0x3F
_ALIGNMENT = 4


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable: its name, vendor GUID, attributes (UEFI 8.2.1) and content."""

    name: str
    vendor: uuid.UUID
    attributes: int
    data: bytes


def signature_list(owner: uuid.UUID, certificate: bytes) -> bytes:
    """An EFI_SIGNATURE_LIST of one X.509 certificate, DER."""
    entry = owner.bytes_le + certificate
    return CERT_X509.bytes_le + struct.pack("<III", 28 + len(entry), 0, len(entry)) + entry


def secure_boot(owner: uuid.UUID, platform: bytes, allowed: Sequence[bytes]) -> list[Variable]:
    """Variables that make firmware start only what one of the `allowed` certificates (DER) has signed.

    platform  certificate of the one who may change the keys: used as PK and KEK
    """
    pk = signature_list(owner, platform)
    db = b"".join(signature_list(owner, certificate) for certificate in allowed)
    return [
        Variable("PK", GLOBAL, KEYS, pk),
        Variable("KEK", GLOBAL, KEYS, pk),
        Variable("db", IMAGE_SECURITY, KEYS, db),
        Variable("SecureBootEnable", SECURE_BOOT_ENABLE, NON_VOLATILE | BOOT_SERVICE, b"\x01"),
    ]


def fill_store(blank: bytes, variables: Sequence[Variable], *, epoch: int) -> bytes:
    """Fill a blank store (AAVMF_VARS.fd) with variables; its size stays the same.

    epoch  seconds since 1970: the time at which authenticated variables were signed

    Raises FormatError if it is not a store or not blank, CapacityError if the variables do not fit.
    """
    start, end = _store(blank)
    if blank[start:end].count(0xFF) != end - start:
        raise FormatError("the store has variables already", where=f"offset {start:#x}")
    records = bytearray()
    for variable in variables:
        records += bytes(-len(records) % _ALIGNMENT).replace(b"\0", b"\xff")
        records += _record(variable, epoch)
    if len(records) > end - start:
        raise CapacityError(f"the variables take {len(records)} bytes, {end - start} fit", where="UEFI variables")
    return blank[:start] + records + blank[start + len(records) :]


def read_store(data: bytes) -> list[Variable]:
    """The valid variables of a store. Raises FormatError."""
    at, end = _store(data)
    found = []
    while at + _RECORD.size <= end:
        start, state, _, attributes, _, _, _, name_size, size, vendor = _RECORD.unpack_from(data, at)
        if start != _START:
            break
        body = at + _RECORD.size
        if body + name_size + size > end or name_size % 2:
            raise FormatError("a UEFI variable leaves the store", where=f"offset {at:#x}")
        if state == _ADDED:
            name = data[body : body + name_size].decode("utf-16-le", "replace").rstrip("\0")
            content = data[body + name_size : body + name_size + size]
            found.append(Variable(name, uuid.UUID(bytes_le=vendor), attributes, content))
        at = body + name_size + size
        at += -at % _ALIGNMENT
    return found


def _store(data: bytes) -> tuple[int, int]:
    """(first byte of the records, end of the store)."""
    if len(data) < _VOLUME.size or data[40:44] != b"_FVH":
        raise FormatError("not a firmware volume", where="offset 0x28")
    header = _VOLUME.unpack_from(data)[4]
    if header + STORE_HEADER > len(data):
        raise FormatError("not a store of UEFI variables", where="offset 0x30")
    guid, size, form, state = _STORE.unpack_from(data, header)
    if guid != STORE.bytes_le or (form, state) != (0x5A, 0xFE) or not STORE_HEADER <= size <= len(data) - header:
        raise FormatError("not a store of authenticated UEFI variables", where=f"offset {header:#x}")
    return header + STORE_HEADER, header + size


def _record(variable: Variable, epoch: int) -> bytes:
    name = variable.name.encode("utf-16-le") + b"\0\0"
    moment = _moment(epoch) if variable.attributes & TIME_BASED else bytes(16)
    head = _RECORD.pack(
        _START, _ADDED, 0, variable.attributes, 0, moment, 0, len(name), len(variable.data), variable.vendor.bytes_le
    )
    return head + name + variable.data


def _moment(epoch: int) -> bytes:
    """EFI_TIME in UTC (UEFI 8.3): authenticated variables leave out nanoseconds and time zone."""
    year, month, day, hour, minute, second = time.gmtime(epoch)[:6]
    return struct.pack("<HBBBBB9x", year, month, day, hour, minute, second)
