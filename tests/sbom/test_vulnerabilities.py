# SPDX-License-Identifier: Apache-2.0
"""Vulnerabilities by the two kinds of database, and databases that are none."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.build.record import write_json
from erofs_edge.cli.sbom import sbom
from erofs_edge.errors import SourceError
from erofs_edge.manifest.model import System
from erofs_edge.sbom.vulnerabilities import Finding, find_vulnerabilities

CONTENTS: dict[str, Any] = {
    "format": 1,
    "suite": "trixie",
    "paths": {},
    "packages": {
        "libssl3": {"source": "openssl", "source_version": "3.5.1-1"},
        "openssl": {"source": "openssl", "source_version": "3.5.1-1"},
        "bash": {"source": "bash", "source_version": "5.2-1"},
    },
}


def tracker(**release: str) -> dict[str, Any]:
    return {
        "openssl": {"CVE-2026-1": {"description": "text", "releases": {"trixie": release, "sid": {"status": "open"}}}}
    }


def osv(events: list[dict[str, str]], ecosystem: str = "Debian:13", **more: object) -> dict[str, Any]:
    affected = {
        "package": {"name": "openssl", "ecosystem": ecosystem},
        "ranges": [{"type": "ECOSYSTEM", "events": events}],
    }
    return {"id": "DSA-1", "summary": "words", "affected": [{**affected, **more}]}


def found(folder: Path, value: object, notes: dict[str, str] | None = None) -> list[Finding]:
    (folder / "db.json").write_text(json.dumps(value))
    return find_vulnerabilities(CONTENTS | ({"vulnerabilities": notes} if notes else {}), folder / "db.json")


def test_an_advisory_is_known_by_what_it_is_about(tmp_path: Path) -> None:
    """Debian's OSV entries have names of their own; notes of a manifest are about CVEs."""
    entry = osv([{"introduced": "0"}]) | {"aliases": ["CVE-2026-1"], "upstream": ["CVE-2026-2", "CVE-2026-1", 5]}
    one, two = "not_affected: not compiled in", "in_triage: looking"
    (plain,) = found(tmp_path, entry)
    assert (plain.aliases, plain.note) == (("CVE-2026-1", "CVE-2026-2"), "")
    assert found(tmp_path, entry, {"CVE-2026-1": one})[0].note == "", "the other one is open"
    assert found(tmp_path, entry, {"CVE-2026-1": one, "CVE-2026-2": two})[0].note == f"{one}; {two}"
    assert found(tmp_path, entry, {"DSA-1": two, "CVE-2026-1": one})[0].note == two
    write_json(tmp_path / "contents.json", CONTENTS)
    done = CliRunner().invoke(sbom, ["vulnerabilities", str(tmp_path), "--database", str(tmp_path / "db.json")])
    assert "DSA-1 (CVE-2026-1, CVE-2026-2)" in done.output


@pytest.mark.parametrize(
    ("release", "fixed"),
    [
        ({"status": "open", "urgency": "high"}, ""),
        ({"status": "resolved", "fixed_version": "3.5.2-1"}, "3.5.2-1"),
        ({"status": "resolved", "fixed_version": "3.5.1-1"}, None),
        ({"status": "resolved", "fixed_version": "0"}, None),
        ({"status": "open", "fixed_version": "3.5.10-1"}, "3.5.10-1"),
    ],
)
def test_the_security_tracker(tmp_path: Path, release: dict[str, str], fixed: str | None) -> None:
    findings = found(tmp_path, tracker(**release), {"CVE-2026-1": "not_affected: not compiled in"})
    assert [one.fixed for one in findings] == ([] if fixed is None else [fixed])
    for one in findings:
        assert one.packages == ("libssl3", "openssl") and one.note == "not_affected: not compiled in"


@pytest.mark.parametrize(
    ("events", "hit"),
    [
        ([{"introduced": "0"}], True),
        ([{"introduced": "0"}, {"fixed": "3.5.2-1"}], True),
        ([{"introduced": "0"}, {"fixed": "3.5.1-1"}], False),
        ([{"introduced": "3.5.2"}], False),
        ([{"introduced": "0"}, {"last_affected": "3.5.1-1"}], True),
        ([{"introduced": "0"}, {"last_affected": "3.5.0"}], False),
        ([{"introduced": "0"}, {"fixed": "1.1"}, {"introduced": "3.5"}, {"fixed": "3.6"}], True),
    ],
)
def test_osv(tmp_path: Path, events: list[dict[str, str]], hit: bool) -> None:
    assert bool(found(tmp_path, osv(events))) == hit
    assert not found(tmp_path, osv(events, "Debian:12"))


