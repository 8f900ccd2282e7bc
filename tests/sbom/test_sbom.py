# SPDX-License-Identifier: Apache-2.0
"""Bills of materials of a real build and of a miniature one: valid, complete, the same twice; what damage is told."""

from __future__ import annotations

import hashlib
import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from spdx_python_model import load_data
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from erofs_edge.build.contents import paths_by_origin, read_contents
from erofs_edge.build.licenses import is_spdx, spdx_name
from erofs_edge.build.record import read_release, write_json
from erofs_edge.cli.main import cli
from erofs_edge.cli.sbom import sbom
from erofs_edge.erofs import build
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsEdgeError, ToolError, VerificationError
from erofs_edge.sbom.bill import read_bill
from erofs_edge.sbom.cyclonedx import cyclonedx
from erofs_edge.sbom.query import chain_to, which
from erofs_edge.sbom.spdx import spdx
from erofs_edge.sbom.spdx3 import spdx3
from erofs_edge.tree import BytesContent, FileTree, Inode


def package(version: str = "1.0", **fields: object) -> dict[str, Any]:
    return {
        "version": version, "arch": "arm64", "source": "src", "source_version": version, "maintainer": "A <a@b.c>",
        "homepage": "", "summary": "words", "licenses": [], "depends": [], "archive": "debian", "sha256": "ab" * 32,
        "size": 1, "in": ["system"], "requested": False,
    } | fields  # fmt: skip


PACKAGES = {
    "tool": package(requested=True, depends=["libtool", "gone"], licenses=["GPL-2.0-or-later", "Odd name (1)"]),
    "libtool": package("2:1.0+b1", depends=["libc"], licenses=["MIT"], homepage="not a page"),
    "libc": package("3", sha256="", maintainer=""),
}


def file(data: bytes, origin: str) -> Inode:
    return Inode(stat.S_IFREG | 0o644, content=BytesContent(data), origin=origin)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A build's folder in miniature."""
    tree = FileTree(Inode(stat.S_IFDIR | 0o755, origin="tool"))
    tree.add("usr/bin/tool", file(b"tool" * 3000, "tool"))
    tree.add("usr/lib/libtool.so.3", file(b"lib", "libtool"))
    tree.add("usr/lib/libtool.so", Inode(stat.S_IFLNK | 0o777, target=b"libtool.so.3", origin="libtool"))
    tree.add("etc/conf", file(b"port = 80\n", "/home/me/product/system.yaml:7:5"))
    tree.add("etc/passwd", file(b"root\n", "accounts"))
    tree.add("dev/null", Inode(stat.S_IFCHR | 0o666, rdev=(1, 3), origin="tool"))
    info = build(tree, tmp_path / "system.img", compression="lz4hc", epoch=7)
    write_json(
        tmp_path / "release.json",
        {
            "format": 1, "board": "b", "arch": "arm64", "epoch": 7, "erofs_edge": {"version": "0.1"},
            "system": {"name": "s", "root_hash": "cd" * 32, "erofs_uuid": str(info.uuid)},
        },
    )  # fmt: skip
    paths = paths_by_origin(tree, PACKAGES)
    record = {"format": 1, "system": "s", "suite": "trixie", "epoch": 7, "packages": PACKAGES, "paths": paths}
    write_json(tmp_path / "contents.json", record)
    return tmp_path


def test_every_path_has_its_origin(made: Path) -> None:
    paths = read_contents(made)["paths"]
    assert paths["manifest system.yaml:7"] == ["/etc", "/etc/conf"], "no folder of the machine that builds"
    assert paths["step accounts"] == ["/etc/passwd"]
    assert paths["package libtool"] == ["/usr/lib", "/usr/lib/libtool.so", "/usr/lib/libtool.so.3"]


def valid_cyclonedx(text: str) -> dict[str, Any]:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    value: dict[str, Any] = json.loads(text)
    return value


