# SPDX-License-Identifier: Apache-2.0
"""PCR 11 of unified kernel images: the values of systemd-measure 252, and hostile PE files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pe_sample import pe_file

from erofs_edge.errors import FormatError
from erofs_edge.trust.measure import expected_pcr11, uki_sections

SECTIONS = {".linux": b"kernel", ".cmdline": b"root=x", ".initrd": b"initrd", ".osrel": b"ID=edge\n"}
# systemd-measure calculate --linux= --cmdline= --initrd= --osrel= --bank=sha256, of these contents
GOLDEN = {
    "enter-initrd": "163aec09173464bc2699d09978dc60ff2d6c4d286ccc5e71cf283e6d846588e7",
    "enter-initrd:leave-initrd": "86124d164a3885b11c18ce0862cac01f24835c8b0e9f3e52bd175b7aec5f3dc0",
    "enter-initrd:leave-initrd:sysinit": "cb43f60bd198a1dae07d3d91249afa8cf052b58aafbaf793fca58825b3d85169",
    "enter-initrd:leave-initrd:sysinit:ready": "b752947782f20b2bd3c3c45fa47aef5c1bf481d5600d886ba420e988e1c122af",
}


def test_values_are_those_of_systemd_measure() -> None:
    found = expected_pcr11(SECTIONS)
    assert {path: found[path] for path in GOLDEN} == GOLDEN
    assert len(found) == len(GOLDEN) + 1


def test_sections_are_read_from_the_image() -> None:
    image = pe_file({**SECTIONS, ".text": b"code"})
    assert uki_sections(image) == SECTIONS
    assert expected_pcr11(uki_sections(image)) == expected_pcr11(SECTIONS)
    for other in ({**SECTIONS, ".cmdline": b"root=y"}, {k: v for k, v in SECTIONS.items() if k != ".osrel"}):
        assert expected_pcr11(uki_sections(pe_file(other)))["enter-initrd"] != GOLDEN["enter-initrd"]


@given(st.data())
def test_hostile_files_are_format_errors(data: st.DataObject) -> None:
    raw = bytearray(pe_file(SECTIONS))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 600))] = data.draw(st.integers(0, 255))
    try:
        found = uki_sections(bytes(raw[: data.draw(st.sampled_from([len(raw), 70, 200, 1100]))]))
    except FormatError:
        return
    assert sum(map(len, found.values())) < 16 << 20


def test_what_is_no_pe_file() -> None:
    for raw in (b"", b"MZ", b"MZ" + bytes(200), b"\x7fELF" + bytes(200)):
        with pytest.raises(FormatError, match="PE file"):
            uki_sections(raw)