def test_osv_by_version_and_in_a_folder(tmp_path: Path) -> None:
    assert found(tmp_path, [osv([], versions=["3.5.1-1"])])[0].id == "DSA-1"
    assert not found(tmp_path, osv([], versions=["3.5.1-2"]))
    (tmp_path / "osv").mkdir()
    (tmp_path / "osv/1.json").write_text(json.dumps(osv([{"introduced": "0"}])))
    assert len(find_vulnerabilities(CONTENTS, tmp_path / "osv")) == 1


def test_no_database(tmp_path: Path) -> None:
    """Nor other JSON, in which nothing would be found either: a bill of materials, a record of a build."""
    others = ["{}", '{"bomFormat": "CycloneDX", "components": []}', '{"board": "x", "files": {"a": {"size": 1}}}']
    for text in ("", "[1]", "3", '{"a"', *others, '[{"id": "x"}]', '[{"affected": []}]'):
        (tmp_path / "db.json").write_text(text)
        with pytest.raises(SourceError) as caught:
            find_vulnerabilities(CONTENTS, tmp_path / "db.json")
        assert caught.value.where == str(tmp_path / "db.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no \*\.json"):
        find_vulnerabilities(CONTENTS, tmp_path / "empty")


def test_a_database_that_says_nothing_of_the_suite(tmp_path: Path) -> None:
    """An old export, or one of another system: that no package is concerned would be no answer."""
    old = {"openssl": {"CVE-2020-1": {"releases": {"buster": {"status": "open"}}}}}
    withdrawn = {"id": "DSA-2", "modified": "2026-01-01T00:00:00Z", "withdrawn": "2026-01-02T00:00:00Z"}
    for value in (old, osv([{"introduced": "0"}], "PyPI"), [withdrawn]):
        with pytest.raises(SourceError, match="has no data for Debian trixie") as caught:
            found(tmp_path, value)
        assert caught.value.where == str(tmp_path / "db.json")
    assert len(found(tmp_path, [withdrawn, osv([{"introduced": "0"}])])) == 1


WORDS = ["openssl", "releases", "trixie", "affected", "id", "ranges", "events", "package", "ecosystem", "versions", "x"]
KEYS = st.sampled_from([*WORDS, "name", "introduced", "fixed", "type", "status", "fixed_version"])
JSON = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5) | st.sampled_from(["Debian", "openssl", "ECOSYSTEM", "9" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(value=st.dictionaries(st.sampled_from(["openssl", "affected", "id", "x"]), JSON, max_size=4))
def test_any_json_is_answered(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    """Or refused as no database."""
    with contextlib.suppress(SourceError):
        found(tmp_path_factory.mktemp("db"), value)


@pytest.mark.parametrize(
    "change",
    [
        {"versions": 7}, {"versions": {}}, {"package": {"name": "openssl", "ecosystem": ["Debian"]}}, {"ranges": 7},
        {"package": {"name": ["openssl"], "ecosystem": "Debian"}}, {"package": 7},
    ],
)  # fmt: skip
def test_osv_of_odd_shapes(tmp_path: Path, change: dict[str, object]) -> None:
    """Beside an entry that is in order, which is found."""
    good, odd = osv([{"introduced": "0"}]), osv([{"introduced": "0"}], **change)
    assert "DSA-1" in {one.id for one in found(tmp_path, [odd, good])}


def test_versions_of_many_digits(tmp_path: Path) -> None:
    for version, hit in (("9" * 5000, True), ("0" * 5000, False), ("3.5.1-1" + "0" * 5000, True)):
        assert bool(found(tmp_path, tracker(status="resolved", fixed_version=version))) == hit


def test_what_a_manifest_says() -> None:
    raw = b"""{"system": "s", "vulnerabilities": {"CVE-2026-1": {"status": "not_affected",
        "justification": "vulnerable_code_not_present", "note": "built without it"},
        "DSA-5-1": {"status": "fixed"}}}"""
    said = {name: one.text for name, one in msgspec.json.decode(raw, type=System).vulnerabilities.items()}
    assert said == {"CVE-2026-1": "not_affected: vulnerable_code_not_present, built without it", "DSA-5-1": "fixed"}
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(raw.replace(b"CVE-2026-1", b"cve"), type=System)


def test_the_command(tmp_path: Path) -> None:
    write_json(tmp_path / "contents.json", CONTENTS)
    (tmp_path / "db.json").write_text(json.dumps(tracker(status="open", urgency="low")))
    arguments = ["vulnerabilities", str(tmp_path), "--database", str(tmp_path / "db.json")]
    result = CliRunner().invoke(sbom, [*arguments, "--json"])
    assert json.loads(result.stdout)["findings"][0]["id"] == "CVE-2026-1"
    assert "CVE-2026-1  openssl  3.5.1-1  no fix    low" in CliRunner().invoke(sbom, arguments).stdout