def test_cyclonedx(made: Path) -> None:
    text = cyclonedx(read_bill(made))
    assert text == cyclonedx(read_bill(made, jobs=1))
    value = valid_cyclonedx(text)
    components = {one["name"]: one for one in value["components"]}
    assert set(components) == {"tool", "libtool", "libc", "/etc/conf", "/etc/passwd"}
    assert components["libtool"]["purl"] == "pkg:deb/debian/libtool@2:1.0%2Bb1?arch=arm64&distro=debian-trixie"
    places = {o["location"]: o["additionalContext"] for o in components["libtool"]["evidence"]["occurrences"]}
    digest = hashlib.sha256(b"lib").hexdigest()
    assert places == {"/usr/lib/libtool.so": "symlink:libtool.so.3", "/usr/lib/libtool.so.3": f"sha256:{digest}"}
    needs = {one["ref"]: one.get("dependsOn", []) for one in value["dependencies"]}
    assert needs["deb:tool"] == ["deb:libtool"] and needs["deb:libtool"] == ["deb:libc"]
    assert {"license": {"name": "Odd name (1)"}} in components["tool"]["licenses"]
    assert value["metadata"]["timestamp"].startswith("1970-01-01T00:00:07")


def test_spdx(made: Path) -> None:
    text = spdx(read_bill(made))
    assert text == spdx(read_bill(made))
    (made / "bill.spdx.json").write_text(text)
    document = parse_file(str(made / "bill.spdx.json"))
    assert validate_full_spdx_document(document) == []
    assert [one.name for one in document.files] == [
        "./etc/conf",
        "./etc/passwd",
        "./usr/bin/tool",
        "./usr/lib/libtool.so.3",
    ]
    assert [one.license_id for one in document.extracted_licensing_info] == ["LicenseRef-Debian-Odd-name-1"]


def test_spdx3(made: Path) -> None:
    """The library reads it with its own model, which refuses fields, kinds and counts that the format does not have."""
    text = spdx3(read_bill(made))
    assert text == spdx3(read_bill(made, jobs=1))
    _, objects = load_data(json.loads(text))
    by_kind: dict[str, list[Any]] = {}
    for one in objects.foreach():
        by_kind.setdefault(type(one).__name__, []).append(one)
    assert sorted(one.name for one in by_kind["software_Package"]) == ["libc", "libtool", "s", "tool"]
    files = {one.name: one for one in by_kind["software_File"]}
    assert set(files) == {"/etc/conf", "/etc/passwd", "/usr/bin/tool", "/usr/lib/libtool.so.3"}
    assert files["/usr/lib/libtool.so.3"].verifiedUsing[0].hashValue == hashlib.sha256(b"lib").hexdigest()
    relations = {
        (str(one.relationshipType).rpartition("/")[2], one.from_.name, end.name)
        for one in by_kind["Relationship"]
        for end in one.to
        if not type(end).__name__.startswith("simplelicensing")
    }
    assert relations == {
        *(("contains", "s", name) for name in ("tool", "libtool", "libc", "/etc/conf", "/etc/passwd")),
        ("contains", "tool", "/usr/bin/tool"), ("contains", "libtool", "/usr/lib/libtool.so.3"),
        ("dependsOn", "tool", "libtool"), ("dependsOn", "libtool", "libc"),
    }  # fmt: skip
    suppliers = {one.name: one.suppliedBy for one in by_kind["software_Package"]}
    assert suppliers["libc"] is suppliers["s"] is None and suppliers["tool"].name == "A"
    (odd,) = by_kind["simplelicensing_SimpleLicensingText"]
    expressions = {one.simplelicensing_licenseExpression: one for one in by_kind["simplelicensing_LicenseExpression"]}
    assert set(expressions) == {"MIT", "GPL-2.0-or-later AND LicenseRef-Debian-Odd-name-1"}
    (entry,) = expressions["GPL-2.0-or-later AND LicenseRef-Debian-Odd-name-1"].simplelicensing_customIdToUri
    assert (entry.key, entry.value) == ("LicenseRef-Debian-Odd-name-1", odd._id)
    assert [one._id for one in by_kind["SpdxDocument"][0].rootElement] == [by_kind["software_Sbom"][0]._id]


def test_which_and_why(made: Path) -> None:
    contents = read_contents(made)
    (found,) = which(contents, "usr/lib/libtool.so.3")
    assert (found.origin, found.version, found.chain) == ("package libtool", "2:1.0+b1", ("tool", "libtool"))
    assert [one.path for one in which(contents, "*.so*")] == ["/usr/lib/libtool.so", "/usr/lib/libtool.so.3"]
    assert which(contents, "/etc/conf")[0].chain == ()
    assert chain_to(contents, "libc") == ["tool", "libtool", "libc"]
    with pytest.raises(ErofsEdgeError, match="is not in the system") as caught:
        which(contents, "/conf")
    assert caught.value.hint == "did you mean /etc/conf?"
    with pytest.raises(ErofsEdgeError) as caught:
        which(contents, "libtool")
    assert caught.value.hint == "did you mean /usr/lib/libtool.so?"
    # as the device shows it: through Debian's symlinks, with what a shell completes or a script joins
    for name in ("/lib/libtool.so.3", "/usr/lib/libtool.so.3/", "/usr/lib/../lib/libtool.so.3"):
        assert which(contents, name)[0].path == "/usr/lib/libtool.so.3"
    result = CliRunner().invoke(cli, ["files", "why", "/etc/conf"])
    assert (result.exit_code, "of which build?" in result.stderr, "hint: add -o" in result.stderr) == (2, True, True)
    assert CliRunner().invoke(cli, ["files", "which", "/etc/conf", "-o", str(made)]).exit_code == 0


