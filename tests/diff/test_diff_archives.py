# SPDX-License-Identifier: Apache-2.0
"""What releases contain besides images: the archive of inputs, member by member, and the content of signed
statements."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from erofs_edge.diff.archive import ARCHIVE_MAX
from erofs_edge.diff.paths import compare_paths, kind_of
from erofs_edge.diff.report import Report
from erofs_edge.trust.dsse import Statement, seal
from erofs_edge.trust.key import KeySigner


def _tar(path: Path, members: dict[str, bytes | str], **headers: int) -> Path:
    """Make a tar: bytes are files, text is the target of a symlink."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            for header, value in headers.items():
                setattr(info, header, value)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def _told(report: Report) -> list[tuple[str, str, str, str | None, str | None]]:
    return [(one.layer, one.where, one.what, one.old, one.new) for one in report.changes]


def test_an_archive_member_by_member(tmp_path: Path) -> None:
    old = _tar(tmp_path / "a.tar", {"board.yaml": b"a: 1\nb: 2\n", "gone": b"x", "link": "one"}, mode=0o644)
    new = _tar(tmp_path / "b.tar", {"board.yaml": b"a: 1\nb: 3\n", "link": "two", "new": b"y"}, mode=0o644)
    report = compare_paths(old, new)
    assert _told(report) == [
        ("archive", "board.yaml", "content", "10 bytes", "10 bytes"),
        ("archive", "gone", "removed", None, None),
        ("archive", "link", "linkname", "one", "two"),
        ("archive", "new", "added", None, None),
    ]
    assert "+b: 3" in report.changes[0].detail
    again = _tar(tmp_path / "c.tar", {"board.yaml": b"a: 1\nb: 2\n", "gone": b"x", "link": "one"}, mode=0o600)
    assert {(what, old, new) for _, _, what, old, new in _told(compare_paths(old, again))} == {("mode", "644", "600")}
    turned = _tar(tmp_path / "d.tar", {"gone": b"x", "board.yaml": b"a: 1\nb: 2\n", "link": "one"}, mode=0o644)
    assert [one.what for one in compare_paths(old, turned).changes] == ["order"]


def test_damaged_and_hostile_archives_are_told(tmp_path: Path) -> None:
    old = _tar(tmp_path / "a.tar", {"one": b"x" * 5000, "two": b"y"})
    (tmp_path / "cut.tar").write_bytes(old.read_bytes()[:3000])
    assert kind_of(tmp_path / "cut.tar") == "tar"
    assert [one.layer for one in compare_paths(old, tmp_path / "cut.tar").changes][-1] == "damage"
    header = tarfile.TarInfo("huge")
    header.size = ARCHIVE_MAX + 1
    (tmp_path / "huge.tar").write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    report = compare_paths(old, tmp_path / "huge.tar")
    assert [(one.layer, one.what) for one in report.changes] == [("damage", "structure")]


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE, **headers: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.pax_headers = size, kind, headers
    return info.tobuf(tarfile.PAX_FORMAT if headers else tarfile.GNU_FORMAT)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "data",
    [
        _header("one", 0) + _header("back to the first", -1024),
        (_header("././@LongLink", 2, tarfile.GNUTYPE_LONGNAME) + b"n".ljust(512, b"\0")) * 5000 + _header("n", 0),
        b"".join(
            _header(f"hole{number}", 0, **{"GNU.sparse.map": "0,0", "GNU.sparse.size": str(ARCHIVE_MAX)})
            for number in range(64)
        ),
    ],
    ids=["negative", "deep", "sparse"],
)
def test_hostile_archives_end_in_bounded_time(tmp_path: Path, data: bytes) -> None:
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(data + bytes(1024) + name.encode())
    report = compare_paths(tmp_path / "a.tar", tmp_path / "b.tar")
    assert [(one.layer, one.what) for one in report.changes] == [("damage", "structure")]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_signed_statement_is_compared_by_what_it_says(tmp_path: Path, damaged: bool) -> None:
    signer = KeySigner("owner", rsa.generate_private_key(65537, 2048))
    for name, digest in (("a", "11" * 32), ("b", "22" * 32)):
        envelope = json.loads(seal(Statement("urn:x", {"disk.img": digest}, {"same": 1}), signer))
        if damaged:
            envelope["payload"] = f"!{name}"
        (tmp_path / name).write_text(json.dumps(envelope))
    where = [one.where for one in compare_paths(tmp_path / "a", tmp_path / "b").changes]
    assert where == (["/payload"] if damaged else ["/payload/subject/0/digest/sha256"]) + ["/signatures/0/sig"]
