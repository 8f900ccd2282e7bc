# SPDX-License-Identifier: Apache-2.0
"""Unified kernel images: their parts come out unchanged, other programs can read the file, systemd-measure agrees."""

from __future__ import annotations

import itertools
import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pe_sample import pe_file

from erofs_edge.boot.uki import build_uki
from erofs_edge.errors import FormatError
from erofs_edge.trust import pe
from erofs_edge.trust.authenticode import digest
from erofs_edge.trust.measure import expected_pcr11, uki_sections

STUB = pe_file({".text": b"code" * 2000, ".sbat": b"sbat,1\n"})
SECTIONS = {
    ".osrel": b"ID=erofs-edge\n",
    ".cmdline": b"console=ttyAMA0 erofs_edge.slot=a",
    ".uname": b"6.12",
    ".initrd": b"initrd" * 999,
    ".linux": b"kernel" * 5000,
}


def test_sections_are_where_the_header_says() -> None:
    image = build_uki(STUB, SECTIONS)
    found = pe.parse(image)
    assert {name: pe.section_content(image, found.section(name) or found.sections[0]) for name in SECTIONS} == SECTIONS
    assert uki_sections(image) == {**SECTIONS, ".sbat": b"sbat,1\n"}
    addresses = [(s.address, s.size) for s in found.sections]
    assert all(first + size <= second for (first, size), (second, _) in itertools.pairwise(addresses))
    assert all(s.address % found.section_alignment == s.offset % found.file_alignment == 0 for s in found.sections)
    (memory,) = struct.unpack_from("<I", image, found.size_of_image)
    assert memory % found.section_alignment == 0
    assert memory >= addresses[-1][0] + addresses[-1][1]
    assert len(image) == max(s.offset + s.stored for s in found.sections)


def test_the_stub_itself_stays() -> None:
    image = build_uki(STUB, SECTIONS)
    before, after = pe.parse(STUB), pe.parse(image)
    assert after.sections[: len(before.sections)] == before.sections
    assert image[before.headers : len(STUB)] == STUB[before.headers :]
    assert digest(build_uki(STUB, {})) == digest(STUB)


def test_what_does_not_go() -> None:
    with pytest.raises(FormatError, match="another machine"):
        build_uki(pe_file({".text": b"x"}, machine=0x8664), SECTIONS)
    with pytest.raises(FormatError, match=r"section \.sbat"):
        build_uki(STUB, {".sbat": b"x"})
    with pytest.raises(FormatError, match="no room"):
        build_uki(STUB, {f".s{number}": b"x" for number in range(20)})
    with pytest.raises(FormatError, match="not a PE file"):
        build_uki(b"MZ", SECTIONS)


def test_systemd_measure_expects_the_same(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    arguments = []
    for name, data in {**SECTIONS, ".sbat": b"sbat,1\n"}.items():
        (tmp_path / name[1:]).write_bytes(data)
        arguments.append(f"--{name[1:]}={tmp_path / name[1:]}")
    command = [oracle("systemd-measure"), "calculate", "--bank=sha256", "--json=short", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = {entry["phase"]: entry["hash"] for entry in json.loads(done.stdout)["sha256"] if entry["pcr"] == 11}
    ours = expected_pcr11(uki_sections(build_uki(STUB, SECTIONS)))
    assert theirs
    assert {phase: ours[phase] for phase in theirs} == theirs
