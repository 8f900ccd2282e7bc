# SPDX-License-Identifier: Apache-2.0
"""UEFI variables inside a U-Boot: the file's bytes, hostile files, and the placeholder that is filled."""

from __future__ import annotations

import struct
import uuid
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.boot.u_boot_vars import HEAD, MAGIC, decode, encode, preset
from erofs_edge.boot.uefi_vars import GLOBAL, IMAGE_SECURITY, KEYS, Variable, signature_list
from erofs_edge.errors import CapacityError, FormatError
from erofs_edge.u_boot.compile import COMMON, HERE, UEFI, fragments
from erofs_edge.u_boot.seed import NAME, SIZE, blank, fill

OWNER = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")
EPOCH = 1_700_000_000
NAMES = st.text(st.characters(codec="utf-16-le", exclude_characters="\0", exclude_categories=["Cs"]), max_size=9)
VARIABLES = st.lists(
    st.builds(Variable, NAMES, st.sampled_from([GLOBAL, IMAGE_SECURITY]), st.integers(0, 0xFF), st.binary(max_size=40))
)


def test_a_file_byte_for_byte() -> None:
    """The second entry starts at a multiple of 8; only authenticated variables have a time."""
    data = encode([Variable("PK", GLOBAL, 0x27, b"\x01\x02\x03"), Variable("x", OWNER, 7, b"")], epoch=EPOCH)
    body = (
        struct.pack("<IIQ", 3, 0x27, EPOCH) + GLOBAL.bytes_le + b"P\0K\0\0\0" + b"\x01\x02\x03" + bytes(7)
        + struct.pack("<IIQ", 0, 7, 0) + OWNER.bytes_le + b"x\0\0\0" + bytes(4)
    )  # fmt: skip
    assert data == struct.pack("<QQII", 0, MAGIC, 24 + len(body), zlib.crc32(body)) + body


@given(VARIABLES)
def test_what_is_written_is_read_back(variables: list[Variable]) -> None:
    assert decode(encode(variables, epoch=EPOCH) + b"behind it") == variables


@given(st.data())
def test_hostile_files(data: st.DataObject) -> None:
    """With a correct checksum, so that the entries are read."""
    raw = bytearray(encode(decode(preset(OWNER, b"c" * 90, [b"d" * 70], epoch=EPOCH)), epoch=EPOCH))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    length = min(max(struct.unpack_from("<I", raw, 16)[0], HEAD.size), len(raw))
    struct.pack_into("<I", raw, 20, zlib.crc32(raw[HEAD.size : length]))
    try:
        found = decode(bytes(raw))
    except FormatError:
        return
    assert sum(len(variable.data) for variable in found) < len(raw)


def test_what_is_no_file_of_variables() -> None:
    good = encode([Variable("PK", GLOBAL, 0x27, b"\x01\x02\x03")], epoch=EPOCH)
    for raw in (b"", bytes(24), good[:-1], b"\1" + good[1:], good[:-1] + b"!"):
        with pytest.raises(FormatError):
            decode(raw)


def test_the_keys_of_a_machine() -> None:
    found = {variable.name: variable for variable in decode(preset(OWNER, b"owner", [b"one", b"two"], epoch=EPOCH))}
    assert list(found) == ["PK", "KEK", "db"], "no variable of EDK2's own"
    assert all(variable.attributes == KEYS for variable in found.values())
    assert found["PK"].data == found["KEK"].data == signature_list(OWNER, b"owner")
    assert found["db"].data == signature_list(OWNER, b"one") + signature_list(OWNER, b"two")


def test_a_place_that_nobody_has_filled_starts_nothing() -> None:
    """There is a PK, so U-Boot asks for signatures, but no db."""
    (variable,) = decode(blank())
    assert (variable.name, variable.vendor, variable.attributes) == ("PK", GLOBAL, KEYS)
    assert len(blank()) == SIZE and b"no certificate" in variable.data


def test_the_place_is_filled_once() -> None:
    keys = preset(OWNER, b"owner" * 200, [b"one" * 300], epoch=EPOCH)
    program = b"code" * 5 + blank() + b"more code"
    done = fill(program, keys)
    assert len(done) == len(program) and done.startswith(b"code" * 5) and done.endswith(b"\0more code")
    assert decode(done[20:]) == decode(keys)
    for other in (done, b"code", program + blank()):
        with pytest.raises(FormatError, match="no blank place"):
            fill(other, keys)
    with pytest.raises(CapacityError, match="16384 fit"):
        fill(program, bytes(SIZE + 1))


def test_the_configuration_keeps_what_locks_it_and_takes_keys_from_the_program_alone() -> None:
    common, board, ours = fragments(UEFI)
    assert (common, board) == (HERE / COMMON, HERE / "qemu_arm64.config")
    lines = ours.read_text().splitlines()
    opened = {line.split("=")[0].removeprefix("CONFIG_") for line in lines if line.startswith("CONFIG_")}
    closed = {line.split()[1].removeprefix("CONFIG_") for line in lines if line.endswith(" is not set")}
    for path in (common, board):
        closed |= {
            line.split()[1].removeprefix("CONFIG_") for line in path.read_text().splitlines() if "not set" in line
        }
    assert opened & closed == {"EFI_LOADER", "CMD_BOOTEFI"}, (
        "of what the locked one leaves out, nothing else comes back"
    )
    assert {"EFI_SECURE_BOOT", "EFI_VARIABLES_PRESEED", "EFI_VARIABLE_NO_STORE"} <= opened
    assert {"CMD_BOOTEFI_BOOTMGR", "EFI_BOOTMGR", "CMD_NVEDIT_EFI", "CMD_EFIDEBUG", "EFI_HTTP_BOOT"} <= closed
    assert f'CONFIG_EFI_VAR_SEED_FILE="{NAME}"' in lines
