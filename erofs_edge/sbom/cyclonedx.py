# SPDX-License-Identifier: Apache-2.0
"""A bill of materials in CycloneDX 1.6 (JSON), written by the format's own library.

Packages are components with purl, hash of the .deb, licences, and each of their files as an occurrence with its
SHA-256; files of overlays and steps are components of their own.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from erofs_edge.build.licenses import is_spdx
from erofs_edge.sbom.bill import Bill, File
from erofs_edge.sbom.purl import purl_of

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.model.component_evidence import Occurrence


def cyclonedx(bill: Bill) -> str:
    """The document, with a line end. A function of the bill."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    bom = Bom(serial_number=bill.serial)
    bom.metadata.timestamp = datetime.fromtimestamp(bill.epoch, UTC)
    root = Component(
        name=bill.system, version=bill.root_hash[:16], type=ComponentType.OPERATING_SYSTEM, bom_ref="system",
        description=f"system of the board {bill.board}", properties=_properties(root_hash=bill.root_hash),
    )  # fmt: skip
    bom.metadata.component = root
    bom.metadata.tools.components.add(
        Component(name="erofs-edge", version=bill.versions["version"], type=ComponentType.APPLICATION, bom_ref="tool")
    )
    files: dict[str, list[File]] = {}
    for one in bill.files:
        files.setdefault(one.origin, []).append(one)
    components = {name: _package(bill, name, files.get(f"package {name}", [])) for name in bill.packages}
    for component in components.values():
        bom.components.add(component)
    others = [_file(one) for one in bill.others]
    for component in others:
        bom.components.add(component)
    bom.register_dependency(root, [*components.values(), *others])
    for name, component in components.items():
        needed = [components[other] for other in bill.packages[name]["depends"] if other in components]
        bom.register_dependency(component, [other for other in needed if other is not component])
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _package(bill: Bill, name: str, files: list[File]) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.component_evidence import ComponentEvidence
    from cyclonedx.model.contact import OrganizationalEntity
    from cyclonedx.model.license import DisjunctiveLicense

    package = bill.packages[name]
    component = Component(
        name=name, version=package["version"], type=ComponentType.LIBRARY, bom_ref=f"deb:{name}",
        purl=purl_of(name, package, bill.suite), description=package["summary"] or None,
        licenses=[DisjunctiveLicense(id=one) if is_spdx(one) else DisjunctiveLicense(name=one)
                  for one in package["licenses"]],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=package["sha256"])] if package["sha256"] else [],
        supplier=OrganizationalEntity(name=package["maintainer"]) if package["maintainer"] else None,
        properties=_properties(
            source=package["source"], source_version=package["source_version"], part=" ".join(package["in"]),
            requested=str(package["requested"]).lower(),
        ),
    )  # fmt: skip
    if files:
        component.evidence = ComponentEvidence(occurrences=[_occurrence(one) for one in files])
    return component


def _occurrence(file: File) -> Occurrence:
    from cyclonedx.model.component_evidence import Occurrence

    about = f"sha256:{file.sha256}" if file.sha256 else f"symlink:{_text(file.target)}" if file.target else "special"
    # without an explicit reference the library orders occurrences differently from run to run
    return Occurrence(bom_ref=f"at:{_text(file.path)}", location=_text(file.path), additional_context=about)


def _file(file: File) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)] if file.sha256 else []
    return Component(
        name=_text(file.path), type=ComponentType.FILE, bom_ref=f"file:{_text(file.path)}", hashes=hashes,
        properties=_properties(origin=file.origin, **({"target": _text(file.target)} if file.target else {})),
    )  # fmt: skip


def _properties(**values: str) -> list[Any]:
    from cyclonedx.model import Property

    return [Property(name=f"erofs-edge:{name}", value=value) for name, value in values.items()]


def _text(path: str) -> str:
    """A path in a form that a document can contain: bytes that are not UTF-8 are escaped."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
