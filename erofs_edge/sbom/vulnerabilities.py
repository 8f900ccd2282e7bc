# SPDX-License-Identifier: Apache-2.0
"""Find known vulnerabilities that affect the packages of a system, in a database supplied by the user.

Sources: the Debian security tracker's JSON export (source package → CVE → releases), OSV schema 1.6 (`affected`,
`ranges` of type ECOSYSTEM, ecosystems 'Debian' and 'Debian:N').
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.version import satisfies

DATABASE_MAX = 1 << 30
SUITES = {"bullseye": "11", "bookworm": "12", "trixie": "13", "forky": "14", "duke": "15"}
"""suite → Debian's number"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One vulnerability of one source package.

    packages  its binary packages in the system
    fixed     version of the source package that fixes it, '' if none is known
    urgency   as in the database
    note      the manifest's assessment ('not_affected: …'), '' if there is none
    aliases   other names of it, or what an advisory is about: Debian's OSV entries are about CVEs
    """

    id: str
    source: str
    version: str
    packages: tuple[str, ...]
    fixed: str = ""
    urgency: str = ""
    description: str = ""
    note: str = ""
    aliases: tuple[str, ...] = ()


def find_vulnerabilities(contents: dict[str, Any], database: Path) -> list[Finding]:
    """Findings in the order of packages and ids, each with the manifest's assessment.

    Raises SourceError if the database cannot be read, is of neither kind, or has no data on the suite: an empty result
    would mean nothing then.
    """
    sources: dict[tuple[str, str], list[str]] = {}
    for name, package in contents["packages"].items():
        sources.setdefault((package["source"], package["source_version"]), []).append(name)
    records = list(_load(database))
    if not any(_speaks_of(record, contents["suite"]) for record in records):
        raise SourceError(
            f"the database has no data for Debian {contents['suite']}", where=str(database), hint="get a newer export"
        )
    found: list[Finding] = []
    for (source, version), names in sorted(sources.items()):
        for record in records:
            found += _concerned(record, source, version, tuple(sorted(names)), contents["suite"])
    unique = {(one.source, one.version, one.id): one for one in found}
    said = contents.get("vulnerabilities")
    said = said if isinstance(said, dict) else {}
    return [replace(one, note=_note(one, said)) for _, one in sorted(unique.items())]


def _note(finding: Finding, said: dict[str, str]) -> str:
    """The manifest's assessment of a finding, or of everything that it covers: an advisory about two CVEs is not
    settled by an assessment of one of them."""
    if finding.id in said or not finding.aliases:
        return said.get(finding.id, "")
    notes = [said.get(name, "") for name in finding.aliases]
    return "; ".join(dict.fromkeys(notes)) if all(notes) else ""


def _load(path: Path) -> Iterator[dict[str, Any]]:
    """Records: the tracker's whole table as one, or each OSV entry. A folder contains OSV files."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise SourceError("no *.json files in the folder", where=str(path))
    for file in files:
        try:
            if file.stat().st_size > DATABASE_MAX:
                raise ValueError("larger than 1 GiB")
            value = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SourceError(f"not a vulnerability database: {error}", where=str(file)) from error
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, dict) and (_is_osv(one) or any(_releases(one))) for one in values):
            raise SourceError("neither Debian's security tracker nor OSV", where=str(file))
        yield from values


def _is_osv(record: dict[str, Any]) -> bool:
    """Whether it is an OSV entry: the schema requires `id` and `modified`; a withdrawn one need not affect anything."""
    return isinstance(record.get("id"), str) and ("affected" in record or "modified" in record)


def _releases(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The tracker's entries for each vulnerability, by suite; empty for any other table."""
    for entries in table.values():
        for entry in entries.values() if isinstance(entries, dict) else ():
            if isinstance(entry, dict) and isinstance(entry.get("releases"), dict) and entry["releases"]:
                yield entry["releases"]


def _speaks_of(record: dict[str, Any], suite: str) -> bool:
    """Whether a record is about a suite. With OSV, any entry about Debian counts, since there may be only one."""
    if not _is_osv(record):
        return any(suite in releases for releases in _releases(record))
    return any(name.partition(":")[0] == "Debian" for name in map(_ecosystem, _dicts(record.get("affected"))))


def _ecosystem(affected: dict[str, Any]) -> str:
    package = affected.get("package")
    return str(package.get("ecosystem", "")) if isinstance(package, dict) else ""


def _concerned(
    record: dict[str, Any], source: str, version: str, names: tuple[str, ...], suite: str
) -> Iterator[Finding]:
    if _is_osv(record):
        yield from _osv(record, source, version, names, suite)
        return
    entries = record.get(source)
    for cve, entry in entries.items() if isinstance(entries, dict) else ():
        releases = entry.get("releases") if isinstance(entry, dict) else None
        release = releases.get(suite) if isinstance(releases, dict) else None
        if not isinstance(release, dict):
            continue
        fixed = str(release.get("fixed_version", ""))
        # the tracker writes version 0 for a release that was never affected
        if fixed == "0" or (fixed and satisfies(version, ">=", fixed)):
            continue
        if release.get("status") in ("open", "resolved", "undetermined"):
            about = str(entry.get("description", ""))
            yield Finding(cve, source, version, names, fixed, str(release.get("urgency", "")), about)


def _osv(record: dict[str, Any], source: str, version: str, names: tuple[str, ...], suite: str) -> Iterator[Finding]:
    ecosystems = {"Debian", f"Debian:{SUITES.get(suite, suite)}"}
    for affected in _dicts(record.get("affected")):
        if _ecosystem(affected) not in ecosystems or affected["package"].get("name") != source:
            continue
        fixed, versions = "", affected.get("versions")
        hit = isinstance(versions, list) and version in versions
        for span in _dicts(affected.get("ranges")):
            inside, end = _inside(_dicts(span.get("events")), version)
            if span.get("type") == "ECOSYSTEM" and inside:
                hit, fixed = True, end
        if hit:
            severity = affected.get("ecosystem_specific")
            urgency = str(severity.get("urgency", "")) if isinstance(severity, dict) else ""
            about = str(record.get("summary") or record.get("details") or "")
            names_of_it = [*_words(record.get("aliases")), *_words(record.get("upstream"))]
            aliases = tuple(name for name in dict.fromkeys(names_of_it) if name != record["id"])
            yield Finding(str(record["id"]), source, version, names, fixed, urgency, about, aliases=aliases)


def _inside(events: Iterable[dict[str, Any]], version: str) -> tuple[bool, str]:
    """Whether a version is in a range of OSV events, and the version that ends the range."""
    inside, end = False, ""
    for event in events:
        if "introduced" in event:
            start = str(event["introduced"])
            inside, end = inside or start == "0" or satisfies(version, ">=", start), ""
        for key, relation in (("fixed", ">="), ("last_affected", ">>")):
            if key in event and inside:
                end = str(event[key]) if key == "fixed" else ""
                inside = not satisfies(version, relation, str(event[key]))
    return inside, end


def _dicts(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _words(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
