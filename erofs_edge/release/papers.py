# SPDX-License-Identifier: Apache-2.0
"""The files of a release beside the images: bills of materials, provenance, checksums, inputs, a page, instructions.

All are written before the record, which then lists and signs them, too.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from erofs_edge.build.contents import read_contents
from erofs_edge.build.inputs import Inputs
from erofs_edge.build.record import RELEASE, outputs
from erofs_edge.release.archive import ARCHIVE, write_archive
from erofs_edge.report.facts import collect
from erofs_edge.report.page import write_page
from erofs_edge.sbom.bill import read_bill
from erofs_edge.sbom.cyclonedx import cyclonedx
from erofs_edge.sbom.purl import purl_of
from erofs_edge.sbom.spdx import spdx
from erofs_edge.trust.dsse import Statement, seal
from erofs_edge.trust.signer import Signer

CYCLONEDX, SPDX = "bom.cdx.json", "bom.spdx.json"
PROVENANCE = "provenance.intoto.jsonl"
CHECKSUMS = "SHA256SUMS"
INSTRUCTIONS = "REBUILD.md"
PAGE = "report.html"
SLSA = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:erofs-edge:build:1"
BUILDER = "urn:erofs-edge:builder:1"


def write_papers(work: Path, inputs: Inputs, signer: Signer) -> None:
    """Write them to a folder that has images, contents.json and a provisional release.json. Raises ErofsEdgeError."""
    write_archive(inputs, work / ARCHIVE)
    bill = read_bill(work)
    (work / CYCLONEDX).write_text(cyclonedx(bill), encoding="utf-8")
    (work / SPDX).write_text(spdx(bill), encoding="utf-8")
    record = json.loads((work / RELEASE).read_text())
    (work / INSTRUCTIONS).write_text(_instructions(record), encoding="utf-8")
    write_page(collect(work), work / PAGE)
    names = sorted(path.name for path in work.iterdir() if path.is_file() and path.name != RELEASE)
    sums = {name: entry["sha256"] for name, entry in outputs(work, names).items()}
    statement = Statement(SLSA, sums, _predicate(work, inputs, record, sums))
    (work / PROVENANCE).write_bytes(seal(statement, signer))
    sums[PROVENANCE] = hashlib.sha256((work / PROVENANCE).read_bytes()).hexdigest()
    (work / CHECKSUMS).write_text("".join(f"{sha}  {name}\n" for name, sha in sorted(sums.items())))


def _predicate(work: Path, inputs: Inputs, record: dict[str, Any], sums: dict[str, str]) -> dict[str, Any]:
    """SLSA provenance v1. It contains no machine name and no time: the same inputs give the same statement anywhere."""
    contents = read_contents(work)
    packages = [
        {
            "uri": purl_of(name, package, contents["suite"]).to_string(),
            "digest": {"sha256": package["sha256"]},
            "name": name,
        }
        for name, package in sorted(contents["packages"].items())
        if package["sha256"]
    ]
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"board": record["board"], "system": record["system"]["name"]},
            "internalParameters": {"erofs_edge": record["erofs_edge"], "epoch": inputs.epoch},
            "resolvedDependencies": [
                {"uri": f"file:{ARCHIVE}", "digest": {"sha256": sums[ARCHIVE]}, "name": ARCHIVE},
                *packages,
            ],
        },
        "runDetails": {
            "builder": {"id": BUILDER, "version": {"erofs-edge": record["erofs_edge"]["version"]}},
            "metadata": {"invocationId": record["inputs"]["digest"]},
        },
    }


def _instructions(record: dict[str, Any]) -> str:
    version = record["erofs_edge"]["version"]
    return f"""# How to make this release again

Board `{record["board"]}`, system `{record["system"]["name"]}`, root hash `{record["system"]["root_hash"]}`.

1. On any Linux with Python 3.11 or newer: `pip install 'erofs-edge[sbom]=={version}'`.
2. `erofs-edge verify FOLDER --key PUBLIC-KEY`, with the public key from a place that you trust.
3. `erofs-edge rebuild FOLDER`: it takes boards, manifests and locks from `{ARCHIVE}`, the packages that the locks pin
   ({record["inputs"]["packages"]}) from your mirror or `--packages FOLDER`, builds all, and compares file by file.
   No private key is needed: signatures are those of the release, put where they fit.
4. `erofs-edge diff FOLDER OTHER` says what differs, where something does.
"""
