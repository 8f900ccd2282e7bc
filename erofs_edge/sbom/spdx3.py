# SPDX-License-Identifier: Apache-2.0
"""A bill of materials in SPDX 3.0.1 (JSON-LD), written by the bindings that the SPDX project generates from its model.

Profiles core, software and simpleLicensing: a package for the system and for each Debian package, a file for each
regular file, `contains` and `dependsOn` between them, a licence expression for each declared licence.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from erofs_edge.build.licenses import is_spdx, license_reference
from erofs_edge.sbom.bill import PACKAGE, Bill, File
from erofs_edge.sbom.purl import purl_of


def spdx3(bill: Bill) -> str:
    """The document as JSON-LD, with a line end. A function of the bill."""
    from spdx_python_model import v3_0_1 as model

    writer = _Writer(bill, model)
    writer.write()
    out = io.BytesIO()
    model.JSONLDSerializer().write(model.SHACLObjectSet(writer.made), out)
    value = json.loads(out.getvalue())
    value["@graph"].sort(key=lambda one: (str(one.get("spdxId", "")), str(one.get("@id", ""))))
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


class _Writer:
    """Makes the elements and collects them in `made`. `model` is the library's module of bindings."""

    def __init__(self, bill: Bill, model: Any) -> None:
        self.bill, self.model = bill, model
        self.base = f"urn:uuid:{bill.serial}#"
        self.made: list[Any] = []
        self.info = model.CreationInfo(
            _id="_:creation", specVersion="3.0.1", created=datetime.fromtimestamp(bill.epoch, UTC)
        )
        self.tool = self.new("Tool", "tool", name=f"erofs-edge-{bill.versions['version']}")
        agent = self.new("SoftwareAgent", "builder", name="erofs-edge")
        self.info.createdBy = [agent]
        self.info.createdUsing = [self.tool]
        self._licenses: dict[str, Any] = {}
        self._texts: dict[str, str] = {}
        self._suppliers: dict[str, Any] = {}

    def new(self, kind: str, name: str, /, **fields: Any) -> Any:
        """An element with its own identifier."""
        made = getattr(self.model, kind)(_id=self.base + name, creationInfo=self.info, **fields)
        self.made.append(made)
        return made

    def write(self) -> None:
        """Write the whole bill as one document."""
        model, bill = self.model, self.bill
        system = self.new(
            "software_Package", "system", name=bill.system, software_packageVersion=bill.root_hash,
            software_primaryPurpose=model.software_SoftwarePurpose.operatingSystem,
            comment=f"system of the board {bill.board}; the version is its dm-verity root hash",
        )  # fmt: skip
        packages = {name: self._package(name, package) for name, package in bill.packages.items()}
        self._custom_licenses()
        regular = [one for one in bill.files if one.sha256]
        held: dict[str, list[Any]] = {}
        for number, one in enumerate(regular):
            owner = one.origin.removeprefix(PACKAGE)
            held.setdefault(owner if owner in packages else "", []).append(self._file(number, one))
        self._relation("contains", "system", system, [*packages.values(), *held.pop("", [])])
        for name, files in held.items():
            self._relation("contains", name, packages[name], files)
        for name, package in bill.packages.items():
            needed = [packages[other] for other in package["depends"] if other in packages and other != name]
            self._relation("dependsOn", name, packages[name], needed)
        bom = self.new(
            "software_Sbom", "bom", name=f"{bill.board}-{bill.system}", rootElement=[system],
            software_sbomType=[model.software_SbomType.build],
        )  # fmt: skip
        profiles = [model.ProfileIdentifierType.core, model.ProfileIdentifierType.software]
        self.new(
            "SpdxDocument", "document", name=f"{bill.board}-{bill.system}", rootElement=[bom],
            profileConformance=[*profiles, model.ProfileIdentifierType.simpleLicensing],
        )  # fmt: skip

    def _package(self, name: str, package: dict[str, Any]) -> Any:
        purl = purl_of(name, package, self.bill.suite).to_string()
        made = self.new(
            "software_Package", f"deb-{_word(name)}", name=name, software_packageVersion=package["version"],
            software_packageUrl=purl, software_sourceInfo=f"built from {package['source']} {package['source_version']}",
        )  # fmt: skip
        if maintainer := re.match(r"\s*([^<]*?)\s*(?:<|$)", package["maintainer"])[1]:  # type: ignore[index]
            if maintainer not in self._suppliers:
                number = len(self._suppliers)
                self._suppliers[maintainer] = self.new("Organization", f"supplier-{number}", name=maintainer)
            made.suppliedBy = self._suppliers[maintainer]
        if package["summary"]:
            made.summary = package["summary"]
        if re.match(r"https?://[^\s]+$", package["homepage"]):
            made.software_homePage = package["homepage"]
        if package["sha256"]:
            made.verifiedUsing = [self._hash(package["sha256"])]
        for licence in self._declared(name, package["licenses"]):
            self._relation("hasDeclaredLicense", name, made, [licence])
        return made

    def _hash(self, sha256: str) -> Any:
        return self.model.Hash(algorithm=self.model.HashAlgorithm.sha256, hashValue=sha256)

    def _declared(self, package: str, names: list[str]) -> Iterator[Any]:
        """All licences of a package as one expression, made once."""
        if not names:
            return
        expression = " AND ".join(sorted({license_reference(name) for name in names}))
        if expression not in self._licenses:
            custom = sorted({license_reference(name) for name in names if not is_spdx(name)})
            self._licenses[expression] = self.new(
                "simplelicensing_LicenseExpression", f"licence-{len(self._licenses)}",
                simplelicensing_licenseExpression=expression,
                simplelicensing_customIdToUri=[
                    self.model.DictionaryEntry(key=one, value=self.base + one) for one in custom
                ],
            )  # fmt: skip
            for one in custom:
                self._texts.setdefault(one, package)
        yield self._licenses[expression]

    def _custom_licenses(self) -> None:
        """Entries for licences without an SPDX name: where their text is."""
        for reference, package in sorted(self._texts.items()):
            self.new(
                "simplelicensing_SimpleLicensingText", reference, name=reference.removeprefix("LicenseRef-Debian-"),
                simplelicensing_licenseText=f"see /usr/share/doc/{package}/copyright of Debian's package",
            )  # fmt: skip

    def _file(self, number: int, file: File) -> Any:
        name = file.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return self.new(
            "software_File", f"file-{number}", name=name, comment=file.origin, verifiedUsing=[self._hash(file.sha256)]
        )

    def _relation(self, kind: str, name: str, one: Any, others: list[Any]) -> None:
        if others:
            self.new(
                "Relationship", f"{kind}-{_word(name)}", from_=one, to=others,
                relationshipType=getattr(self.model.RelationshipType, kind),
            )  # fmt: skip


def _word(name: str) -> str:
    """A package's name in the form used at the end of an identifier."""
    return name.replace("+", ".plus")