def test_records_of_another_build(made: Path) -> None:
    contents = read_contents(made)
    contents["paths"]["step accounts"] = []
    write_json(made / "contents.json", contents)
    with pytest.raises(VerificationError, match="/etc/passwd is in the image alone"):
        read_bill(made)
    (made / "contents.json").write_text('{"format": 1, "packages": [')
    with pytest.raises(VerificationError, match="damaged"):
        read_bill(made)
    (made / "contents.json").write_text('{"format": 1, "packages": {}}')
    with pytest.raises(VerificationError, match="it has no paths"):
        read_bill(made)
    (made / "contents.json").unlink()
    with pytest.raises(ErofsEdgeError, match=r"no contents\.json"):
        read_bill(made)


def test_the_command_and_a_library_that_is_missing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["write", str(made), "-o", str(made / "bom.json"), "--json"]
    record = json.loads(CliRunner().invoke(sbom, arguments).stdout)
    assert (record["packages"], record["files"], record["of_packages"], record["unexplained"]) == (3, 6, 4, [])
    assert record["size"] == (made / "bom.json").stat().st_size
    monkeypatch.setitem(sys.modules, "erofs_edge.sbom.spdx", None)
    assert json.loads(CliRunner().invoke(sbom, [*arguments, "--format", "spdx3"]).stdout)["format"] == "spdx3"
    assert '"specVersion": "3.0.1"' in (made / "bom.json").read_text()
    result = CliRunner().invoke(sbom, [*arguments, "--format", "spdx"])
    assert isinstance(result.exception, ToolError) and "erofs-edge[sbom]" in str(result.exception.hint)


@pytest.mark.parametrize(
    ("name", "spdx_id"),
    [
        ("GPL-2+", "GPL-2.0-or-later"),
        ("LGPL-2.1", "LGPL-2.1-only"),
        ("GFDL-1.3+", "GFDL-1.3-or-later"),
        ("Expat", "MIT"),
        ("bsd-3-CLAUSE", "BSD-3-Clause"),
        ("BSD-like", "BSD-like"),
    ],
)
def test_debian_names_of_licences(name: str, spdx_id: str) -> None:
    assert spdx_name(name) == spdx_id
    assert is_spdx(spdx_id) == (spdx_id != "BSD-like")


@pytest.mark.oracle
def test_the_stock_build_is_explained_to_the_last_file(stock: Callable[[str], Path]) -> None:
    out = stock("qemu-aarch64")
    contents, bill = read_contents(out), read_bill(out)
    assert "unexplained" not in contents["paths"]
    with Image(out / "system.img") as image:
        regular = {"/" + path.decode() for path, inode in image.walk() if stat.S_ISREG(inode.mode)}
        one = image.lookup("/etc/os-release")
        digest = hashlib.sha256(image.read(one, 0, one.size)).hexdigest()
    assert {one.path for one in bill.files if one.sha256} == regular
    by_path = {one.path: one for one in bill.files}
    assert by_path["/usr/lib/os-release"].sha256 == digest
    assert by_path["/usr/lib/os-release"].origin == "package base-files"
    value = valid_cyclonedx(cyclonedx(bill))
    places = [o["location"] for c in value["components"] for o in c.get("evidence", {}).get("occurrences", [])]
    places += [c["name"] for c in value["components"] if c["type"] == "file"]
    assert sorted(places) == sorted(by_path)
    assert sum(bool(p["licenses"]) for p in contents["packages"].values()) > 0.8 * len(contents["packages"])
    assert chain_to(contents, "libssl3t64")[0] in {n for n, p in contents["packages"].items() if p["requested"]}
    assert (
        str(read_release(out)["files"]["contents.json"]["sha256"])
        == hashlib.sha256((out / "contents.json").read_bytes()).hexdigest()
    )
