# SPDX-License-Identifier: Apache-2.0
"""A bill of materials in SPDX 2.3 (JSON), written by the format's own library.

Every package is a Package, every regular file a File with SHA-1 and SHA-256, and CONTAINS relationships tie them.
"""

from __future__ import annotations

import hashlib
import io
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from erofs_edge.build.licenses import is_spdx, license_reference
from erofs_edge.sbom.bill import PACKAGE, Bill, File
from erofs_edge.sbom.purl import purl_of

if TYPE_CHECKING:
    from spdx_tools.spdx.model import Document, ExtractedLicensingInfo, Package, Relationship

_DOCUMENT = "SPDXRef-DOCUMENT"
_SYSTEM = "SPDXRef-system"


def spdx_document(bill: Bill) -> Document:
    """The document as the library's object."""
    from spdx_tools.spdx.model import Actor, ActorType, CreationInfo, Document, RelationshipType

    relations = [_relation(_DOCUMENT, RelationshipType.DESCRIBES, _SYSTEM)]
    regular = [one for one in bill.files if one.sha256]
    sums: dict[str, list[str]] = {}
    for one in regular:
        sums.setdefault(one.origin if one.origin.removeprefix(PACKAGE) in bill.packages else "", []).append(one.sha1)
    ids = {one.path: f"SPDXRef-file-{number}" for number, one in enumerate(regular)}
    owners = {f"package {name}": _id(name) for name in bill.packages}
    for one in regular:
        relations.append(_relation(owners.get(one.origin, _SYSTEM), RelationshipType.CONTAINS, ids[one.path]))
    for name, package in bill.packages.items():
        relations.append(_relation(_SYSTEM, RelationshipType.CONTAINS, _id(name)))
        relations += [
            _relation(_id(name), RelationshipType.DEPENDS_ON, _id(other))
            for other in package["depends"]
            if other in bill.packages and other != name
        ]
    return Document(
        creation_info=CreationInfo(
            spdx_version="SPDX-2.3",
            spdx_id=_DOCUMENT,
            name=f"{bill.board}-{bill.system}",
            document_namespace=f"urn:uuid:{bill.serial}",
            creators=[Actor(ActorType.TOOL, f"erofs-edge-{bill.versions['version']}")],
            created=datetime.fromtimestamp(bill.epoch, UTC).replace(tzinfo=None),
        ),
        packages=[
            _system(bill, sums.get("", [])),
            *(_package(bill, name, sums.get(PACKAGE + name, [])) for name in bill.packages),
        ],
        files=[_file(one, ids[one.path]) for one in regular],
        relationships=relations,
        extracted_licensing_info=_extracted(bill),
    )


def spdx(bill: Bill) -> str:
    """The document as JSON, with a line end. A function of the bill."""
    from spdx_tools.spdx.writer.json.json_writer import write_document_to_stream

    text = io.StringIO()
    write_document_to_stream(spdx_document(bill), text, validate=False)
    return text.getvalue() + "\n"


def _relation(one: str, kind: Any, other: str) -> Relationship:
    from spdx_tools.spdx.model import Relationship

    return Relationship(one, kind, other)


def _id(name: str) -> str:
    return f"SPDXRef-deb-{name.replace('+', '.plus')}"


def _verification_code(sums: list[str]) -> Any:
    """SPDX 2.3, 7.9: the SHA-1 of the sorted SHA-1s of a package's files; None for a package without files."""
    from spdx_tools.spdx.model import PackageVerificationCode

    if not sums:
        return None
    return PackageVerificationCode(hashlib.sha1("".join(sorted(sums)).encode(), usedforsecurity=False).hexdigest())


def _system(bill: Bill, sums: list[str]) -> Package:
    from spdx_tools.spdx.model import Package, PackagePurpose, SpdxNoAssertion

    return Package(
        spdx_id=_SYSTEM,
        name=bill.system,
        download_location=SpdxNoAssertion(),
        version=bill.root_hash,
        files_analyzed=bool(sums),
        verification_code=_verification_code(sums),
        primary_package_purpose=PackagePurpose.OPERATING_SYSTEM,
        comment=f"system of the board {bill.board}; the version is its dm-verity root hash",
    )


def _package(bill: Bill, name: str, files: list[str]) -> Package:
    from spdx_tools.spdx.model import (
        Actor,
        ActorType,
        Checksum,
        ChecksumAlgorithm,
        ExternalPackageRef,
        ExternalPackageRefCategory,
        Package,
        SpdxNoAssertion,
    )

    package = bill.packages[name]
    maintainer = re.fullmatch(r"\s*([^<]*?)\s*(?:<([^>]*)>)?\s*", package["maintainer"])
    sums = [Checksum(ChecksumAlgorithm.SHA256, package["sha256"])] if package["sha256"] else []
    return Package(
        spdx_id=_id(name),
        name=name,
        version=package["version"],
        download_location=SpdxNoAssertion(),
        files_analyzed=bool(files),
        verification_code=_verification_code(files),
        supplier=Actor(ActorType.ORGANIZATION, maintainer[1], maintainer[2] or None)
        if maintainer and maintainer[1]
        else None,
        checksums=sums,
        homepage=package["homepage"] if re.match(r"https?://[^\s]+$", package["homepage"]) else None,
        source_info=f"built from {package['source']} {package['source_version']}",
        license_declared=_licenses(package["licenses"]),
        summary=package["summary"] or None,
        external_references=[
            ExternalPackageRef(
                ExternalPackageRefCategory.PACKAGE_MANAGER,
                "purl",
                purl_of(name, package, bill.suite).to_string(),
            )
        ],
    )


def _file(file: File, spdx_id: str) -> Any:
    from spdx_tools.spdx.model import Checksum, ChecksumAlgorithm
    from spdx_tools.spdx.model import File as SpdxFile

    name = file.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    sums = [Checksum(ChecksumAlgorithm.SHA1, file.sha1), Checksum(ChecksumAlgorithm.SHA256, file.sha256)]
    return SpdxFile(name="." + name, spdx_id=spdx_id, checksums=sums, comment=file.origin)


def _licenses(names: list[str]) -> Any:
    """All licences joined: those of the package's parts."""
    from spdx_tools.common.spdx_licensing import spdx_licensing
    from spdx_tools.spdx.model import SpdxNoAssertion

    if not names:
        return SpdxNoAssertion()
    return spdx_licensing.parse(" AND ".join(sorted({license_reference(name) for name in names})))


def _extracted(bill: Bill) -> list[ExtractedLicensingInfo]:
    from spdx_tools.spdx.model import ExtractedLicensingInfo

    names: dict[str, list[str]] = {}
    for package_name, package in bill.packages.items():
        for name in package["licenses"]:
            if not is_spdx(name):
                names.setdefault(license_reference(name), []).append(package_name)
    return [
        ExtractedLicensingInfo(
            license_id=reference,
            extracted_text=f"see /usr/share/doc/{packages[0]}/copyright of Debian's package",
            license_name=reference.removeprefix("LicenseRef-Debian-"),
        )
        for reference, packages in sorted(names.items())
    ]
